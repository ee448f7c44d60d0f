"""Checks before training whether a user's own network supports quantization-aware training."""

from typing import TYPE_CHECKING

from edgecnn.errors import ExportError, NetworkError, first_line
from edgecnn.train.qat_phase import fake_quantize

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "softmax", "tanh")
"""Activations inside a layer that can be quantized. For others, tensorflow-model-optimization 0.8.1 silently leaves floats."""


def refused_layers(model: "keras.Model") -> dict[str, str]:
    """Return the type of each layer that the quantization toolkit can neither wrap nor fold into others, in model order."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs,
        default_8bit_quantize_registry,
        default_8bit_quantize_scheme,
    )

    from edgecnn.networks.keras import keras

    nested = {layer.name: "a model within the model" for layer in model.layers if isinstance(layer, keras.Model)}
    if nested:
        return nested
    refused: dict[str, str] = {}
    for layer in model.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if activation not in ACTIVATIONS:
            refused[layer.name] = f"{type(layer).__name__} with activation {activation}"

    class Registry(default_8bit_quantize_registry.Default8BitQuantizeRegistry):
        def supports(self, layer) -> bool:
            if not super().supports(layer):
                refused.setdefault(layer.name, type(layer).__name__)
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
    return dict(sorted(refused.items(), key=lambda item: order.get(item[0], len(order))))


def check_quantizable(model: "keras.Model", name: str, scale: float, zero_point: int) -> None:
    """Raise NetworkError unless a fresh float32 network can be fake-quantized and converted to a fully int8 file."""
    from edgecnn.export import tflite

    try:
        refused = [f"{layer} ({kind})" for layer, kind in refused_layers(model).items()]
        if not refused:
            tflite.int8(fake_quantize(model, scale, zero_point), signature=False)
            return
        more = f" and {len(refused) - 6} more" if len(refused) > 6 else ""
        reason = f"{', '.join(refused[:6])}{more} cannot be quantized."
    except (ExportError, RuntimeError, ValueError, TypeError) as error:
        reason = f"{first_line(error).removesuffix('.')}."
    raise NetworkError(
        f"{name} does not support quantization-aware training: {reason} "
        "Replace these parts, or quantize after training instead: --set qat.method=ptq"
    )
