"""Does the Keras model built from an ONNX file answer as ONNX Runtime does? Otherwise names the first node that differs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError, first_line
from edgecnn.networks.keras import keras
from edgecnn.networks.onnx_model import Built
from edgecnn.networks.onnx_values import unscrambled
from edgecnn.networks.predict import images_at_once

if TYPE_CHECKING:
    import onnx
    import onnxruntime

BOUND = 1e-3
"""Largest difference of two logits, relative to the largest logit of all images. Float32 sums in another order differ by 1e-6 to 1e-5; a
wrong padding, axis or constant by more than 1e-2. An int8 logit's step is about 8e-3."""

BATCH, LOOKED_AT = 32, 2  # images at once, and to find the node


def require_same(
    built: Built,
    model: "onnx.ModelProto",
    where: str,
    images: np.ndarray,
    real: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> float:
    """Return the largest difference of a logit from ONNX Runtime's, relative to the largest logit.

    `real` turns some of the images (n, height, width, channels) into what the model reads, float32.

    Raises:
        ExportError: if it is above BOUND or an output is not a number; the message names the first node that differs.
    """
    session, size = opened(model, where), min(BATCH, images_at_once(built.model, images.shape))
    parts = []
    for start in range(0, len(images), size):
        part = real(images[start : start + size])
        mine = built.finished(built.model(part, training=False).numpy())
        parts.append(
            (mine, run(session, built.given(part), [model.graph.output[0].name], where)[0].reshape(mine.shape))
        )
    ours, theirs = (np.concatenate(one) for one in zip(*parts, strict=True))
    if not np.isfinite(theirs).all():
        raise ExportError(
            f"{where} gives outputs that are not numbers for these images. Train it again, or check its input range."
        )
    difference = relative_difference(ours, theirs)
    if not difference <= BOUND:
        raise ExportError(
            f"{where}: the network built from it differs from ONNX Runtime by {difference:.2g} of the largest output, at most {BOUND:g} "
            f"is expected.{first_different(built, model, where, real(images[:LOOKED_AT]))} Please report this, with the file if you can."
        )
    return difference


def opened(model: "onnx.ModelProto", where: str) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with refused(where):
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", images: np.ndarray, names: list[str], where: str) -> list[np.ndarray]:
    """Return ONNX Runtime's outputs for each image, with a batch of one: files with a fixed batch have that one."""
    with refused(where):
        name = session.get_inputs()[0].name
        found = [session.run(names, {name: image[None]}) for image in images]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@contextlib.contextmanager
def refused(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors are of its own classes
        raise ExportError(f"ONNX Runtime cannot run {where}: {first_line(error)}. Export it again.") from None


def first_different(built: Built, model: "onnx.ModelProto", where: str, images: np.ndarray) -> str:
    """Return a sentence that names the first node whose output differs."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    nodes = [
        (node, name)
        for node in model.graph.node
        for name in node.output
        if name in built.values and keras.backend.is_keras_tensor(built.values[name].tensor)
    ]
    present = {item.name for item in shown.graph.output}
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, 1, None) for _, name in nodes if name not in present
    )
    tensors = [unscrambled(built.values[name]) for _, name in nodes]
    ours = keras.Model(built.model.inputs, [value.tensor for value in tensors])(images, training=False)
    theirs = run(opened(shown, where), built.given(images[:1]), [name for _, name in nodes], where)
    for (node, _), value, mine, other in zip(nodes, tensors, ours, theirs, strict=True):
        if relative_difference(in_onnx_order(mine.numpy()[:1], value), other) > BOUND:
            return f" The first node that differs is {node.op_type} {node.name or node.output[0]!r}."
    return ""


def in_onnx_order(array: np.ndarray, value: Any) -> np.ndarray:
    """Return a stored tensor of one image, (1, …), in its ONNX shape."""
    axes = [axis for axis in value.axes if value.shape[axis] > 1]
    sizes = array.reshape([value.shape[axis] for axis in axes])
    return sizes.transpose([axes.index(axis) for axis in sorted(axes)]).reshape(value.shape)


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the largest value of the other; infinite if the sizes differ."""
    if one.size != other.size:
        return np.inf
    return float(np.abs(one.ravel() - other.ravel()).max() / max(float(np.abs(other).max()), 1e-6))
