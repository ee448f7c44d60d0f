"""The quantization-aware phase: ranges calibrated first, then the fake-quantized network distilled from the float one.

Quirks of tensorflow-model-optimization 0.8.1 are handled here; look again when it is upgraded.
"""

import numpy as np

from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import Recipe
from edgecnn.train.float_phase import MOMENTUM, accuracy_on
from edgecnn.train.loop import Phase
from edgecnn.train.schedule import cosine


def fake_quantize(model: "keras.Model", scale: float, zero_point: int) -> "keras.Model":
    """Wrap a float model for quantization-aware training, its input range pinned to the input contract.

    Args:
        model: a float32 tf_keras functional model; its weights are copied.
        scale, zero_point: of the input code; codes -128 to 127 span the pinned range.

    Returns:
        The fake-quantized model, BatchNorm frozen.
    """
    import tensorflow_model_optimization as tfmot

    quantized = tfmot.quantization.keras.quantize_model(model)
    entry = quantized.layers[1]
    # The input quantizer only ever widens its range, and pixels cannot exceed this one: it stays pinned.
    entry.quantizer_vars["min_var"].assign((-128 - zero_point) * scale)
    entry.quantizer_vars["max_var"].assign((127 - zero_point) * scale)
    set_batch_norm(quantized, trainable=False)
    return quantized


def set_batch_norm(model: "keras.Model", *, trainable: bool) -> None:
    """Freeze or release a fake-quantized model's BatchNorm layers.

    They are frozen while it trains and released before it is stored: of a frozen wrapped layer, Keras would store weights twice,
    which HDF5 refuses.
    """
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if isinstance(inner, keras.layers.BatchNormalization):
            inner.trainable = layer.trainable = trainable


def qat_phase(
    recipe: Recipe, teacher: "keras.Model", student: "keras.Model", validation: tuple[np.ndarray, np.ndarray]
) -> Phase:
    """Return the phase that trains the fake-quantized `student` to answer as `teacher` does.

    The loss is the cross-entropy between the two softmaxes at the recipe's temperature T, times T squared.

    Args:
        recipe: the whole recipe.
        teacher: the float model; not changed.
        student: from `fake_quantize`, calibrated.
        validation: uint8 images (n, height, width, channels) and their classes (n,).

    Source: Hinton et al. 2015, equation 2 (arXiv:1503.02531).
    """
    temperature = recipe.qat.distillation_temperature
    optimizer = keras.optimizers.SGD(recipe.qat.learning_rate, momentum=MOMENTUM)
    optimizer.build(student.trainable_variables)

    @tf.function(reduce_retracing=True)
    def train_step(images, classes, learning_rate):
        optimizer.learning_rate.assign(learning_rate)
        inputs = real_input(images, recipe.input_scale, recipe.input_zero_point)
        wanted = tf.nn.softmax(teacher(inputs, training=False) / temperature)
        with tf.GradientTape() as tape:
            logits = student(inputs, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(wanted, logits / temperature)
            loss = tf.reduce_mean(losses) * temperature**2
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == classes, tf.float32))
        return loss, right

    def step(images: np.ndarray, classes: np.ndarray, learning_rate: float):
        return train_step(tf.constant(images), tf.constant(classes), tf.constant(learning_rate, tf.float32))

    predict = predictor(student, recipe.input_scale, recipe.input_zero_point)
    return Phase(
        name="qat",
        epochs=recipe.qat.epochs,
        step=step,
        validate=lambda: accuracy_on(predict, *validation),
        learning_rate=lambda done: recipe.qat.learning_rate * cosine(done),
        variables=[*student.variables, *optimizer.variables],
    )
