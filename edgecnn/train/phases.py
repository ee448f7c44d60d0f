"""The two phases: cross-entropy in float, then the float network distilled into the fake-quantized one.

This module works around quirks of tensorflow-model-optimization 0.8.1; review them when you upgrade it.
"""

import contextlib
from collections.abc import Callable
from dataclasses import astuple
from functools import cached_property, partial
from typing import Any

import numpy as np

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import even_depthwise, fit_biases, folded, predictor, real_input
from edgecnn.networks.pretrained import tuned_variables
from edgecnn.recipe import NetworkRecipe, Settled, TrainRecipe
from edgecnn.run_info import Rounding
from edgecnn.train import distribute
from edgecnn.train.best import Best, Int8, Rival, Score, averaging, score, score_variable
from edgecnn.train.distribute import stepper
from edgecnn.train.loop import Batches, Phase
from edgecnn.train.ranges import calibrate, logits_range, narrowed, round_kernels, set_logits_range
from edgecnn.train.settle import AVERAGED, cosine, learning_rates, one_cycle, own_weights, starts_trained

MOMENTUM = 0.9


def build_optimizer(recipe: TrainRecipe) -> "keras.optimizers.Optimizer":
    """Return Adam, or SGD with Nesterov momentum 0.9. Decoupled weight decay (arXiv:1711.05101) skips biases and BatchNorm."""
    decay = recipe.weight_decay or None
    if recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate, weight_decay=decay)
    else:
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def build_at(precision: str, network: NetworkRecipe, shape: tuple[int, int, int], num_classes: int) -> "keras.Model":
    """Build a recipe's network with "float32" layers, or with "bfloat16" layers over float32 variables."""
    policy = keras.mixed_precision
    before = policy.global_policy()
    policy.set_global_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        return build_network(network.name, *shape, num_classes, network.options)
    finally:
        policy.set_global_policy(before)


def right_answers(logits: Any, classes: Any) -> Any:
    return tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == classes, tf.float32))


LEANING = 0.5
"""How far training leans to rare classes: 0 would count every image the same, 1 every class."""


def objective(recipe: Settled, num_classes: int, weights: np.ndarray | None = None) -> Callable[[Any, Any, Any], Any]:
    """Return a function that maps (classes, logits, the teacher's logits or None) to the mean loss of a batch.

    `weights`, (num_classes,), are inverse to the classes' numbers of images. The labels' term sees the logits lowered by LEANING times
    their logarithm, so that the logits without it lean to rare classes. Losses multiplied by such weights would make steps so large that
    training breaks down. Source: Menon et al. 2021 (arXiv:2007.07314).

    The teacher's term is the cross-entropy of softmaxes at temperature T, times T squared (Hinton et al. 2015, arXiv:1503.02531).
    """

    def loss(classes, logits, taught):
        smoothing, one_hot = recipe.train.label_smoothing, tf.one_hot(classes, num_classes)
        lowered = logits if weights is None else logits - LEANING * tf.constant(np.log(weights), tf.float32)
        losses = keras.losses.categorical_crossentropy(one_hot, lowered, from_logits=True, label_smoothing=smoothing)
        labelled = tf.reduce_mean(losses)
        if recipe.teacher is None or taught is None:
            return labelled
        temperature, weight = recipe.teacher.temperature, recipe.teacher.weight
        target = tf.nn.softmax(taught / temperature)
        distilled = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits / temperature))
        return (1 - weight) * labelled + weight * temperature**2 * distilled

    return loss


def float_phase(
    recipe: Settled,
    shape: tuple[int, int, int],
    num_classes: int,
    validation: tuple[np.ndarray, np.ndarray],
    teacher: Callable[[Any, Any], Any] | None = None,
    strategy: Any = None,
    weights: np.ndarray | None = None,
    rival: Rival | None = None,
) -> tuple["keras.Model", Phase]:
    """Build the network for inputs of shape (height, width, channels), and its float phase.

    Returns the model that is validated and kept, and the phase. That model is usually the one trained. With a strategy or the "averaged"
    schedule it is a separate copy, which receives the weights before each validation. `weights` as in `objective`. A `rival`
    sees the answers of each epoch and ends the phase.
    """
    keras.utils.set_random_seed(recipe.seed)
    build = partial(build_at, recipe.train.precision, recipe.network, shape, num_classes)
    source = own_weights(recipe)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = build()
        optimizer = build_optimizer(recipe.train)
        variables = tuned_variables(model, source, recipe.network.name) if source else model.trainable_variables
        optimizer.build(variables)
    if strategy:
        distribute.synchronize_batch_norm(model)
    replicas = strategy.num_replicas_in_sync if strategy else 1
    # few images give worse BatchNorm statistics than those that come with trained weights
    live = not starts_trained(recipe)
    averaged = recipe.train.schedule == AVERAGED
    kept = build() if strategy or averaged else model
    pairs = [] if kept is model else list(zip(kept.variables, model.variables, strict=True))
    moving = {variable.ref() for variable in (model.variables if live else variables)} if averaged else set()
    means = [(mine, distribute.local(strategy, variable)) for mine, variable in pairs if variable.ref() in moving]
    loss_of = objective(recipe, num_classes, weights)

    def take_start() -> None:
        for mine, copy in zip(kept.variables, distribute.copies(strategy, model.variables), strict=True):
            copy.assign(mine.numpy())

    def copy_weights() -> None:
        for mine, variable in pairs:
            if variable.ref() not in moving:
                mine.assign(distribute.local(strategy, variable))

    def update(images, classes):
        taught = teacher(images, optimizer.iterations) if teacher else None
        with tf.GradientTape() as tape:
            inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
            logits = tf.cast(model(inputs, training=live), tf.float32)
            loss = loss_of(classes, logits, taught)
            if replicas > 1:
                loss /= replicas
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, right_answers(logits, classes)

    def validate() -> float:
        copy_weights()
        logits = predict(validation[0])
        if rival:
            rival.examine(logits)
        return float(np.mean(np.argmax(logits, axis=1) == validation[1]))

    predict = predictor(kept, recipe.input_scale, recipe.input_zero_point)
    step = distribute.stepper(strategy, update, optimizer.learning_rate.assign)
    if averaged:
        step = averaging(step, means, distribute.local(strategy, optimizer.iterations))
    return kept, Phase(
        name="float",
        epochs=recipe.train.epochs,
        step=step,
        validate=validate,
        learning_rate=learning_rates(recipe.train.schedule, recipe.train.learning_rate),
        variables=[
            *distribute.copies(strategy, [*model.variables, *optimizer.variables, *(mean for mean, _ in means)]),
            *(rival.variables if rival else ()),
        ],
        take_start=take_start,
        finish=copy_weights,
        ended=rival.ended if rival else lambda: False,
    )


def to_float32(model: "keras.Model", recipe: Settled, shape: tuple[int, int, int], num_classes: int) -> "keras.Model":
    """Return the trained network with float32 layers: quantize_model raises TypeError on bfloat16 ones (TFMOT 0.8.1)."""
    if recipe.train.precision == "float32":
        return model
    float32 = build_at("float32", recipe.network, shape, num_classes)
    float32.set_weights(model.get_weights())
    return float32


TEMPERATURE = 2.0  # divides both networks' logits in the distillation loss

SAFE_RATE = 5e-5
"""Adam's peak learning rate if the recipe sets none. Adam moves a weight by about the rate per step, so one rate suits every network,
while SGD's needs tuning for each. The rate starts low, because Adam's first steps are as large as any."""


def fake_quantize(model: "keras.Model", scale: float, zero_point: int) -> "keras.Model":
    """Wrap a copy of a float32 model for quantization-aware training, with BatchNorm frozen and the input range pinned to the codes'."""
    import tensorflow_model_optimization as tfmot

    before = model.get_weights()
    try:
        fit_biases(model)
        even_depthwise(model)
        quantized = tfmot.quantization.keras.quantize_model(model)
    finally:
        model.set_weights(before)
    entry = quantized.layers[1]
    # The input quantizer only ever widens its range, and no pixel lies outside this one, so it stays pinned.
    entry.quantizer_vars["min_var"].assign((-128 - zero_point) * scale)
    entry.quantizer_vars["max_var"].assign((127 - zero_point) * scale)
    set_batch_norm(quantized, trainable=False)
    return quantized


def is_enough(recipe: Settled, found: Score | None) -> bool:
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
        recipe: Settled,
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
            validate=lambda: float(np.mean(predict(images).argmax(axis=1) == self._classes)),
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


def distillation(recipe: Settled, teacher: "keras.Model", student: "keras.Model") -> Callable[[Any], tuple[Any, Any]]:
    """Return a function from uint8 images to their loss (Hinton et al. 2015, arXiv:1503.02531, times T²) and the student's logits."""

    def loss(images):
        inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
        targets = tf.nn.softmax(teacher(inputs, training=False) / TEMPERATURE)
        logits = student(inputs, training=True)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits / TEMPERATURE)
        return tf.reduce_mean(losses) * TEMPERATURE**2, logits

    return loss


def training_step(
    recipe: Settled, loss_of: Callable[[Any], tuple[Any, Any]], student: "keras.Model"
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
