"""Quantization's numbers: ranges of activations, and kernels rounded to preserve a layer's outputs.

Source: Frantar et al. 2022, "GPTQ" (arXiv:2210.17323), which rounds a layer's weights one input at a time and adjusts the remaining
weights to compensate for the error.

This module works around quirks of tensorflow-model-optimization 0.8.1; review them when you upgrade it.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import Settled
from edgecnn.train.loop import Batches

SHARES = tuple(np.arange(5, 11, dtype=np.float32) / 10)
"""Shares of an activation's range that are tried."""

SHARED = 4  # one in four images tells what each share loses

MOST_WIDENED = 32.0  # a bias, which grows by this factor too, still fits in int32

CALIBRATION_BATCHES, CALIBRATION_DECAY = 60, 0.9
"""Batches of training images that set the ranges, and the decay of their moving averages meanwhile. With the toolkit's fixed 0.999 and
initial ranges of +-6, it would take thousands of steps to reach the real ranges."""

SCORE_ERROR = 0.005  # how far scores may drift, root mean square, to allow a finer grid for the logits

CLASSES = 10
"""An image's error is averaged over at most this many classes. With many classes most scores are near zero and would hide the rest."""


@contextlib.contextmanager
def range_decay(decay: float) -> Iterator[None]:
    """Trace the toolkit's moving-average quantizers with this decay instead of the 0.999 that the toolkit passes."""
    from tensorflow_model_optimization.python.core.quantization.keras import quant_ops

    original = quant_ops.MovingAvgQuantize

    def with_decay(*args, **kwargs):
        return original(*args, **{**kwargs, "ema_decay": decay})

    quant_ops.MovingAvgQuantize = with_decay
    try:
        yield
    finally:
        quant_ops.MovingAvgQuantize = original


def calibration_images(batches: Batches) -> Iterator[np.ndarray]:
    chosen = itertools.islice(batches.endless("calibration"), CALIBRATION_BATCHES)
    return (images for images, _ in chosen)


def calibrate(student: "keras.Model", recipe: Settled, batches: Batches) -> None:
    """Set the activation ranges from training images: the first batch's ranges, then a moving average. After a ReLU the lower end is 0."""
    for index, images in enumerate(calibration_images(batches)):
        if index < 2:
            # the trace fixes the decay, so the first batch needs one trace and the others another
            observe = tf.function(partial(student, training=True), reduce_retracing=True)
        with range_decay(CALIBRATION_DECAY if index else 0.0):
            observe(real_input(tf.constant(images), recipe.input_scale, recipe.input_zero_point))


def measure(
    student: "keras.Model", model: "keras.Model", recipe: Settled, batches: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Set a student's ranges from the activations and weights of the float model that it copies: sooner than `calibrate` does.

    An activation's range is the mean over the batches, uint8 (n, height, width, channels), of the range in each; of all but a ReLU's, the
    share with the least squared error. Returns each ReLU's highest output per channel, float32 (channels,), by the layer's name.
    """
    wrappers = [layer for layer in student.layers if hasattr(layer, "layer")]
    for wrapper in wrappers:
        for variable, _, ends in wrapper._weight_vars:
            axes = tuple(range(len(variable.shape) - len(ends["max_var"].shape)))
            reach = np.abs(variable.numpy()).max(axis=axes)
            ends["max_var"].assign(reach)
            ends["min_var"].assign(-reach)
    observed = {
        wrapper.layer.name: ends for wrapper in wrappers if (ends := _ends(wrapper, "post_activation_", "output_"))
    }
    observe = keras.Model(model.inputs, [model.get_layer(name).output for name in observed])
    relus = [name for name in observed if isinstance(model.get_layer(name), keras.layers.ReLU)]

    def ends_of(output, is_relu: bool):
        low, high = tf.minimum(tf.reduce_min(output), 0), tf.maximum(tf.reduce_max(output), 0)
        if is_relu:
            return low, high
        some = output[::SHARED]
        lost = [
            tf.reduce_mean((tf.quantization.fake_quant_with_min_max_vars(some, low * share, high * share) - some) ** 2)
            for share in SHARES
        ]
        share = tf.gather(SHARES, tf.argmin(lost))
        return low * share, high * share

    @tf.function(reduce_retracing=True)
    def extremes(images):
        outputs = observe(real_input(images, recipe.input_scale, recipe.input_zero_point), training=False)
        highest = [
            tf.reduce_max(one, range(one.shape.rank - 1))
            for name, one in zip(observed, outputs, strict=True)
            if name in relus
        ]
        return [ends_of(one, name in relus) for name, one in zip(observed, outputs, strict=True)], highest

    found, highest = zip(*(extremes(tf.constant(images)) for images in batches), strict=True)
    for ends, values in zip(observed.values(), np.mean(found, axis=0), strict=True):
        for variable, value in zip(ends, values, strict=True):
            variable.assign(value)
    return {name: np.max(values, axis=0) for name, *values in zip(relus, *highest, strict=True)}


def widen(student: "keras.Model", highest: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Let each channel between a ReLU and a depthwise convolution fill the ReLU's range, so that low ones are not rounded away.

    `highest` are what `measure` returns. The BatchNorm before the ReLU scales a channel up, and the one behind the convolution scales it
    down, so answers stay, except that higher outputs are cut off. Returns the factors, (channels,), by the convolution's name. Source:
    Nagel et al. 2019 (arXiv:1906.04721), who scale weights to be alike; here activations fill their range.
    """
    factors = {}
    for relu in student.layers:
        before, behind = _neighbours(relu)
        _, after = _neighbours(behind)
        layers: list[Any] = [getattr(layer, "layer", None) for layer in (before, relu, behind, after)]
        norm, middle, depthwise, other = layers
        if not (is_norm(norm) and type(middle) is keras.layers.ReLU and is_depthwise(depthwise) and is_norm(other)):
            continue
        if depthwise.use_bias or depthwise.depth_multiplier > 1:
            continue
        top, most = _ends(relu, "post_activation_", "output_")[1].numpy(), highest[middle.name]
        factor = top / np.maximum(most, top / MOST_WIDENED)
        for variable in (norm.gamma, norm.beta, other.moving_mean):
            variable.assign(variable * factor)
        other.gamma.assign(other.gamma / factor)
        factors[depthwise.name] = factor
    return factors


def is_norm(layer: Any) -> bool:
    return type(layer) is keras.layers.BatchNormalization and bool(layer.scale and layer.center)


def _neighbours(wrapper: Any) -> tuple[Any, Any]:
    """Return the layers before and behind a layer, each None unless there is exactly one."""
    if wrapper is None:
        return None, None
    nodes = wrapper.inbound_nodes, wrapper.outbound_nodes
    if [len(one) for one in nodes] != [1, 1] or isinstance(nodes[0][0].inbound_layers, list):
        return None, None
    return nodes[0][0].inbound_layers, nodes[1][0].outbound_layer


def logits_range(teacher: "keras.Model", recipe: Settled, batches: Batches) -> tuple[float, float]:
    """Return the quantization range of the int8 model's logits: the narrowest that preserves the teacher's scores, see `narrow`."""
    predict = predictor(teacher, recipe.input_scale, recipe.input_zero_point)
    return narrow(np.concatenate([predict(images) for images in calibration_images(batches)]))


def set_logits_range(student: "keras.Model", low: float, high: float) -> None:
    """Set the range of a fake-quantized model's logits. Not for training: clipped values have no gradient."""
    for variable, end in zip(_logits_ends(student), (low, high), strict=False):
        variable.assign(end)


@contextlib.contextmanager
def narrowed(student: "keras.Model", ends: tuple[float, float]) -> Iterator[None]:
    """Within the block, give a fake-quantized model's logits the range with which it will ship."""
    before = [variable.numpy() for variable in _logits_ends(student)]
    set_logits_range(student, *ends)
    try:
        yield
    finally:
        for variable, end in zip(_logits_ends(student), before, strict=True):
            variable.assign(end)


def _logits_ends(student: "keras.Model") -> list["tf.Variable"]:
    """Return the two ends of the logits' range, lower first; an empty list if the last layer has no range of its own."""
    return _ends(student.layers[-1], "post_activation_")


def _ends(wrapper: Any, *prefixes: str) -> list["tf.Variable"]:
    """Return the variables of a wrapped layer's output range whose names begin with one of the prefixes, lower first."""
    named = {variable.name.rpartition("/")[2]: variable for variable in wrapper.variables}
    return [named[name] for end in ("min:0", "max:0") for prefix in prefixes if (name := prefix + end) in named]


def narrow(logits: np.ndarray) -> tuple[float, float]:
    """Choose the narrowest range, including 0, that shifts scores by at most SCORE_ERROR and changes no more answers than the full one."""
    scores, answers = tf.nn.softmax(logits).numpy(), np.argmax(logits, axis=1)

    def departure(low: float, high: float) -> tuple[float, int]:
        found = on_grid(logits, low, high)
        error = tf.nn.softmax(found).numpy() - scores
        squared = np.sum(error**2, axis=1) / min(logits.shape[1], CLASSES)
        return float(np.sqrt(np.mean(squared))), int(np.sum(np.argmax(found, axis=1) != answers))

    lowest, highest = min(float(logits.min()), 0.0), max(float(logits.max()), 0.0)
    best = (lowest, highest)
    if lowest == highest:
        return best
    _, allowed = departure(*best)
    for low, high in itertools.product(np.linspace(0, lowest, 21), np.linspace(0, highest, 21)):
        if 0 < high - low < best[1] - best[0]:
            error, changed = departure(low, high)
            if error <= SCORE_ERROR and changed <= allowed:
                best = (float(low), float(high))
    return best


def on_grid(logits: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return logits, float (n, num_classes), rounded to the int8 codes of a range that includes 0. Rounding may create ties."""
    step = (high - low) / 255
    zero_point = np.rint(-128 - low / step)
    return (np.clip(np.rint(logits / step) + zero_point, -128, 127) - zero_point) * step


IMAGES, BATCH = 4096, 64  # usual maximum number of training images whose activations guide the rounding, and per batch

ROWS = 65_536
"""Approximate number of input rows used to round a convolution's kernel. Each image supplies the same number of output positions."""

TURN_ROWS = 8_192  # the same if kernels are rounded in turn

CHANNEL_ROWS = 4  # a depthwise convolution, each of whose channels has few inputs, gets a quarter of the rows

INPUTS = 4096
"""Kernels with more inputs per output are not rounded this way: their Hessian has this size squared."""

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a fraction of its mean. Source: Frantar et al. 2022, section 3."""

BLOCK = 128  # rows of a matrix that are rounded before the rows behind them change. Source: Frantar et al. 2022, section 3.3

CODES = 127  # A kernel's codes are -127 to 127


class Kernel(NamedTuple):
    """A kernel to round: its layer, the tensor the layer reads, the variable, the value of one code, float64, per output channel (outputs,)
    or for all (), and the toolkit's wrapper of the layer, if any."""

    layer: Any
    inputs: Any
    variable: Any
    step: np.ndarray
    wrapper: Any = None


def round_kernels(
    model: "keras.Model",
    pixels: np.ndarray,
    scale: float,
    zero_point: int,
    seed: int,
    kernels: Sequence[Kernel] | None = None,
) -> None:
    """Replace a calibrated student's kernels, or those of `plain_kernels`, with ones whose weights all lie on codes. Ranges do not change.

    Depthwise convolutions, which leave little room to compensate, and kernels with more than INPUTS inputs are skipped. The seed draws
    at most IMAGES of the training images, and the positions: about ROWS for each kernel.
    """
    random = np.random.default_rng([seed, *b"rounding"])
    chosen = random.permutation(len(pixels))[:IMAGES]
    kernels = find_kernels(model) if kernels is None else kernels
    if not kernels:
        return
    observe = tf.function(keras.Model(model.input, [kernel.inputs for kernel in kernels]), reduce_retracing=True)
    hessians: list[Any] = [0.0] * len(kernels)
    for first in range(0, len(chosen), BATCH):
        part = tf.constant(pixels[chosen[first : first + BATCH]])
        seen = tf.nest.flatten(observe(real_input(part, scale, zero_point), training=False))
        for index, (kernel, inputs) in enumerate(zip(kernels, seen, strict=True)):
            rows = input_rows(kernel.layer, inputs, random, max(1, ROWS // len(chosen)))
            hessians[index] = hessians[index] + hessian_of(rows)
    for kernel, hessian in zip(kernels, hessians, strict=True):
        round_kernel(kernel, hessian)


def round_kernel(kernel: Kernel, hessian: np.ndarray) -> None:
    values = kernel.variable.numpy()
    rounded = round_depthwise if is_depthwise(kernel.layer) else round_matrix
    codes = rounded(matrix_of(kernel.layer, values), kernel.step, hessian)
    kernel.variable.assign((codes * kernel.step).reshape(values.shape).astype(np.float32))


def round_in_turn(
    student: "keras.Model",
    model: "keras.Model",
    recipe: Settled,
    pixels: np.ndarray,
    factors: Mapping[str, np.ndarray],
) -> None:
    """Round all kernels of a measured student but the head's, from the first to the last, depthwise convolutions too.

    So each is rounded for what the rounded layers before it return. It only has to preserve how its outputs differ between positions and
    images of `pixels`, uint8 (n, height, width, channels): the bias then gives them the mean that they have in the float `model`.
    `factors` are those of `widen`.
    """

    def inputs_of(layer: Any, inputs: Any) -> np.ndarray:
        random, fewer = np.random.default_rng([recipe.seed, *layer.name.encode()]), is_depthwise(layer)
        rows = TURN_ROWS // CHANNEL_ROWS if fewer else TURN_ROWS
        found = input_rows(layer, inputs, random, max(1, rows // len(pixels)))
        return found.reshape(len(found), -1, inputs.shape[-1]) if fewer else found

    def keep_mean(layer: Any, inputs: Any) -> None:
        means[layer.name] = inputs_of(layer, inputs).mean(axis=0) * factors.get(layer.name, 1)

    def round_one(kernel: Kernel, inputs: Any) -> None:
        sample = inputs_of(kernel.layer, inputs)
        mean, before = sample.mean(axis=0), matrix_of(kernel.layer, kernel.variable.numpy())
        round_kernel(kernel, hessian_of(sample - mean))
        fresh = matrix_of(kernel.layer, kernel.variable.numpy())
        shift_outputs(kernel, products(means[kernel.layer.name], before) - products(mean, fresh))

    means: dict[str, np.ndarray] = {}
    kernels = [one for one in find_kernels(student, depthwise=True) if one.wrapper is not student.layers[-1]]
    images = real_input(tf.constant(pixels), recipe.input_scale, recipe.input_zero_point)
    layers = [model.get_layer(kernel.layer.name) for kernel in kernels]
    call_with(model, images, {layer: partial(keep_mean, layer) for layer in layers})
    call_with(student, images, {kernel.wrapper: partial(round_one, kernel) for kernel in kernels})


def call_with(model: "keras.Model", images: Any, first: Mapping[Any, Callable[[Any], None]]) -> None:
    """Run a model eagerly. Each layer in `first` passes its inputs to a function before it is called, and may be changed by it."""

    def call(inputs: Any, *args: Any, act: Callable[[Any], None], then: Callable[..., Any], **options: Any) -> Any:
        act(inputs)
        return then(inputs, *args, **options)

    for layer, act in first.items():
        layer.call = partial(call, act=act, then=layer.call)
    try:
        model(images, training=False)
    finally:
        for layer in first:
            del layer.call


def is_depthwise(layer: Any) -> bool:
    return type(layer) is keras.layers.DepthwiseConv2D


def matrix_of(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Return a layer's kernel as a matrix (inputs, outputs). Each output of a depthwise convolution has inputs of its own."""
    return kernel.reshape(-1, kernel.shape[2] if is_depthwise(layer) else kernel.shape[-1])


def hessian_of(rows: np.ndarray) -> np.ndarray:
    """Return the sum of x x^T over rows of inputs, (inputs, inputs), or of each channel's: (rows, inputs, channels)."""
    each = rows.transpose(2, 0, 1) if rows.ndim == 3 else rows
    found: np.ndarray = each.swapaxes(-1, -2) @ each
    return found


def products(inputs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return what a matrix (inputs, outputs) gives for inputs (inputs,), or for those of each output (inputs, outputs)."""
    found: np.ndarray = inputs @ matrix if inputs.ndim == 1 else (inputs * matrix).sum(axis=0)
    return found


def shift_outputs(kernel: Kernel, amounts: np.ndarray) -> None:
    """Add amounts (outputs,) to what a kernel's layer returns: to its own bias, or behind it to that of its BatchNorm."""
    if kernel.layer.use_bias:
        kernel.layer.bias.assign_add(amounts.astype(np.float32))
        return
    norm = kernel.wrapper.outbound_nodes[0].outbound_layer.layer
    gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    norm.beta.assign_add((amounts * gain).astype(np.float32))


def find_kernels(student: "keras.Model", depthwise: bool = False) -> list[Kernel]:
    """Return the kernels of a fake-quantized model that can be rounded, in model order; those of depthwise convolutions if requested."""
    found = []
    for wrapper in student.layers:
        layer: Any = getattr(wrapper, "layer", None)
        if len(wrapper.inbound_nodes) != 1 or not (is_matrix(layer) or (depthwise and is_depthwise(layer))):
            continue
        for variable, _, ends in wrapper._weight_vars:
            if np.prod(variable.shape[:-1]) <= INPUTS:
                step = np.maximum(ends["max_var"].numpy().astype(np.float64) / CODES, 1e-12)
                found.append(Kernel(layer, wrapper.input, variable, step, wrapper))
    return found


def plain_kernels(model: "keras.Model") -> list[Kernel]:
    """Return the kernels of a float model that can be rounded, with the step that post-training quantization gives each output channel."""
    found = []
    for layer in model.layers:
        if is_matrix(layer) and len(layer.inbound_nodes) == 1 and np.prod(layer.kernel.shape[:-1]) <= INPUTS:
            kernel = layer.kernel.numpy().astype(np.float64)
            step = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0) / CODES
            found.append(Kernel(layer, layer.input, layer.kernel, np.maximum(step, 1e-12)))
    return found


def is_matrix(layer: Any) -> bool:
    """Return whether a layer multiplies rows of its input by one matrix."""
    if type(layer) is keras.layers.Conv2D:
        return bool(layer.groups == 1 and layer.data_format == "channels_last")
    return type(layer) is keras.layers.Dense


def input_rows(layer: Any, inputs: Any, random: np.random.Generator, places: int) -> np.ndarray:
    """Return the inputs that a layer multiplies by its kernel, float64 (rows, height * width * channels), at random output positions."""
    if type(layer) is keras.layers.Dense:
        return inputs.numpy().reshape(-1, inputs.shape[-1]).astype(np.float64)
    values = inputs.numpy()
    images, *lengths, _ = values.shape
    read, inside, counts = [], [], []  # the rows or columns that each output position reads
    sides = zip(lengths, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    for length, size, stride, dilation in sides:  # along the height, and along the width
        reach = (size - 1) * dilation + 1
        count = -(-length // stride) if layer.padding == "same" else (length - reach) // stride + 1
        zeros = max((count - 1) * stride + reach - length, 0)
        at = np.arange(count)[:, np.newaxis] * stride + np.arange(size) * dilation - zeros // 2
        read.append(at.clip(0, length - 1))
        inside.append((at >= 0) & (at < length))
        counts.append(count)
    chosen = np.argsort(random.random((images, counts[0] * counts[1])), axis=1)[:, :places]
    down, right = np.divmod(chosen, counts[1])
    image = np.arange(images)[:, np.newaxis, np.newaxis, np.newaxis]
    patches = values[image, read[0][down][..., np.newaxis], read[1][right][:, :, np.newaxis]]
    patches[~(inside[0][down][..., np.newaxis] & inside[1][right][:, :, np.newaxis])] = 0
    return patches.reshape(chosen.size, -1).astype(np.float64)


def round_matrix(matrix: np.ndarray, step: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Choose codes for a matrix (inputs, outputs), float64 from -127 to 127, that preserve its products with the inputs.

    `step` is the value of one code, (outputs,) or (). `hessian` is the sum of x x^T over the inputs (inputs, inputs), up to a factor.
    Weights at the end of the range stay there, so the rounded kernel has the same range.
    """
    diagonal = np.diag(hessian)
    permutation = np.argsort(-diagonal, kind="stable")  # heaviest inputs first, so that most weights can compensate
    damping = DAMPING * max(float(np.mean(diagonal)), 1e-12)
    hessian_inv = np.linalg.inv(hessian[permutation][:, permutation] + damping * np.eye(len(permutation)))
    hessian_inv = np.linalg.cholesky((hessian_inv + hessian_inv.T) / 2).T
    weights = matrix[permutation].astype(np.float64)
    limits = np.where(np.abs(weights) >= (CODES - 0.5) * step, np.sign(weights) * CODES, 0)
    codes = np.empty_like(weights)
    for first in range(0, len(weights), BLOCK):  # rows behind a block compensate for all of its errors at once
        block = slice(first, first + BLOCK)
        errors = np.empty_like(weights[block])
        for row, inv_row in enumerate(hessian_inv[block, block]):
            own = weights[first + row]
            rounded = np.clip(np.rint(own / step), -CODES, CODES)
            quantized = np.where(limits[first + row], limits[first + row], rounded)
            errors[row] = (own - quantized * step) / inv_row[row]
            weights[block][row:] -= np.outer(inv_row[row:], errors[row])
            codes[permutation[first + row]] = quantized
        weights[first + BLOCK :] -= hessian_inv[block, first + BLOCK :].T @ errors
    return codes


def round_depthwise(matrix: np.ndarray, step: np.ndarray, hessians: np.ndarray) -> np.ndarray:
    """Do as `round_matrix` does for a depthwise kernel (inputs, channels): each channel has inputs of its own, and a Hessian of them."""
    weights, count = matrix.astype(np.float64), len(matrix)
    damping = DAMPING * np.maximum(np.einsum("cpp->cp", hessians).mean(axis=1), 1e-12)
    inverse = np.linalg.inv(hessians + damping[:, np.newaxis, np.newaxis] * np.eye(count))
    factors = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    limits = np.where(np.abs(weights) >= (CODES - 0.5) * step, np.sign(weights) * CODES, 0)
    codes = np.empty_like(weights)
    for row in range(count):
        rounded = np.clip(np.rint(weights[row] / step), -CODES, CODES)
        codes[row] = np.where(limits[row], limits[row], rounded)
        err = (weights[row] - codes[row] * step) / factors[:, row, row]
        weights[row:] -= factors[:, row, row:].T * err
    return codes
