"""The quantization-aware phase: calibrate the ranges, then distil the float network into the fake-quantized one.

This module works around quirks of tensorflow-model-optimization 0.8.1; review them when you upgrade it.
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import cached_property
from typing import Any

import numpy as np

from edgecnn.networks.fold import even_depthwise, fitting_biases, folded
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import Recipe
from edgecnn.run_info import Rounding
from edgecnn.train.best import Best, Int8, Score, score, score_variable
from edgecnn.train.distribute import stepper
from edgecnn.train.float_phase import MOMENTUM, accuracy_on, right_answers
from edgecnn.train.loop import Batches, Phase
from edgecnn.train.ranges import calibrate, logits_range, narrowed, set_logits_range
from edgecnn.train.rounding import round_kernels
from edgecnn.train.schedule import cosine, one_cycle
from edgecnn.train.settle import starts_trained

TEMPERATURE = 2.0  # divides both networks' logits in the distillation loss

SAFE_RATE = 5e-5
"""Adam's peak learning rate if the recipe sets none. Adam moves a weight by about the rate per step, so one rate suits every network,
while SGD's needs tuning for each. The rate starts low, because Adam's first steps are as large as any."""


def fake_quantize(model: "keras.Model", scale: float, zero_point: int) -> "keras.Model":
    """Wrap a copy of a float32 model for quantization-aware training, with BatchNorm frozen and the input range pinned to the codes'."""
    import tensorflow_model_optimization as tfmot

    quantized = tfmot.quantization.keras.quantize_model(even_depthwise(fitting_biases(model)))
    entry = quantized.layers[1]
    # The input quantizer only ever widens its range, and no pixel lies outside this one, so it stays pinned.
    entry.quantizer_vars["min_var"].assign((-128 - zero_point) * scale)
    entry.quantizer_vars["max_var"].assign((127 - zero_point) * scale)
    set_batch_norm(quantized, trainable=False)
    return quantized


def is_enough(recipe: Recipe, found: Score | None) -> bool:
    """Return whether quantization-aware epochs can be left out: they are not requested, the float model comes from trained weights, and an
    int8 file that answers like it exists."""
    return recipe.qat.method is None and starts_trained(recipe) and found is not None and found.like_float


def set_batch_norm(model: "keras.Model", *, trainable: bool) -> None:
    """Freeze or unfreeze BatchNorm. For a frozen wrapped layer Keras would store weights twice, which HDF5 rejects."""
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if isinstance(inner, keras.layers.BatchNormalization):
            inner.trainable = layer.trainable = trainable


class Qat:
    """A run's quantization-aware phase: the student, the `phase`, its `best` epoch, and the float model's `reference` logits."""

    def __init__(
        self,
        recipe: Recipe,
        teacher: "keras.Model",
        validation: tuple[np.ndarray, np.ndarray],
        reference: np.ndarray,
        batches: Batches,
        int8: Int8 | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        scale, zero_point = recipe.input_scale, recipe.input_zero_point
        images, self._classes = validation
        self._weights = weights
        self._recipe, self._teacher, self._batches, self._reference = recipe, teacher, batches, reference
        self.student = fake_quantize(teacher, scale, zero_point)
        predict = predictor(self.student, scale, zero_point)
        self._answer = (lambda: int8.fake_quantized(self.student, images)) if int8 else (lambda: predict(images))
        self.best = Best(self.student)
        self._calibrated = score_variable()
        self.learning_rate = recipe.qat.learning_rate or SAFE_RATE
        schedule = cosine if recipe.qat.learning_rate else one_cycle
        loss = distillation(recipe, folded(teacher), self.student)
        step, optimizer = training_step(recipe, loss, self.student)
        self.phase = Phase(
            name="qat",
            epochs=recipe.qat.epochs,
            step=step,
            validate=lambda: accuracy_on(predict, *validation),
            learning_rate=lambda done: self.learning_rate * schedule(done),
            variables=[*self.student.variables, *optimizer.variables, *self.best.variables, self._calibrated],
            examine=self.examine,
            last=recipe.qat.keep,
            ended=self.is_enough,
        )

    @cached_property
    def _logits_range(self) -> tuple[float, float]:
        return logits_range(self._teacher, self._recipe, self._batches)

    def begin(self) -> None:
        """Calibrate the activation ranges. The result is epoch 0, GPTQ-rounded if that scores better. Training starts unrounded."""
        recipe = self._recipe
        calibrate(self.student, recipe, self._batches)
        self._calibrated.assign(astuple(self._offer(0)))
        if recipe.qat.rounding != "nearest" and not recipe.qat.keep:
            before = self.student.get_weights()
            round_kernels(self.student, self._batches.images, recipe.input_scale, recipe.input_zero_point, recipe.seed)
            self._offer(0)
            self.student.set_weights(before)

    def is_enough(self) -> bool:
        """Return whether the best epoch makes further ones useless."""
        return self._recipe.qat.keep is None and is_enough(self._recipe, self.best.score)

    def examine(self, epoch: int) -> dict[str, float]:
        found = self._offer(epoch)
        return {"int8_accuracy": found.accuracy, "int8_agreement": found.agreement}

    def _offer(self, epoch: int) -> Score:
        with narrowed(self.student, self._logits_range):
            logits = self._answer()
        found = score(logits, self._reference, self._classes, self._logits_range, self._weights)
        keep = self._recipe.qat.keep
        if keep is None:
            self.best.offer(epoch, found)
        elif epoch == keep:
            self.best.take(epoch, found)
        return found

    @property
    def calibrated(self) -> Score | None:
        """The score of epoch 0: the calibrated model, weights rounded to their nearest codes. None before `begin`."""
        return Score.read(self._calibrated.numpy())

    @property
    def nearest(self) -> Score | None:
        """The best epoch's score with weights rounded to their nearest codes; None before `begin`."""
        return self.calibrated if self.best.epoch == 0 and self.calibrated else self.best.score

    @property
    def rounding(self) -> Rounding:
        return "nearest" if self.best.score == self.nearest else "gptq"

    def finish(self) -> "keras.Model":
        self.best.restore()
        set_logits_range(self.student, *self._logits_range)
        set_batch_norm(self.student, trainable=True)
        return self.student


def distillation(recipe: Recipe, teacher: "keras.Model", student: "keras.Model") -> Callable[[Any], tuple[Any, Any]]:
    """Return a function from uint8 images to their loss (Hinton et al. 2015, arXiv:1503.02531, times T²) and the student's logits."""

    def loss(images):
        inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
        targets = tf.nn.softmax(teacher(inputs, training=False) / TEMPERATURE)
        logits = student(inputs, training=True)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits / TEMPERATURE)
        return tf.reduce_mean(losses) * TEMPERATURE**2, logits

    return loss


def training_step(
    recipe: Recipe, loss_of: Callable[[Any], tuple[Any, Any]], student: "keras.Model"
) -> tuple[Callable[[np.ndarray, np.ndarray, float], tuple[Any, Any]], "keras.optimizers.Optimizer"]:
    """Return the step that trains the student on a loss, and its optimizer: SGD at the recipe's rate, or Adam if the recipe sets none."""
    if recipe.qat.learning_rate:
        optimizer = keras.optimizers.SGD(recipe.qat.learning_rate, momentum=MOMENTUM)
    else:
        optimizer = keras.optimizers.Adam(SAFE_RATE)
    optimizer.build(student.trainable_variables)

    def update(images, classes):
        with tf.GradientTape() as tape:
            loss, logits = loss_of(images)
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
        return loss, right_answers(logits, classes)

    return stepper(None, update, optimizer.learning_rate.assign), optimizer
