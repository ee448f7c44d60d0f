"""Tensors of an ONNX graph inside a Keras model, and the operators that only change how one is read.

ONNX's classifiers store channels first, TensorFlow's kernels read them last. A `Value` knows the order of its axes, and a tensor is
transposed only if an operator needs another order.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.networks.keras import keras, tf


class Value(NamedTuple):
    """A float tensor for one image: `shape` is its ONNX shape for a batch of one.

    `tensor` has the batch first, then the ONNX axes `axes`. Axes of size 1 need not be stored. If `scrambled` is set, a tensor of one axis
    holds the ONNX element `scrambled[i]` at position i. `made` is the operator that computed it and what it read, for patterns of several
    operators. `positive` is whether no element is below 0.
    """

    tensor: Any
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    scrambled: np.ndarray | None = None
    made: tuple[Any, ...] = ()
    positive: bool = False

    def axis(self, number: int) -> int:
        """Return the position of an ONNX axis in the tensor; ValueError if it is not stored."""
        return 1 + self.axes.index(number)


Outputs = Value | Sequence[Value]


class Node(NamedTuple):
    """A node: its `inputs` (None if one is left out), its attributes, and the version of ONNX's operators."""

    op: str
    name: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int

    def setting(self, name: str, index: int, default: Any = None) -> Any:
        """Return a setting that is an attribute in older versions and the constant input `index` in newer ones."""
        if name in self.attributes:
            return self.attributes[name]
        given = self.inputs[index] if index < len(self.inputs) else None
        if given is None:
            return default
        if isinstance(given, Value):
            raise ExportError(f"{self.op} {self.name!r} computes its {name} from the image, expected a constant.")
        return given.tolist()

    def weights(self, index: int) -> np.ndarray:
        given = self.inputs[index]
        if not isinstance(given, np.ndarray):
            raise ExportError(f"{self.op} {self.name!r} computes its weights from the image, expected constants.")
        return np.asarray(given, np.float32)

    @property
    def value(self) -> Value:
        given = self.inputs[0]
        if not isinstance(given, Value):
            raise ExportError(f"{self.op} {self.name!r} reads a constant, expected a tensor that depends on the image.")
        return given


def unscrambled(value: Value) -> Value:
    if value.scrambled is None:
        return value
    order = np.argsort(value.scrambled)
    return value._replace(tensor=tf.gather(value.tensor, order, axis=1), scrambled=None)


def stored(value: Value, axes: Sequence[int]) -> Any:
    """Return the tensor with exactly these ONNX axes after the batch, in this order. Axes that are left out must have size 1."""
    value = unscrambled(value)
    wide = [axis for axis in axes if value.shape[axis] > 1]
    here = [axis for axis in value.axes if value.shape[axis] > 1]
    assert sorted(wide) == sorted(here), (axes, value)
    tensor = value.tensor
    if wide != here:
        tensor = resized(tensor, [value.shape[axis] for axis in here])
        tensor = tf.transpose(tensor, [0, *(1 + here.index(axis) for axis in wide)])
    return resized(tensor, [value.shape[axis] for axis in axes])


def resized(tensor: Any, sizes: Sequence[int]) -> Any:
    """Return a tensor with other axes after the batch. keras.layers.Reshape would compute the batch's size at run time."""
    if list(tensor.shape[1:]) == list(sizes):
        return tensor
    return keras.layers.Flatten()(tensor) if len(sizes) == 1 else tf.reshape(tensor, (-1, *sizes))


def image(value: Value) -> Any:
    """Return a tensor (batch, height, width, channels) of an ONNX tensor (1, channels, height, width)."""
    return stored(value, (2, 3, 1))


def of_image(tensor: Any, positive: bool = False) -> Value:
    _, height, width, channels = tensor.shape
    return Value(tensor, (2, 3, 1), (1, channels, height, width), positive=positive)


def transposed(value: Value, order: Sequence[int]) -> Value:
    value = unscrambled(value)
    places = {axis: place for place, axis in enumerate(order)}
    return Value(value.tensor, tuple(places[axis] for axis in value.axes), tuple(value.shape[axis] for axis in order))


def wide_axes(shape: Sequence[int]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if size > 1]


def groups_of(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the axes of two shapes with as many elements in the smallest groups that have as many elements; without axes of size 1."""
    groups: list[tuple[list[int], list[int]]] = []
    left, right = wide_axes(old), wide_axes(new)
    while left or right:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        while (here := math.prod(old[axis] for axis in mine)) != (there := math.prod(new[axis] for axis in theirs)):
            if here < there:
                mine.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        groups.append((mine, theirs))
    return groups


def reshaped(value: Value, shape: Sequence[int]) -> Value:
    """Return a value in another ONNX shape with as many elements. It is transposed only if axes that do not follow each other merge."""
    shape = tuple(shape)
    if len(wide_axes(shape)) == 1 and value.scrambled is not None:
        return value._replace(axes=tuple(wide_axes(shape)), shape=shape, made=())
    if len(wide_axes(shape)) == 1 and len(wide_axes(value.shape)) > 1:
        return flat(value, shape)
    value = unscrambled(value)
    groups = groups_of(value.shape, shape)
    here = [axis for axis in value.axes if value.shape[axis] > 1]
    groups.sort(key=lambda group: min(here.index(axis) for axis in group[0]))
    tensor = stored(value, [axis for mine, _ in groups for axis in mine])
    axes = [axis for _, theirs in groups for axis in theirs]
    return Value(resized(tensor, [shape[axis] for axis in axes]), tuple(axes), shape)


def flat(value: Value, shape: tuple[int, ...]) -> Value:
    """Return all elements on one axis, in the order in which they are stored: the next dense layer's weights follow that order."""
    here = [axis for axis in value.axes if value.shape[axis] > 1]
    count = math.prod(value.shape)
    numbers = np.arange(count).reshape([value.shape[axis] for axis in sorted(here)])
    order = numbers.transpose([sorted(here).index(axis) for axis in here]).ravel()
    tensor = resized(value.tensor, [count])
    same = bool((order == np.arange(count)).all())
    return Value(tensor, tuple(wide_axes(shape)), shape, None if same else order)


def of_rank(value: Value, rank: int) -> Value:
    """Return a value with leading axes of size 1, as ONNX broadcasts."""
    more = rank - len(value.shape)
    return value._replace(axes=tuple(axis + more for axis in value.axes), shape=(*[1] * more, *value.shape))


def constant_along(array: np.ndarray, axes: Sequence[int], rank: int) -> np.ndarray:
    """Return an array with these ONNX axes of a tensor of this rank, to broadcast against a tensor stored so."""
    array = array.reshape((*[1] * (rank - array.ndim), *array.shape))
    kept = [axis for axis in range(rank) if axis in axes]
    assert all(array.shape[axis] == 1 for axis in range(rank) if axis not in axes)
    array = array.reshape([array.shape[axis] for axis in kept])
    return array.transpose([kept.index(axis) for axis in axes])


def aligned(one: Any, other: Any) -> tuple[Any, Any, tuple[int, ...], tuple[int, ...]]:
    """Return two operands, values or arrays, so that they broadcast, and the axes and the ONNX shape of the result."""
    rank = max(len(one.shape), len(other.shape))
    first, second = (of_rank(item, rank) if isinstance(item, Value) else item for item in (one, other))
    shapes = [(*[1] * (rank - len(item.shape)), *item.shape) for item in (first, second)]
    shape = tuple(int(size) for size in np.broadcast_shapes(*shapes))
    leading = max((item for item in (first, second) if isinstance(item, Value)), key=lambda item: math.prod(item.shape))
    # as the larger one stores them, with its axes of size 1, such as those of a 1x1 image
    axes = [*(axis for axis in wide_axes(shape) if axis not in leading.axes), *leading.axes]
    operands = [
        stored(item, axes) if isinstance(item, Value) else constant_along(np.asarray(item), axes, rank)
        for item in (first, second)
    ]
    return operands[0], operands[1], tuple(axes), shape


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
