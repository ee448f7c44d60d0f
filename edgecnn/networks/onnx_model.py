"""An ONNX classifier as a functional Keras model that ends in logits: read, checked and built layer by layer.

Nothing in the file is executed: the graph's values of constants are computed by onnx's reference, up to a size, and the rest is built from
the operators of `onnx_operators`. Values in a file next to the model are read only from the same folder.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecnn.errors import ExportError, first_line
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.onnx_operators import OPERATORS
from edgecnn.networks.onnx_values import Node, Value, reshaped, stored

if TYPE_CHECKING:
    import onnx


LARGEST_BYTES = 256 * 2**20
"""Largest model, with the values next to it. The largest that a board of 1 GB can run is smaller."""

MOST_NODES = 5_000
MOST_LAYERS = 700  # nodes that depend on the image: the 39 classifiers of docs/your-model.md have up to 484
MOST_ELEMENTS = 2**26  # of one constant in the file
MOST_COMPUTED = 2**24  # of all constants that its nodes compute
# elements of one tensor that depends on the image, and of all: VGG-16 has 3.2 million at 224x224
MOST_PIXELS = (2**22, 2**27)
MOST_MACS = 5 * 10**9  # multiply-accumulates of one image: ResNet-50 at 224x224 has 4.1 * 10**9
LARGEST_SIDE = 1024

FIRST_OPSET = 7  # before, operators broadcast by attributes

SHOWN = 5  # nodes that an error names

GROWING = ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "EyeLike", "OneHot", "Pad")
"""Operators whose result may be much larger than their inputs. The others give at most what broadcasting gives."""

NOT_FOLDED = (
    "If",
    "Loop",
    "Scan",
    "SequenceMap",
    "StringNormalizer",
    "TfIdfVectorizer",
    "RandomNormal",
    "RandomUniform",
    "Bernoulli",
)

DOMAINS = ("", "ai.onnx")


class Built(NamedTuple):
    """A Keras model of float32 (batch, height, width, channels) that ends in logits, and each tensor of the graph in it, by name.

    `cut` is what was removed from its end: "Softmax", "LogSoftmax", "Sigmoid", or "". `channels_first` is how the file reads images.
    `macs` counts the multiply-accumulates of one image.
    """

    model: "keras.Model"
    values: Mapping[str, Value]
    cut: str
    channels_first: bool
    macs: int

    def given(self, images: np.ndarray) -> np.ndarray:
        """Return images (n, height, width, channels) as the file reads them."""
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.channels_first else images

    def finished(self, logits: np.ndarray) -> np.ndarray:
        """Return the file's outputs for logits, float32 (n, num_classes), with what was removed from its end."""
        if not self.cut:
            return logits
        scores = tf.nn.softmax(logits).numpy()
        if self.cut == "Sigmoid":
            return scores[:, 1:]
        return np.log(scores) if self.cut == "LogSoftmax" else scores


def read_onnx(path: Path) -> "onnx.ModelProto":
    """Read a file and the values next to it; ExportError if it is not ONNX, is too large, or keeps values in another folder."""
    import onnx

    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise too_large(path, size)
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - protobuf's own errors differ by its implementation
        raise ExportError(
            f"{path} is not an ONNX file, or is cut short ({first_line(error)}). Export it again."
        ) from None
    if not model.graph.node or not model.graph.output:
        raise ExportError(f"{path} is not an ONNX file: it holds no graph. Export the model again.")
    left = LARGEST_BYTES - size
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            left -= load_external(tensor, path)
            if left < 0:
                raise too_large(path, LARGEST_BYTES - left)
    return model


def too_large(path: Path, size: int) -> ExportError:
    return ExportError(
        f"{path} with its values takes {size / 2**20:,.0f} MiB, expected at most {LARGEST_BYTES // 2**20}: no board runs a larger one."
    )


def tensors_of(model: "onnx.ModelProto") -> Iterable["onnx.TensorProto"]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def load_external(tensor: "onnx.TensorProto", path: Path) -> int:
    """Read a tensor's values from the file that it names, in the model's folder, and return their number of bytes."""
    import onnx

    entry = {item.key: item.value for item in tensor.external_data}
    name = entry.get("location", "")
    where = path.parent / name
    problem = f"{path}: the values of {tensor.name!r} are in {name!r}"
    if not name or name != os.path.basename(name) or name in (".", ".."):
        raise ExportError(f"{problem}, expected a file in the model's folder. Export the model again, into one folder.")
    count = math.prod(tensor.dims) * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ExportError(
            f"{problem}, which cannot be opened ({error.strerror}). Put it next to the model; links are not followed."
        ) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or count > LARGEST_BYTES:
            raise ExportError(f"{problem}, which is not a file of at most {LARGEST_BYTES // 2**20} MiB.")
        try:
            start, length = int(entry.get("offset", 0)), int(entry.get("length", count))
            file.seek(start)
            data = file.read(count) if length == count else b""
        except (ValueError, OverflowError, OSError):
            data = b""
    if len(data) != count:
        raise ExportError(f"{problem}, which is too short for its shape {tuple(tensor.dims)}. Copy the file again.")
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = data
    return count


Reading = tuple[np.ndarray, np.ndarray]
"""A factor and an offset per channel: the file reads factor * x + offset."""


def build(
    model: "onnx.ModelProto", where: str, size: tuple[int, int] | None = None, reading: Reading | None = None
) -> Built:
    """Build the Keras model of a classifier; `size` is the (height, width) of an input that leaves them open.

    With `reading`, a first depthwise layer gives the network what the file reads. Layers are named after the nodes.

    Raises:
        ExportError: names everything that is not supported at once, before anything is built.
    """
    opset = require_supported(model, where)
    constants = {tensor.name: array(tensor, where) for tensor in model.graph.initializer}
    name, shape, axes = entry_of(model, constants, where, size)
    inputs = keras.Input([shape[axis] for axis in axes])
    values: dict[str, Any] = dict(constants)
    first = inputs if reading is None else read_by(inputs, *reading)
    values[name] = Value(first, axes, tuple(shape))
    try:
        macs = walk(model, opset, values)
        tensor, cut = logits(model, values)
        made = keras.Model(inputs, tensor)
    except ExportError as error:
        raise ExportError(f"{where}: {error}") from None
    except RecursionError:  # Keras visits a model's layers by recursion
        raise ExportError(f"{where} has too many layers, one behind the other. No board runs such a network.") from None
    built = {key: value for key, value in values.items() if isinstance(value, Value)}
    return Built(made, built, cut, channels_first=axes[2] == 1, macs=macs)


def conversion(read: tuple[Any, Any], given: tuple[float, int]) -> Reading:
    """Return the factor and the offset, per channel or one for all, that turn what a pixel is in the `given` range into the range that a
    model `read`.

    Each range is S and Z, single values or one per channel: the model reads S * (pixel - 128 - Z).
    """
    (scale, zero_point), (new_scale, new_zero_point) = (tuple(map(np.float32, pair)) for pair in (read, given))
    return np.asarray(scale / new_scale), np.asarray(scale * (new_zero_point - zero_point))


def read_by(inputs: Any, factor: np.ndarray, offset: np.ndarray) -> Any:
    layer = keras.layers.DepthwiseConv2D(1, name="input_range")
    result = layer(inputs)
    channels = inputs.shape[3]
    layer.set_weights(
        [np.resize(factor, (1, 1, channels, 1)).astype(np.float32), np.resize(offset, channels).astype(np.float32)]
    )
    return result


def name_layers(results: Iterable[Value], name: str, taken: set[str]) -> None:
    """Name the layers that made a node's outputs after the node, unless they are named already."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_.")
    plain = f"node_{plain}" if plain == plain.lower() and not plain.startswith("node_") else plain  # unlike Keras's own
    for result in results:
        layer = result.tensor._keras_history.layer
        if plain and plain not in taken and layer.name not in taken and not isinstance(layer, keras.layers.InputLayer):
            layer._name = plain
            taken.add(plain)


def require_supported(model: "onnx.ModelProto", where: str) -> int:
    """Return the version of the operators; ExportError with all nodes that are not supported."""
    import onnx

    versions = {item.domain: item.version for item in model.opset_import}
    opset = max((versions.get(domain, 0) for domain in DOMAINS), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise ExportError(f"{where} uses opset {opset}, expected {FIRST_OPSET} to {newest}. Export it with opset 17.")
    if len(model.graph.node) > MOST_NODES:
        raise ExportError(f"{where} has {len(model.graph.node):,} nodes, expected at most {MOST_NODES:,}.")
    if model.functions:
        raise ExportError(
            f"{where} has {len(model.functions)} functions of its own. Export it with its functions inlined."
        )
    if model.graph.sparse_initializer:
        raise ExportError(f"{where} has sparse weights, which are not supported. Export it with dense ones.")
    known = {tensor.name for tensor in model.graph.initializer}
    unknown: dict[str, list[str]] = {}
    built = 0
    for node in model.graph.node:
        constant = node.op_type == "Shape" or all(name in known or not name for name in node.input)
        own = node.domain in DOMAINS
        if own and constant and node.op_type not in NOT_FOLDED:
            known.update(node.output)
            continue
        built += 1
        if not own or node.op_type not in OPERATORS:
            full = f"{node.domain}.{node.op_type}" if node.domain not in DOMAINS else node.op_type
            unknown.setdefault(full, []).append(node.name or (node.output[0] if node.output else ""))
    if built > MOST_LAYERS:
        raise ExportError(f"{where} has {built:,} nodes that depend on the image, expected at most {MOST_LAYERS:,}.")
    if unknown:
        named = "; ".join(
            f"{len(nodes)} {kind} ({', '.join(map(repr, nodes[:SHOWN]))}{', …' if len(nodes) > SHOWN else ''})"
            for kind, nodes in sorted(unknown.items())
        )
        advice = (
            "It is quantized already. Import its float model, and edgecnn quantizes that, or name that as --reference."
            if any("QuantizeLinear" in kind or "Integer" in kind or "QLinear" in kind for kind in unknown)
            else "edgecnn cannot build them; use a network without them."
        )
        raise ExportError(f"{where} has operators that are not supported: {named}.\n{advice}")
    return opset


def array(tensor: "onnx.TensorProto", where: str) -> np.ndarray:
    import onnx

    kinds = onnx.TensorProto
    if tensor.data_type in (kinds.FLOAT16, kinds.BFLOAT16):
        raise ExportError(
            f"{where}: {tensor.name!r} is {kinds.DataType.Name(tensor.data_type)}. Export the model in float32."
        )
    if math.prod(tensor.dims) > MOST_ELEMENTS or min(tensor.dims, default=0) < 0:
        raise ExportError(f"{where}: {tensor.name!r} has the shape {tuple(tensor.dims)}, which is too large.")
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"{where}: {tensor.name!r} is damaged ({first_line(error)}). Export the model again."
        ) from None
    if values.dtype.kind == "f" and not np.isfinite(values).all() and values.size > 1:
        raise ExportError(f"{where}: {tensor.name!r} holds values that are not numbers. Train the model again.")
    return values


def entry_of(
    model: "onnx.ModelProto", constants: Mapping[str, Any], where: str, size: tuple[int, int] | None
) -> tuple[str, list[int], tuple[int, int, int]]:
    """Return the only input's name, its shape for a batch of one,
    and its axes (height, width, channels); ExportError if it is not an image."""
    import onnx

    entries = [item for item in model.graph.input if item.name not in constants]
    if len(entries) != 1 or len(model.graph.output) != 1:
        raise ExportError(
            f"{where} has {len(entries)} inputs and {len(model.graph.output)} outputs, expected one image and one vector of logits. "
            "A detector, or a network with several heads, is not a classifier."
        )
    kind = entries[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        read = onnx.TensorProto.DataType.Name(kind.elem_type).lower() if kind.elem_type else "no tensor"
        raise ExportError(
            f"{where} reads {read}, expected float pixels. Export it in float32, without a cast at its beginning."
        )
    shape = [item.dim_value if item.HasField("dim_value") else 0 for item in kind.shape.dim]
    if len(shape) != 4:
        raise ExportError(
            f"{where} reads a tensor of {len(shape)} axes, expected an image: batch, channels, height, width."
        )
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    if not last and shape[1] not in (1, 3):
        raise ExportError(
            f"{where} reads {shape[1] or 'an open number of'} channels, expected 1 or 3. Export it with a fixed number."
        )
    places = (1, 2) if last else (2, 3)
    if size and all(shape[place] in (0, side) for place, side in zip(places, size, strict=True)):
        for place, side in zip(places, size, strict=True):
            shape[place] = side
    elif size:
        fixed = "x".join(str(shape[place]) for place in places)
        raise ExportError(f"{where} reads images of {fixed}, not {size[0]}x{size[1]}. Leave --size out.")
    if max(shape[place] for place in places) > LARGEST_SIDE:
        raise ExportError(
            f"{where} reads images of more than {LARGEST_SIDE:,} pixels on a side, which no board classifies in time."
        )
    if not all(shape[place] > 0 for place in places):
        raise ExportError(
            f"{where} leaves its image's height or width open. Give them with --size, such as --size 224."
        )
    return entries[0].name, [1, *shape[1:]], (*places, 3 if last else 1)


def walk(model: "onnx.ModelProto", opset: int, values: dict[str, Any]) -> int:
    """Compute each node's outputs, constants by onnx's reference and the others as Keras tensors, into `values`. Returns the MACs."""
    import onnx

    elements = computed = macs = 0
    taken = {"input_range"}
    for node in model.graph.node:
        missing = [name for name in node.input if name and name not in values]
        if missing:
            raise ExportError(f"{node.op_type} {node.name!r} reads {missing[0]!r}, which no earlier node computes.")
        inputs = [values[name] if name else None for name in node.input]
        name = node.name or node.output[0]
        if node.op_type == "Shape" and isinstance(inputs[0], Value):
            ends = {item.name: item.i for item in node.attribute}
            shape = inputs[0].shape[slice(ends.get("start"), ends.get("end"))]
            results: list[Any] = [np.array(shape, np.int64)]
        elif not any(isinstance(item, Value) for item in inputs):
            results = folded(node, inputs, opset)
            computed += sum(np.size(item) for item in results)
            if computed > MOST_COMPUTED:
                raise ExportError(
                    f"{node.op_type} {name!r}: the constants up to here have {computed:,} elements, too many."
                )
        else:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            outputs = sum(1 for one in node.output if one)
            try:
                made = OPERATORS[node.op_type](Node(node.op_type, name, inputs, attributes, opset, outputs))
            except ExportError:
                raise
            except (
                ValueError,
                TypeError,
                KeyError,
                IndexError,
                AssertionError,
                AttributeError,
                tf.errors.OpError,
            ) as error:
                raise ExportError(f"{node.op_type} {name!r} cannot be built: {first_line(error)}") from error
            results = [made] if isinstance(made, Value) else list(made)
            name_layers(results, name, taken)
            sizes = [math.prod(item.shape) for item in results]
            macs += macs_of(results[0])
            if macs > MOST_MACS:
                raise ExportError(
                    f"{node.op_type} {name!r}: an image takes {macs:.1e} multiply-accumulates up to here, expected at most {MOST_MACS:.0e}."
                )
            elements += sum(sizes)
            if max(sizes) > MOST_PIXELS[0] or elements > MOST_PIXELS[1]:
                raise ExportError(
                    f"{node.op_type} {name!r} makes a tensor of {max(sizes):,} elements, {elements:,} with those before it, expected "
                    f"at most {MOST_PIXELS[0]:,} and {MOST_PIXELS[1]:,}."
                )
        values.update(zip(node.output, results, strict=False))
    return macs


def macs_of(value: Value) -> int:
    """Return the multiply-accumulates of the layer that made a value."""
    layer = value.tensor._keras_history.layer
    kernel = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None))
    return math.prod(kernel.shape) * math.prod(layer.output.shape[1:-1]) if kernel is not None else 0


def folded(node: "onnx.NodeProto", inputs: list[Any], opset: int) -> list[np.ndarray]:
    """Return the outputs of a node that reads constants only."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    arrays = [item for item in inputs if item is not None]
    if expected_elements(node, arrays) > MOST_COMPUTED:
        raise ExportError(f"{node.op_type} {node.name!r} makes a constant that is too large.")
    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
    )
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(single).run(None, dict(zip(names, arrays, strict=True))))
    except Exception as error:  # noqa: BLE001 - the reference raises whatever numpy does
        raise ExportError(f"{node.op_type} {node.name!r} cannot be computed: {first_line(error)}") from None


def expected_elements(node: "onnx.NodeProto", arrays: list[np.ndarray]) -> float:
    """Return about how many elements a node's result has."""
    if node.op_type not in GROWING:
        ranks = max((item.ndim for item in arrays), default=0)
        shapes = [(1,) * (ranks - item.ndim) + item.shape for item in arrays]
        return math.prod(max(sizes) for sizes in zip(*shapes, strict=True)) if shapes else 0
    numbers = [
        float(number) for item in arrays if item.dtype.kind in "iuf" and item.size <= 16 for number in item.ravel()
    ]
    return math.prod(max(1.0, abs(number)) for number in numbers) * max((item.size for item in arrays), default=1)


def logits(model: "onnx.ModelProto", values: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the logits (batch, num_classes), and the operator that was removed after them, or ""."""
    value = values.get(model.graph.output[0].name)
    if not isinstance(value, Value):
        raise ExportError("its output does not depend on the image.")
    wide = [size for size in value.shape if size > 1]
    if len(wide) > 1 or (len(value.shape) == 4 and value.shape[1] != math.prod(value.shape)):
        raise ExportError(f"its output has the shape {value.shape}, expected one logit per class.")
    kind = value.made[0] if value.made[:1] in (("Softmax",), ("LogSoftmax",), ("Sigmoid",)) else ""
    value = value.made[1] if kind else value
    value = reshaped(value, (1, math.prod(value.shape)))
    if kind == "Sigmoid" and value.shape[1] > 1:
        raise ExportError(
            f"it ends in {value.shape[1]} sigmoids: several labels per image are not supported yet, expected a softmax or logits."
        )
    if value.shape[1] == 1:
        if kind != "Sigmoid":
            raise ExportError("it has one output without a sigmoid, as a regression has, expected one logit per class.")
        tensor = stored(value, (1,))
        layer = keras.layers.Dense(2, use_bias=False)
        result = layer(tensor)
        layer.set_weights([np.array([[-0.5, 0.5]], np.float32)])  # softmax of (-z / 2, z / 2) is sigmoid(z)
        return result, kind
    return stored(value, (1,)), kind
