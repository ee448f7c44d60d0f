"""ONNX operators that move, cut or join axes: most only change how a `Value` is read."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.onnx_values import (
    Node,
    Outputs,
    Value,
    aligned,
    image,
    of_image,
    reshaped,
    stored,
    transposed,
    unscrambled,
)

layers = keras.layers

MOST = 2**24  # elements of an expanded tensor


def reshape(node: Node) -> Outputs:
    value = node.value
    target = [int(size) for size in node.setting("shape", 1)]
    if not node.attributes.get("allowzero", 0):
        target = [value.shape[place] if size == 0 else size for place, size in enumerate(target)]
    return reshaped(value, whole_shape(target, math.prod(value.shape), node))


def whole_shape(target: Sequence[int], count: int, node: Node) -> list[int]:
    """Return a shape with its -1 replaced; ExportError if it does not hold `count` elements."""
    known = math.prod(size for size in target if size != -1)
    if target.count(-1) == 1 and known > 0 and count % known == 0:
        target = [count // known if size == -1 else size for size in target]
    if -1 in target or math.prod(target) != count:
        raise ExportError(
            f"{node.op} {node.name!r} makes {list(target)} of {count} elements: it is exported for another batch or image size. "
            "Export it with a batch of 1 at the size that it will see."
        )
    return list(target)


def flatten(node: Node) -> Outputs:
    shape = node.value.shape
    axis = node.attributes.get("axis", 1) % (len(shape) + 1)
    return reshaped(node.value, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def squeeze(node: Node) -> Outputs:
    shape, axes = node.value.shape, node.setting("axes", 1)
    gone = (
        {axis % len(shape) for axis in axes} if axes is not None else {i for i, size in enumerate(shape) if size == 1}
    )
    return reshaped(node.value, [size for axis, size in enumerate(shape) if axis not in gone])


def unsqueeze(node: Node) -> Outputs:
    shape, axes = list(node.value.shape), node.setting("axes", 1)
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return reshaped(node.value, shape)


def transpose(node: Node) -> Outputs:
    rank = len(node.value.shape)
    return transposed(node.value, node.attributes.get("perm", range(rank)[::-1]))


def concat(node: Node) -> Outputs:
    values = [item for item in node.inputs if isinstance(item, Value)]
    rank = len(values[0].shape)
    axis = node.attributes["axis"] % rank
    leading = max(values, key=lambda value: math.prod(value.shape))
    wide = {place for item in node.inputs for place, size in enumerate(item.shape) if size > 1} | {axis}
    axes = [place for place in leading.axes if place in wide or leading.scrambled is None]
    axes = [*(place for place in sorted(wide) if place not in axes), *axes]
    tensors = []
    for item in node.inputs:
        if isinstance(item, Value):
            tensors.append(stored(item, axes))
        else:
            array = np.asarray(item, np.float32).transpose([*(p for p in range(rank) if p not in axes), *axes])
            array = array.reshape([item.shape[place] for place in axes])
            first = tf.reshape(stored(values[0], axes), (-1, math.prod(values[0].shape)))[:, :1]
            tensors.append(tf.reshape(first * 0.0 + array.reshape(1, -1), (-1, *array.shape)))
    shape = list(leading.shape)
    shape[axis] = sum(item.shape[axis] for item in node.inputs)
    result = layers.Concatenate(1 + axes.index(axis))(tensors) if len(tensors) > 1 else tensors[0]
    return Value(result, tuple(axes), tuple(shape))


def sliced(value: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """Return a part of one axis; `start` and `stop` count from its beginning."""
    shape = list(value.shape)
    shape[axis] = len(range(start, stop, step))
    if not shape[axis]:
        raise ExportError("a slice of the graph is empty, expected at least one element.")
    if axis not in value.axes:
        return value
    value = unscrambled(value)
    place: list[Any] = [slice(None)] * (1 + len(value.axes))
    place[value.axis(axis)] = slice(start, None if stop < 0 else stop, step)
    return Value(value.tensor[tuple(place)], value.axes, tuple(shape))


def slice_(node: Node) -> Outputs:
    starts, stops = node.setting("starts", 1), node.setting("ends", 2)
    axes = node.setting("axes", 3, range(len(starts)))
    steps = node.setting("steps", 4, [1] * len(starts))
    value = node.value
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        axis %= len(value.shape)
        begin, end, step = slice(start, stop, step).indices(value.shape[axis])
        value = sliced(value, axis, begin, end, step)
    return value


def split(node: Node) -> Outputs:
    value = node.value
    axis = node.attributes.get("axis", 0) % len(value.shape)
    sizes = node.setting("split", 1)
    if sizes is None:
        each_size = math.ceil(value.shape[axis] / node.outputs)
        sizes = [min(each_size, value.shape[axis] - start) for start in range(0, value.shape[axis], each_size)]
    ends = np.cumsum([0, *sizes]).tolist()
    return [sliced(value, axis, start, stop) for start, stop in itertools.pairwise(ends)]


def gather(node: Node) -> Outputs:
    value, chosen = unscrambled(node.value), node.inputs[1]
    axis = node.attributes.get("axis", 0) % len(value.shape)
    if not isinstance(chosen, np.ndarray):
        raise ExportError(f"Gather {node.name!r} computes its indices from the image, expected constants.")
    if chosen.ndim == 0:
        number = int(chosen) % value.shape[axis]
        part = sliced(value, axis, number, number + 1)
        return reshaped(part, [size for place, size in enumerate(value.shape) if place != axis])
    indices = [int(one) % value.shape[axis] for one in chosen.ravel()]
    shape = (*value.shape[:axis], len(indices), *value.shape[axis + 1 :])
    whole = (*value.shape[:axis], *chosen.shape, *value.shape[axis + 1 :])
    if indices == list(range(value.shape[axis])):
        return reshaped(value, whole)
    if axis not in value.axes:
        raise ExportError(f"Gather {node.name!r} repeats an axis of size 1, which is not supported.")
    taken = Value(tf.gather(value.tensor, indices, axis=value.axis(axis)), value.axes, shape)
    return taken if chosen.ndim == 1 else reshaped(taken, whole)


def pad(node: Node) -> Outputs:
    value, pads = unscrambled(node.value), node.setting("pads", 1)
    axes = node.setting("axes", 3, range(len(value.shape)))
    rank = len(axes)
    amounts = {axis % len(value.shape): (pads[place], pads[place + rank]) for place, axis in enumerate(axes)}
    amounts = {axis: pair for axis, pair in amounts.items() if any(pair)}
    if not amounts:
        return value
    if any(number < 0 for pair in amounts.values() for number in pair):
        raise ExportError(f"Pad {node.name!r} removes pixels, which is not supported.")
    mode = node.attributes.get("mode", b"constant").decode()
    fill = node.setting("value", 2, 0.0) or 0.0
    shape = tuple(size + sum(amounts.get(axis, (0, 0))) for axis, size in enumerate(value.shape))
    if len(value.shape) == 4 and set(amounts) <= {2, 3} and mode == "constant" and fill == 0:
        tensor = layers.ZeroPadding2D((amounts.get(2, (0, 0)), amounts.get(3, (0, 0))))(image(value))
        return Value(tensor, (2, 3, 1), shape, positive=value.positive)
    axes = list(dict.fromkeys([*value.axes, *amounts]))
    paddings = [(0, 0), *(amounts.get(axis, (0, 0)) for axis in axes)]
    if mode not in ("constant", "reflect"):
        raise ExportError(f"Pad {node.name!r} has the mode {mode!r}, expected constant or reflect.")
    tensor = tf.pad(stored(value, axes), paddings, mode=mode.upper(), constant_values=fill)
    return Value(tensor, tuple(axes), shape)


def expand(node: Node) -> Outputs:
    value = unscrambled(node.value)
    target = [int(size) for size in node.setting("shape", 1)]
    if math.prod(target) > MOST:
        raise ExportError(f"Expand {node.name!r} makes {target}, which is too large.")
    rank = max(len(target), len(value.shape))
    now, then = ([*[1] * (rank - len(sizes)), *sizes] for sizes in (value.shape, target))
    more = [size if old == 1 else 1 for old, size in zip(now, then, strict=True)]
    if math.prod(more) == 1:
        return reshaped(value, now)
    tensor, ones, axes, shape = aligned(value, np.ones(more, np.float32))
    return Value(tensor * ones, axes, shape, positive=value.positive)


def resize(node: Node) -> Outputs:
    """Resize height and width: bilinear with half-pixel centres, or nearest by a whole factor. Parity is checked, as for all."""
    value = node.value
    scales = node.setting("scales", 1 if node.opset < 11 else 2)
    sizes = node.setting("sizes", 3) if node.opset > 10 else None
    target = [int(one) for one in sizes or [size * scale for size, scale in zip(value.shape, scales, strict=True)]]
    mode = node.attributes.get("mode", b"nearest").decode()
    place = node.attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    whole = all(new % old == 0 for new, old in zip(target, value.shape, strict=True))
    if len(target) != 4 or target[:2] != list(value.shape[:2]) or min(target) < 1 or math.prod(target) > MOST:
        raise ExportError(f"Resize {node.name!r} makes {target} of {value.shape}, expected another height and width.")
    linear = (
        mode == "linear" and place in ("half_pixel", "pytorch_half_pixel") and not node.attributes.get("antialias", 0)
    )
    if not linear and not (mode == "nearest" and whole):
        raise ExportError(
            f"Resize {node.name!r} is {mode} with {place}, expected linear with half_pixel, or nearest by a whole factor."
        )
    return of_image(tf.image.resize(image(value), target[2:], "bilinear" if linear else "nearest"), value.positive)


def reduce_l2(tensor: Any, axis: Sequence[int]) -> Any:
    return tf.sqrt(tf.reduce_sum(tensor * tensor, axis=axis))


def reduced(function: Callable[..., Any]) -> Callable[[Node], Outputs]:
    """Return the operator that reduces some axes, or all."""

    def apply(node: Node) -> Outputs:
        value = unscrambled(node.value)
        rank = len(value.shape)
        axes = node.setting("axes", 1)
        if axes is None and node.attributes.get("noop_with_empty_axes", 0):
            return value
        gone = sorted({axis % rank for axis in (axes if axes is not None else range(rank))})
        if function is tf.reduce_mean and rank == 4 and [axis for axis in gone if value.shape[axis] > 1] == [2, 3]:
            result = of_image(layers.GlobalAveragePooling2D(keepdims=True)(image(value)), value.positive)
        else:
            places = [value.axis(axis) for axis in gone if axis in value.axes]
            shape = tuple(1 if axis in gone else size for axis, size in enumerate(value.shape))
            if function is tf.reduce_mean and len(value.axes) == 3 and sorted(places) == [1, 2]:
                pooled = layers.GlobalAveragePooling2D(keepdims=True)(value.tensor)
                return squeezed(Value(pooled, value.axes, shape, positive=value.positive), gone, node)
            tensor = function(value.tensor, axis=places) if places or function is reduce_l2 else value.tensor
            result = Value(tensor, tuple(axis for axis in value.axes if axis not in gone), shape)
        return squeezed(result, gone, node)

    return apply


def squeezed(result: Value, gone: Sequence[int], node: Node) -> Value:
    """Return a reduced value with the axes that are gone, of size 1, or without them, as the node has it."""
    if node.attributes.get("keepdims", 1):
        return result
    return reshaped(result, [size for axis, size in enumerate(result.shape) if axis not in gone])
