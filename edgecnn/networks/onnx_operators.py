"""ONNX operators as Keras layers and TensorFlow operators, one function each.

A function gets a `Node` with its inputs, arrays for constants and `Value`s for the rest, and returns its outputs. It uses a layer if
quantization-aware training can wrap it, and the form that TFLite has one operator for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.onnx_values import (
    Node,
    Outputs,
    Value,
    aligned,
    concat,
    constant_along,
    expand,
    flatten,
    gather,
    image,
    of_image,
    pad,
    reduce_l2,
    reduced,
    reshape,
    resize,
    slice_,
    split,
    squeeze,
    stored,
    transpose,
    unscrambled,
    unsqueeze,
)

layers = keras.layers


def with_weights(layer: Any, tensor: Any, *arrays: np.ndarray) -> Any:
    result = layer(tensor)
    layer.set_weights([np.ascontiguousarray(array, np.float32) for array in arrays])
    return result


# -- windows: convolutions and pooling ------------------------------------------------------------------------------


class Window(NamedTuple):
    """The window of a convolution or pooling over (height, width): `before` and `after` are its padding."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def padded(self) -> bool:
        return any((*self.before, *self.after))


def window(node: Node, sides: Sequence[int], kernel: Sequence[int]) -> Window:
    """Return a node's window on an input of (height, width); ExportError if it is not two-dimensional."""
    if len(kernel) != 2 or len(sides) != 2:
        raise ExportError(f"{node.op} {node.name!r} has {len(kernel)} spatial axes, expected height and width.")
    strides = tuple(node.attributes.get("strides", (1, 1)))
    dilations = tuple(node.attributes.get("dilations", (1, 1)))
    pads = list(node.attributes.get("pads", (0, 0, 0, 0)))
    auto = node.attributes.get("auto_pad", b"NOTSET").decode()
    extent = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        less, more = same_padding(sides, strides, extent)
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    before, after = pads[:2], pads[2:]
    if node.attributes.get("ceil_mode", 0):
        for axis in range(2):
            free = sides[axis] + before[axis] + after[axis] - extent[axis]
            steps = math.ceil(free / strides[axis])
            if steps * strides[axis] >= sides[axis] + before[axis]:  # a window may not begin in the padding
                steps -= 1
            after[axis] = max(after[axis], steps * strides[axis] + extent[axis] - sides[axis] - before[axis])
    if min(*before, *after) < 0:
        raise ExportError(f"{node.op} {node.name!r} has negative padding {pads}, expected none below zero.")
    return Window(tuple(kernel), strides, dilations, tuple(before), tuple(after))  # type: ignore[arg-type]


def same_padding(
    sides: Sequence[int], strides: Sequence[int], extent: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return TensorFlow's "same" padding before and after each axis; `extent` is the window's, with its dilations."""
    missing = [
        max(0, (math.ceil(side / stride) - 1) * stride + one - side)
        for side, stride, one in zip(sides, strides, extent, strict=True)
    ]
    return tuple(one // 2 for one in missing), tuple(one - one // 2 for one in missing)


def same(one: Window, sides: Sequence[int]) -> bool:
    """Return whether a window's padding is that of TensorFlow's "same"."""
    extent = [(size - 1) * step + 1 for size, step in zip(one.kernel, one.dilations, strict=True)]
    return (one.before, one.after) == same_padding(sides, one.strides, extent)


def zero_padded(tensor: Any, one: Window) -> Any:
    return layers.ZeroPadding2D(tuple(zip(one.before, one.after, strict=True)))(tensor) if one.padded else tensor


def conv(node: Node) -> Outputs:
    tensor, kernel = image(node.value), node.weights(1)
    if kernel.ndim != 4:
        raise ExportError(f"Conv {node.name!r} has {kernel.ndim - 2} spatial axes, expected height and width.")
    groups = node.attributes.get("group", 1)
    sides, channels = tensor.shape[1:3], tensor.shape[3]
    one = window(node, sides, kernel.shape[2:])
    bias = node.weights(2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    fits = same(one, sides)
    if not fits:
        tensor = zero_padded(tensor, one)
    shared = {
        "strides": one.strides, "dilation_rate": one.dilations, "padding": "same" if fits else "valid",
        "use_bias": bias is not None,
    }  # fmt: skip
    weights = [] if bias is None else [bias]
    equal_strides = one.strides[0] == one.strides[1]
    if groups == channels > 1 and kernel.shape[1] == 1 and equal_strides:
        times = kernel.shape[0] // channels
        depthwise = kernel.reshape(channels, times, *one.kernel).transpose(2, 3, 0, 1)
        layer = layers.DepthwiseConv2D(one.kernel, depth_multiplier=times, **shared)
        return of_image(with_weights(layer, tensor, depthwise, *weights))
    layer = layers.Conv2D(kernel.shape[0], one.kernel, groups=groups, **shared)
    return of_image(with_weights(layer, tensor, kernel.transpose(2, 3, 1, 0), *weights))


def max_pool(node: Node) -> Outputs:
    if node.outputs > 1:
        raise ExportError(f"MaxPool {node.name!r} returns indices, which are not supported.")
    tensor = image(node.value)
    one = window(node, tensor.shape[1:3], node.attributes["kernel_shape"])
    if one.dilations != (1, 1):
        raise ExportError(f"MaxPool {node.name!r} has dilations, which are not supported.")
    fits = same(one, tensor.shape[1:3])
    if not fits and node.value.positive:
        tensor = zero_padded(tensor, one)
    elif not fits and one.padded:  # the mirrored pixels are in the same window as their originals, so the maximum stays
        if any(2 * pad > size for pad, size in zip((*one.before, *one.after), one.kernel * 2, strict=True)):
            raise ExportError(f"MaxPool {node.name!r} has more padding than half of its window.")
        pads = [[0, 0], *([before, after] for before, after in zip(one.before, one.after, strict=True)), [0, 0]]
        tensor = tf.pad(tensor, pads, mode="SYMMETRIC")
    pool = layers.MaxPooling2D(one.kernel, one.strides, "same" if fits else "valid")
    return of_image(pool(tensor), node.value.positive)


def average_pool(node: Node) -> Outputs:
    tensor = image(node.value)
    sides = tensor.shape[1:3]
    one = window(node, sides, node.attributes["kernel_shape"])
    if one.dilations != (1, 1):
        raise ExportError(f"AveragePool {node.name!r} has dilations, which are not supported.")
    pool, positive = layers.AveragePooling2D(one.kernel, one.strides, "valid"), node.value.positive
    if tuple(sides) == one.kernel and not one.padded:
        return of_image(layers.GlobalAveragePooling2D(keepdims=True)(tensor), positive)
    if not one.padded:
        return of_image(pool(tensor), positive)
    whole = node.attributes.get("count_include_pad", 0) and not node.attributes.get("ceil_mode", 0)
    if not whole and same(one, sides):
        return of_image(layers.AveragePooling2D(one.kernel, one.strides, "same")(tensor), positive)
    result = pool(zero_padded(tensor, one))
    if whole:
        return of_image(result, positive)
    if node.attributes.get("count_include_pad", 0):
        raise ExportError(f"AveragePool {node.name!r} counts its padding and has ceil_mode, which is not supported.")
    counts = pool(zero_padded(tf.ones((1, *sides, 1)), one)).numpy()
    return of_image(result * (1 / counts).astype(np.float32), positive)


def global_average_pool(node: Node) -> Outputs:
    return of_image(layers.GlobalAveragePooling2D(keepdims=True)(image(node.value)), node.value.positive)


def batch_normalization(node: Node) -> Outputs:
    scale, offset, mean, variance = (node.weights(index) for index in range(1, 5))
    layer = layers.BatchNormalization(epsilon=node.attributes.get("epsilon", 1e-5))
    if len(node.value.shape) == 4:
        return of_image(with_weights(layer, image(node.value), scale, offset, mean, variance))
    axes = [*(axis for axis in node.value.axes if axis != 1), 1]
    result = with_weights(layer, stored(node.value, axes), scale, offset, mean, variance)
    return Value(result, tuple(axes), node.value.shape)


# -- elementwise ----------------------------------------------------------------------------------------------------


def each(function: Callable[[Any], Any], made: str = "") -> Callable[[Node], Outputs]:
    """Return the operator that applies a function to each element."""

    def apply(node: Node) -> Outputs:
        value = node.value
        return value._replace(
            tensor=function(value.tensor), made=(made, value), positive=made in ("Sigmoid", "Exp", "Abs")
        )

    return apply


def relu(node: Node) -> Outputs:
    return node.value._replace(tensor=layers.ReLU()(node.value.tensor), made=("Relu", node.value), positive=True)


def clip(node: Node) -> Outputs:
    low, high = (node.setting(name, index) for name, index in (("min", 1), ("max", 2)))
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    value = node.value
    if low == 0:
        tensor = layers.ReLU(None if high == math.inf else float(high))(value.tensor)
        return value._replace(tensor=tensor, made=("Clip" if high != 6 else "Relu6", value), positive=True)
    return value._replace(tensor=tf.clip_by_value(value.tensor, low, high), made=(), positive=False)


def hard_sigmoid(node: Node) -> Outputs:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    value = node.value
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        tensor = layers.ReLU(6.0)(value.tensor + 3.0) * np.float32(1 / 6)
        return value._replace(tensor=tensor, made=("HardSigmoid", value), positive=True)
    return value._replace(tensor=tf.clip_by_value(value.tensor * alpha + beta, 0.0, 1.0), made=(), positive=False)


def hard_swish(value: Value) -> Value:
    x = value.tensor
    return value._replace(tensor=x * tf.nn.relu6(x + np.float32(3)) * np.float32(1 / 6), made=(), positive=False)


def leaky_relu(node: Node) -> Outputs:
    return each(lambda x: tf.nn.leaky_relu(x, node.attributes.get("alpha", 0.01)))(node)


def prelu(node: Node) -> Outputs:
    value, slope = node.value, node.weights(1)
    x, factor, axes, shape = aligned(value, slope)
    return Value(tf.nn.relu(x) - factor * tf.nn.relu(-x), axes, shape)


def gelu(node: Node) -> Outputs:
    rough = node.attributes.get("approximate", b"none") == b"tanh"
    return each(lambda x: tf.nn.gelu(x, approximate=rough))(node)


def single(given: Any) -> float | None:
    """Return the number of a constant of one element, else None."""
    return float(given.reshape(-1)[0]) if isinstance(given, np.ndarray) and given.size == 1 else None


def binary(function: Callable[[Any, Any], Any]) -> Callable[[Node], Outputs]:
    def apply(node: Node) -> Outputs:
        one, other = node.inputs[:2]
        pattern = PATTERNS.get(node.op)
        if pattern and (found := pattern(one, other)) is not None:
            return found
        number = single(other) if isinstance(one, Value) else single(one)
        if number is not None:  # a single number fits any order of axes
            value = one if isinstance(one, Value) else other
            if max(getattr(one, "ndim", 0), getattr(other, "ndim", 0)) <= len(value.shape):
                factors = (value.tensor, np.float32(number)) if value is one else (np.float32(number), value.tensor)
                known = value is one or node.op in ("Add", "Mul")
                return value._replace(
                    tensor=function(*factors), made=(node.op, value, number) if known else (), positive=False
                )
        first, second, axes, shape = aligned(one, other)
        both = isinstance(one, Value) and isinstance(other, Value)
        return Value(function(first, second), axes, shape, made=(node.op, one, other) if both else ())

    return apply


def add_tensors(one: Any, other: Any) -> Any:
    arrays = isinstance(one, (np.ndarray, np.generic)) or isinstance(other, (np.ndarray, np.generic))
    return tf.add(one, other) if arrays or one.shape != other.shape else layers.Add()([one, other])


def activation_of(one: Any, other: Any) -> Value | None:
    """Return x * hard_sigmoid(x) or GELU, which TFLite has one operator for each, if a product is one of them written out."""
    if not isinstance(one, Value):
        return None
    if not isinstance(other, Value):
        return halved_gelu(one) if single(other) == 0.5 else None
    for x, gate in ((one, other), (other, one)):
        if is_hard_sigmoid(gate, x):
            return hard_swish(x)
        halved = x.made[1] if x.made[:1] == ("Mul",) and x.made[2] == 0.5 else None
        if halved is not None and has_erf(gate, halved):
            return exact_gelu(halved)
        if gate.made[:1] == ("Mul",) and gate.made[2] == 0.5 and has_erf(gate.made[1], x):
            return exact_gelu(x)
    return None


def exact_gelu(x: Value) -> Value:
    return x._replace(tensor=tf.nn.gelu(x.tensor, approximate=False), made=(), positive=False)


def scaled_by(value: Value, factor: float) -> Value | None:
    """Return what was multiplied by a factor, or divided by its inverse, to give a value; None if it is no such product."""
    if value.made[:1] not in (("Div",), ("Mul",)) or not isinstance(value.made[2], float) or not value.made[2]:
        return None
    found = 1 / value.made[2] if value.made[0] == "Div" else value.made[2]
    return value.made[1] if math.isclose(found, factor, rel_tol=1e-4) else None


def is_hard_sigmoid(gate: Value, x: Value) -> bool:
    """Return whether a value is HardSigmoid(x), or Clip(x + 3, 0, 6) / 6."""
    if gate.made[:1] == ("HardSigmoid",):
        return gate.made[1] is x
    clipped = scaled_by(gate, 1 / 6)
    if clipped is None or clipped.made[:1] != ("Relu6",):
        return False
    raised = clipped.made[1]
    return raised.made[:1] == ("Add",) and raised.made[2] == 3.0 and raised.made[1] is x


def has_erf(gate: Value, x: Value) -> bool:
    """Return whether a value is 1 + erf(x / sqrt(2))."""
    if gate.made[:1] != ("Add",) or gate.made[2] != 1.0 or gate.made[1].made[:1] != ("Erf",):
        return False
    return scaled_by(gate.made[1].made[1], math.sqrt(0.5)) is x


def halved_gelu(product: Value) -> Value | None:
    """Return GELU if a product, about to be halved, is x * (1 + erf(x / sqrt(2)))."""
    if product.made[:1] != ("Mul",) or not isinstance(product.made[2], Value):
        return None
    for x, gate in (product.made[1:3], product.made[2:0:-1]):
        if has_erf(gate, x):
            return exact_gelu(x)
    return None


def biased(one: Any, other: Any) -> Value | None:
    """Return a dense layer with a bias, if a sum is a product by a matrix and one number for each output."""
    for product, bias in ((one, other), (other, one)):
        if isinstance(product, Value) and product.made[:1] == ("MatMul",) and not isinstance(bias, Value):
            _, value, kernel = product.made
            if np.shape(bias)[-1:] == (kernel.shape[1],) and np.size(bias) == kernel.shape[1]:
                return dense(value, kernel, np.asarray(bias, np.float32).reshape(-1))
    return None


PATTERNS: Mapping[str, Callable[[Any, Any], Value | None]] = {"Add": biased, "Mul": activation_of}


# -- dense layers ---------------------------------------------------------------------------------------------------


def dense(value: Value, kernel: np.ndarray, bias: np.ndarray | None) -> Value:
    """Multiply the last axis by a kernel, float32 (inputs, outputs), and add a bias."""
    if value.scrambled is not None:
        kernel, value = kernel[value.scrambled], value._replace(scrambled=None)
    last = len(value.shape) - 1
    axes = [*(axis for axis in value.axes if axis != last and value.shape[axis] > 1), last]
    shape = (*value.shape[:-1], kernel.shape[1])
    tensor, more = stored(value, axes), [] if bias is None else [bias]
    if len(axes) == 3:  # a convolution needs no reshaping around it
        layer = layers.Conv2D(kernel.shape[1], 1, use_bias=bias is not None)
        return Value(with_weights(layer, tensor, kernel[None, None], *more), tuple(axes), shape)
    layer = layers.Dense(kernel.shape[1], use_bias=bias is not None)
    return Value(with_weights(layer, tensor, kernel, *more), tuple(axes), shape)


def gemm(node: Node) -> Outputs:
    kernel = node.weights(1) * np.float32(node.attributes.get("alpha", 1.0))
    if node.attributes.get("transA", 0):
        raise ExportError(f"Gemm {node.name!r} transposes its first input, which is not supported.")
    kernel = kernel.T if node.attributes.get("transB", 0) else kernel
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added = node.weights(2) * np.float32(node.attributes.get("beta", 1.0))
        bias = np.broadcast_to(added.reshape(-1), (kernel.shape[1],))
    return dense(node.value, kernel, bias)


def matmul(node: Node) -> Outputs:
    one, other = node.inputs
    if isinstance(one, Value) and isinstance(other, np.ndarray) and other.ndim == 2:
        kernel = np.asarray(other, np.float32)
        return dense(one, kernel, None)._replace(made=("MatMul", one, kernel))
    if not (isinstance(one, Value) and isinstance(other, Value)) or len(one.shape) != len(other.shape):
        raise ExportError(f"MatMul {node.name!r} multiplies shapes that are not supported.")
    rank = len(one.shape)
    outer = [axis for axis in range(rank - 2) if one.shape[axis] > 1 or other.shape[axis] > 1]
    if any(one.shape[axis] != other.shape[axis] for axis in outer):
        raise ExportError(f"MatMul {node.name!r} broadcasts, which is not supported.")
    axes = (*outer, rank - 2, rank - 1)
    tensor = tf.matmul(stored(one, axes), stored(other, axes))
    return Value(tensor, axes, (*one.shape[:-1], other.shape[-1]))


# -- normalization -------------------------------------------------------------------------------------------------


def softmax(node: Node) -> Outputs:
    value = unscrambled(node.value)
    rank = len(value.shape)
    axis = node.attributes.get("axis", 1 if node.opset < 13 else -1) % rank
    wide = [place for place in range(axis, rank) if value.shape[place] > 1]
    if node.opset < 13 and len(wide) == 1:
        axis = wide[0]
    elif node.opset < 13 and len(wide) > 1:
        raise ExportError(f"Softmax {node.name!r} covers several axes, which is not supported.")
    axes = [*(place for place in value.axes if place != axis), axis]
    tensor = stored(value, axes)
    scores = tf.nn.softmax(tensor, axis=-1) if node.op == "Softmax" else tf.nn.log_softmax(tensor, axis=-1)
    return Value(scores, tuple(axes), value.shape, made=(node.op, value))


def normalized(node: Node, first: int, bias: np.ndarray | None, scale: np.ndarray) -> Value:
    """Normalize a tensor over its axes from `first` on; scale and bias are arrays that broadcast against it."""
    value = unscrambled(node.value)
    rank = len(value.shape)
    gone = [axis for axis in value.axes if axis >= first]
    axes = (*(axis for axis in value.axes if axis < first), *gone)
    tensor = stored(value, axes)
    places = [1 + axes.index(axis) for axis in gone]
    mean = tf.reduce_mean(tensor, axis=places, keepdims=True)
    centred = tensor - mean
    variance = tf.reduce_mean(centred * centred, axis=places, keepdims=True)
    result = (
        centred * tf.math.rsqrt(variance + node.attributes.get("epsilon", 1e-5)) * constant_along(scale, axes, rank)
    )
    if bias is not None:
        result = result + constant_along(bias, axes, rank)
    return Value(result, axes, value.shape)


def layer_normalization(node: Node) -> Outputs:
    first = node.attributes.get("axis", -1) % len(node.value.shape)
    bias = node.weights(2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return normalized(node, first, bias, node.weights(1))


def instance_normalization(node: Node) -> Outputs:
    along = (-1, *[1] * (len(node.value.shape) - 2))  # the channels
    return normalized(node, 2, node.weights(2).reshape(along), node.weights(1).reshape(along))


def identity(node: Node) -> Outputs:
    return node.value


OPERATORS: Mapping[str, Callable[[Node], Outputs]] = {
    "Abs": each(tf.abs),
    "Add": binary(add_tensors),
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": identity,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Div": binary(tf.divide),
    "Dropout": identity,
    "Elu": each(tf.nn.elu),
    "Erf": each(tf.math.erf, "Erf"),
    "Exp": each(tf.exp),
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda node: hard_swish(node.value),
    "Identity": identity,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": binary(tf.multiply),
    "Neg": each(lambda x: -x),
    "PRelu": prelu,
    "Pad": pad,
    "Pow": binary(tf.pow),
    "Reciprocal": each(lambda x: 1 / x),
    "ReduceL2": reduced(reduce_l2),
    "ReduceMax": reduced(tf.reduce_max),
    "ReduceMean": reduced(tf.reduce_mean),
    "ReduceSum": reduced(tf.reduce_sum),
    "Relu": relu,
    "Reshape": reshape,
    "Resize": resize,
    "Sigmoid": each(tf.sigmoid, "Sigmoid"),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": each(tf.nn.softplus),
    "Split": split,
    "Sqrt": each(tf.sqrt),
    "Squeeze": squeeze,
    "Sub": binary(tf.subtract),
    "Tanh": each(tf.tanh),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""The operators that depend on the image. Those of constants only are computed by onnx's reference, whatever they are."""
