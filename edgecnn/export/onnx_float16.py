"""A float32 ONNX graph as one of float16 within: half the bytes, and what GPUs are fastest at."""

from typing import TYPE_CHECKING

import numpy as np

from edgecnn.errors import ExportError

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)


def convert(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Convert weights and arithmetic to float16, between a Cast at the input and one at each output, which stay float32.

    ONNX Runtime runs it in float16 on CUDA; on a CPU without such kernels it casts by itself, and is no faster.

    Args:
        model: a float32 graph of one input, as tf2onnx makes.

    Returns:
        Another model.

    Raises:
        ExportError: if a weight is beyond float16's range, or a node casts or computes types in a way that is not known here.
    """
    import onnx

    half = onnx.TensorProto.FLOAT16
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        _to_half(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ExportError(
                    f"the ONNX graph's {node.op_type} {node.name!r} holds a subgraph, which cannot become float16."
                )
            if attribute.HasField("t"):
                _to_half(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = half
    entry, outputs = graph.input[0].name, [item.name for item in graph.output]
    inner = {name: f"{name}_float16" for name in (entry, *outputs)}
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    first = onnx.helper.make_node("Cast", [entry], [inner[entry]], name=f"Cast_{inner[entry]}", to=half)
    last = [
        onnx.helper.make_node("Cast", [inner[name]], [name], name=f"Cast_{name}", to=onnx.TensorProto.FLOAT)
        for name in outputs
    ]
    nodes = [first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _to_half(tensor: "onnx.TensorProto") -> None:
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return
    values = onnx.numpy_helper.to_array(tensor)
    largest = float(np.max(np.abs(values), initial=0.0))
    if np.isfinite(largest) and largest > LARGEST:
        raise ExportError(
            f"{tensor.name!r} holds {largest:g}, but the largest float16 value is {LARGEST:g}. Export float32 instead."
        )
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))
