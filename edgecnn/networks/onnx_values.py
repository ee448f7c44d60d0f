"""Tensors of an ONNX graph inside a Keras model: their axes may be stored in another order, so that a transpose costs nothing.

ONNX's classifiers store channels first, TensorFlow's kernels read them last. A `Value` knows the order of its axes, and a tensor is
transposed only if an operator needs another order.
"""

import math
from collections.abc import Mapping, Sequence
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
