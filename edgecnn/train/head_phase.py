"""Starting from a trained network: its body is kept, and a new head is trained alone before the float phase trains everything."""

import dataclasses

import numpy as np

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import model_from_bytes, predictor, real_input
from edgecnn.recipe import Recipe
from edgecnn.train.distribute import stepper
from edgecnn.train.float_phase import accuracy_on, build_at, build_optimizer, objective, right_answers
from edgecnn.train.loop import Phase
from edgecnn.train.schedule import cosine

HEAD = "head"
"""Name of the phase."""


def released(recipe: Recipe) -> Recipe:
    """Return the recipe of the float phase: of one that starts from a trained network, with the lower rate."""
    if not recipe.init.source:
        return recipe
    rate = recipe.train.learning_rate * recipe.init.body_rate
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, learning_rate=rate))


def take_body(model: "keras.Model", trained: "keras.Model") -> "keras.layers.Layer":
    """Copy a trained network's weights into another of the same layers, all but the last layer's: the head keeps its own.

    Args:
        model: the network that takes them; its classes may be others, and its input's size.
        trained: the network that gives them.

    Returns:
        The head: the model's last layer that has weights.

    Raises:
        NetworkError: if the bodies differ; the message names the first layer that does.
    """
    mine = [layer for layer in model.layers if layer.weights]
    theirs = [layer for layer in trained.layers if layer.weights]
    for layer, other in zip(mine[:-1], theirs[:-1], strict=False):
        shapes = [[tuple(weight.shape) for weight in item.weights] for item in (layer, other)]
        if type(layer).__name__ != type(other).__name__ or shapes[0] != shapes[1]:
            raise NetworkError(
                f"cannot start from that network: its layer {other.name} has weights {shapes[1]}, but {layer.name} here has {shapes[0]}. "
                "Use its network, options, channels and input size, which apply if you give none."
            )
    if len(mine) != len(theirs):
        raise NetworkError(
            f"cannot start from that network: it has {len(theirs)} layers with weights, but this one has {len(mine)}. "
            "Use its network and input size, which apply if you give none."
        )
    for layer, other in zip(mine[:-1], theirs[:-1], strict=True):
        layer.set_weights(other.get_weights())
    return mine[-1]


def head_phase(
    recipe: Recipe,
    shape: tuple[int, int, int],
    num_classes: int,
    validation: tuple[np.ndarray, np.ndarray],
    weights: bytes,
) -> tuple["keras.Model", Phase]:
    """Build the network on a trained body and the phase that trains its head alone.

    The body works as in inference, BatchNorm by its stored averages, and the learning rate falls from the recipe's along half a cosine.

    Args:
        recipe: the whole recipe; its seed draws the head.
        shape: (height, width, channels) of the input.
        num_classes: length of the logits.
        validation: uint8 images (n, height, width, channels) and their classes (n,).
        weights: the float model to start from, from `origin.init_weights`.

    Returns:
        The model and the phase.

    Raises:
        NetworkError: if the bodies differ: see `take_body`.
    """
    keras.utils.set_random_seed(recipe.seed)
    model = build_at(recipe.train.precision, recipe.network, shape, num_classes)
    head = take_body(model, model_from_bytes(weights))
    optimizer = build_optimizer(recipe.train)
    optimizer.build(head.trainable_variables)

    loss_of = objective(recipe.train, num_classes)

    def update(images, classes):
        inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(head.trainable_variables)
            logits = tf.cast(model(inputs, training=False), tf.float32)
            loss = loss_of(classes, logits, None)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, head.trainable_variables), head.trainable_variables, strict=True)
        )
        return loss, right_answers(logits, classes)

    predict = predictor(model, recipe.input_scale, recipe.input_zero_point)
    return model, Phase(
        name=HEAD,
        epochs=recipe.init.frozen_epochs,
        step=stepper(None, update, optimizer.learning_rate.assign),
        validate=lambda: accuracy_on(predict, *validation),
        learning_rate=lambda done: recipe.train.learning_rate * cosine(done),
        variables=[*head.variables, *optimizer.variables],
    )
