"""Whether a user's own network can be trained quantization-aware: checked before training."""

from typing import TYPE_CHECKING, NamedTuple

from edgecnn.errors import ExportError, NetworkError, first_line
from edgecnn.train.qat_phase import fake_quantize

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "softmax", "tanh")
"""Activations within a layer that quantize; of others, tensorflow-model-optimization 0.8.1 silently leaves floats."""


class Refused(NamedTuple):
    """A layer that cannot be quantized: its name and class, and where it is that, its activation."""

    name: str
    kind: str


def refused_layers(model: "keras.Model") -> list[Refused]:
    """Return the layers of a model that the quantization toolkit can neither wrap nor fold into others, in the model's order."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs,
        default_8bit_quantize_registry,
        default_8bit_quantize_scheme,
    )

    from edgecnn.networks.keras import keras

    nested = [
        Refused(layer.name, "a model within the model") for layer in model.layers if isinstance(layer, keras.Model)
    ]
    if nested:
        return nested
    refused: dict[str, Refused] = {}
    for layer in model.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if activation not in ACTIVATIONS:
            refused[layer.name] = Refused(layer.name, f"{type(layer).__name__} with activation {activation}")

    class Registry(default_8bit_quantize_registry.Default8BitQuantizeRegistry):
        """Takes every layer, and notes those that the toolkit's own would not."""

        def supports(self, layer) -> bool:
            if not super().supports(layer):
                refused.setdefault(layer.name, Refused(layer.name, type(layer).__name__))
            return True

        def get_quantize_config(self, layer):
            if super().supports(layer):
                return super().get_quantize_config(layer)
            return default_8bit_quantize_configs.NoOpQuantizeConfig()

    class Scheme(default_8bit_quantize_scheme.Default8BitQuantizeScheme):
        def get_quantize_registry(self):
            return Registry()

    toolkit = tfmot.quantization.keras
    with toolkit.quantize_scope():
        toolkit.quantize_apply(toolkit.quantize_annotate_model(model), Scheme())
    order = {layer.name: index for index, layer in enumerate(model.layers)}
    return sorted(refused.values(), key=lambda item: order.get(item.name, len(order)))


def check_quantizable(model: "keras.Model", name: str, scale: float, zero_point: int) -> None:
    """Check that a fresh float32 network can be fake-quantized and converted to a file that is int8 throughout.

    Raises:
        NetworkError: naming the layers that cannot, and what to do.
    """
    from edgecnn.export import tflite

    try:
        refused = refused_layers(model)
        if not refused:
            tflite.int8(fake_quantize(model, scale, zero_point))
    except (ExportError, RuntimeError, ValueError, TypeError) as error:
        reason = first_line(error)
        raise NetworkError(
            f"{name} does not support quantization-aware training: {reason}", advice="quantize_after"
        ) from error
    if refused:
        named = ", ".join(f"{layer.name} ({layer.kind})" for layer in refused[:6])
        more = f" and {len(refused) - 6} more" if len(refused) > 6 else ""
        raise NetworkError(
            f"{name} does not support quantization-aware training: {named}{more} cannot be quantized.",
            advice="quantize_after",
        )
