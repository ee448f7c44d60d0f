"""The float phase: cross-entropy on labelled images."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import Recipe, TrainRecipe
from edgecnn.train.loop import Phase
from edgecnn.train.schedule import SCHEDULES

MOMENTUM = 0.9


def build_optimizer(recipe: TrainRecipe) -> "keras.optimizers.Optimizer":
    """Return the recipe's optimizer: Adam, or SGD with Nesterov momentum 0.9.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101) and leaves biases and BatchNorm alone.
    """
    decay = recipe.weight_decay or None
    if recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate, weight_decay=decay)
    else:
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Build layers at "float32", or "bfloat16" with float32 variables, within the block."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if name == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def accuracy_on(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of images whose largest logit is their class."""
    return float(np.mean(np.argmax(predict(images), axis=1) == classes))


def float_phase(
    recipe: Recipe, shape: tuple[int, int, int], num_classes: int, validation: tuple[np.ndarray, np.ndarray]
) -> tuple["keras.Model", Phase]:
    """Build the network and its float phase.

    Args:
        recipe: the whole recipe; its seed draws the weights.
        shape: (height, width, channels) of the input.
        num_classes: length of the logits.
        validation: uint8 images (n, height, width, channels) and their classes (n,).

    Returns:
        The model that the phase trains (bfloat16 layers where the recipe says so) and the phase.
    """
    keras.utils.set_random_seed(recipe.seed)
    with precision(recipe.train.precision):
        model = build_network(recipe.network.name, *shape, num_classes, recipe.network.options)
    optimizer = build_optimizer(recipe.train)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def train_step(images, classes, learning_rate):
        optimizer.learning_rate.assign(learning_rate)
        with tf.GradientTape() as tape:
            inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
            logits = tf.cast(model(inputs, training=True), tf.float32)
            losses = keras.losses.categorical_crossentropy(
                tf.one_hot(classes, num_classes),
                logits,
                from_logits=True,
                label_smoothing=recipe.train.label_smoothing,
            )
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == classes, tf.float32))
        return loss, right

    def step(images: np.ndarray, classes: np.ndarray, learning_rate: float):
        return train_step(tf.constant(images), tf.constant(classes), tf.constant(learning_rate, tf.float32))

    predict = predictor(model, recipe.input_scale, recipe.input_zero_point)
    schedule = SCHEDULES[recipe.train.schedule]
    return model, Phase(
        name="float",
        epochs=recipe.train.epochs,
        step=step,
        validate=lambda: accuracy_on(predict, *validation),
        learning_rate=lambda done: recipe.train.learning_rate * schedule(done),
        variables=[*model.variables, *optimizer.variables],
    )


def to_float32(model: "keras.Model", recipe: Recipe, shape: tuple[int, int, int], num_classes: int) -> "keras.Model":
    """Return the trained network with float32 layers: quantize_model raises TypeError on bfloat16 ones (TFMOT 0.8.1)."""
    if recipe.train.precision == "float32":
        return model
    float32 = build_network(recipe.network.name, *shape, num_classes, recipe.network.options)
    float32.set_weights(model.get_weights())
    return float32
