"""Frozen BatchNorm in a training step at next to no cost: computed on a convolution's kernel instead of on all that it gives.

A step of a fake-quantized resnet8 spent a tenth of its time in BatchNorm layers that do not train. Quirks of
tensorflow-model-optimization 0.8.1 are handled here; look again when it is upgraded.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from edgecnn.networks.keras import keras, tf


@contextlib.contextmanager
def norms_in_kernels(student: "keras.Model") -> Iterator[None]:
    """Trace a fake-quantized model with its frozen BatchNorm layers folded into the convolutions that they alone read.

    With g = gamma / sqrt(variance + epsilon), norm(x * kernel + bias) = x * (kernel g) + (bias - mean) g + beta, the kernel quantized
    before: the same values and gradients but for the rounding of sums. Use it around the call of the model within a tf.function.

    Args:
        student: from `edgecnn.train.qat_phase.fake_quantize`; the same again after the block.
    """
    changed = []
    for wrapper in student.layers:
        convolution = _folds(wrapper)
        if convolution is not None:
            changed += [convolution, wrapper.layer]
            # past Keras, which would look for variables in what is set
            object.__setattr__(convolution, "call", _Folded(convolution, wrapper.layer))
            object.__setattr__(wrapper.layer, "call", tf.identity)
    try:
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


class _Folded:
    """What a convolution is called by: with the BatchNorm behind it."""

    def __init__(self, convolution: Any, norm: Any) -> None:
        self.convolution = convolution
        self.norm = norm

    def __call__(self, inputs: Any) -> Any:
        layer, norm = self.convolution, self.norm
        factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            factor *= norm.gamma
        bias = (layer.bias - norm.moving_mean if layer.use_bias else -norm.moving_mean) * factor
        if norm.center:
            bias += norm.beta
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            # the output channels are the kernel's last two dimensions together
            kernel = layer.depthwise_kernel * tf.reshape(factor, layer.depthwise_kernel.shape[2:])
            outputs = keras.backend.depthwise_conv2d(
                inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
            )
        else:
            outputs = layer.convolution_op(inputs, layer.kernel * factor)
        return tf.nn.bias_add(outputs, bias)


def _folds(wrapper: Any) -> Any:
    """Return the convolution that a wrapped, frozen BatchNorm alone reads, unquantized; None if there is none."""
    norm: Any = getattr(wrapper, "layer", None)
    if type(norm) is not keras.layers.BatchNormalization or norm.trainable or len(wrapper.inbound_nodes) != 1:
        return None
    before = wrapper.inbound_nodes[0].inbound_layers
    layer: Any = getattr(before, "layer", None)
    if type(layer) not in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D):
        return None
    activation = getattr(layer.activation, "activation", layer.activation)
    passes = activation is keras.activations.linear or type(activation).__name__ == "NoOpActivation"
    alone = len(before.inbound_nodes) == len(before.outbound_nodes) == 1
    return layer if passes and alone and layer.data_format == "channels_last" else None
