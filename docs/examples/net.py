"""A small custom network: edgecnn train --network net.py:build."""

from tf_keras import Input, Model, layers


def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    return Model(inputs, layers.Dense(num_classes)(x))
