"""The float phase: cross-entropy on labelled images and, if there is a teacher, on its answers."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.networks.pretrained import tuned_variables
from edgecnn.recipe import NetworkRecipe, Recipe, TrainRecipe
from edgecnn.train import distribute
from edgecnn.train.average import averaging
from edgecnn.train.loop import Phase
from edgecnn.train.rival import Rival
from edgecnn.train.schedule import AVERAGED, learning_rates
from edgecnn.train.settle import own_weights, starts_trained

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


def accuracy_on(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, classes: np.ndarray) -> float:
    return float(np.mean(np.argmax(predict(images), axis=1) == classes))


def right_answers(logits: Any, classes: Any) -> Any:
    return tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == classes, tf.float32))


def objective(recipe: Recipe, num_classes: int, weights: np.ndarray | None = None) -> Callable[[Any, Any, Any], Any]:
    """Return a function that maps (classes, logits, the teacher's logits or None) to the mean loss of a batch.

    `weights` are those of the classes in the labels' term, (num_classes,).

    The teacher's term is the cross-entropy of softmaxes at temperature T, times T squared (Hinton et al. 2015, arXiv:1503.02531).
    """

    def loss(classes, logits, taught):
        smoothing, one_hot = recipe.train.label_smoothing, tf.one_hot(classes, num_classes)
        losses = keras.losses.categorical_crossentropy(one_hot, logits, from_logits=True, label_smoothing=smoothing)
        if weights is not None:
            losses *= tf.gather(tf.constant(weights, tf.float32), classes)
        labelled = tf.reduce_mean(losses)
        if recipe.teacher is None or taught is None:
            return labelled
        temperature, weight = recipe.teacher.temperature, recipe.teacher.weight
        wanted = tf.nn.softmax(taught / temperature)
        apart = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, logits / temperature))
        return (1 - weight) * labelled + weight * temperature**2 * apart

    return loss


def float_phase(
    recipe: Recipe,
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


def to_float32(model: "keras.Model", recipe: Recipe, shape: tuple[int, int, int], num_classes: int) -> "keras.Model":
    """Return the trained network with float32 layers: quantize_model raises TypeError on bfloat16 ones (TFMOT 0.8.1)."""
    if recipe.train.precision == "float32":
        return model
    float32 = build_at("float32", recipe.network, shape, num_classes)
    float32.set_weights(model.get_weights())
    return float32
