"""Quantization ranges of activations: set from training images before the quantization-aware phase, and for the logits after it.

This module works around quirks of tensorflow-model-optimization 0.8.1; review them when you upgrade it.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import Recipe
from edgecnn.train.loop import Batches

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


def calibrate(student: "keras.Model", recipe: Recipe, batches: Batches) -> None:
    """Set the activation ranges from training images: the first batch's ranges, then a moving average. After a ReLU the lower end is 0."""
    for index, images in enumerate(calibration_images(batches)):
        if index < 2:
            # the trace fixes the decay, so the first batch needs one trace and the others another
            observe = tf.function(partial(student, training=True), reduce_retracing=True)
        with range_decay(CALIBRATION_DECAY if index else 0.0):
            observe(real_input(tf.constant(images), recipe.input_scale, recipe.input_zero_point))


def measure(student: "keras.Model", model: "keras.Model", recipe: Recipe, batches: Sequence[np.ndarray]) -> None:
    """Set a student's ranges from the activations and weights of the float model that it copies: sooner than `calibrate` does.

    An activation's range is the mean over the batches, uint8 (n, height, width, channels), of the range in each.
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

    @tf.function(reduce_retracing=True)
    def extremes(images):
        outputs = observe(real_input(images, recipe.input_scale, recipe.input_zero_point), training=False)
        return [(tf.minimum(tf.reduce_min(one), 0), tf.maximum(tf.reduce_max(one), 0)) for one in outputs]

    found = np.mean([extremes(tf.constant(images)) for images in batches], axis=0)
    for ends, values in zip(observed.values(), found, strict=True):
        for variable, value in zip(ends, values, strict=True):
            variable.assign(value)


def logits_range(teacher: "keras.Model", recipe: Recipe, batches: Batches) -> tuple[float, float]:
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
