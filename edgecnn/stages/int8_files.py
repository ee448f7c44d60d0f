"""A run's int8 files during training: made and run in memory, for training to choose among."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecnn.data import Split
from edgecnn.data.decoding import balanced
from edgecnn.errors import ExportError
from edgecnn.evaluate.answers import Progress, contract_of, device_model, in_chunks
from edgecnn.export import tflite
from edgecnn.export.feature_output import with_features
from edgecnn.export.representative import IMAGES
from edgecnn.recipe import Recipe
from edgecnn.runtime.model import Model
from edgecnn.versions import processors


@dataclass(frozen=True)
class Int8Files:
    """Implements `edgecnn.train.best.Int8`: the answers that the files of `edgecnn export` would give, on a device's engine."""

    recipe: Recipe

    def fake_quantized(self, model: Any, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, num_classes), of a fake-quantized model's int8 TFLite file; ExportError if the file has floats."""
        return self._logits(tflite.int8(model, signature=False), images)

    def post_training(self, model: Any, train: Split, images: np.ndarray) -> np.ndarray | None:
        """Return the same for a float model, calibrated as for an export; None if that fails, unless the recipe has this method."""
        recipe = self.recipe
        chosen = train.images[balanced(train.classes, IMAGES, recipe.seed)]
        drawn = tflite.RepresentativeDataset(chosen, recipe.input_scale, recipe.input_zero_point)
        try:
            data = tflite.int8_post_training(model, drawn, signature=False)
        except ExportError:
            if recipe.qat.method == "ptq":
                raise
            return None
        return self._logits(data, images)

    def features(self, model: Any, images: np.ndarray, progress: Progress) -> np.ndarray:
        """Return the features that a fake-quantized model's int8 file computes, as the values of their codes: float32 (n, length)."""
        device = self._device(with_features(tflite.int8(model, signature=False)), images)
        return in_chunks(lambda part: device.logits_and_features(part)[1], images, "features in int8", progress)

    def _logits(self, data: bytes, images: np.ndarray) -> np.ndarray:
        return in_chunks(self._device(data, images).logits, images, "validation", lambda what, done, total: None)

    def _device(self, data: bytes, images: np.ndarray) -> Model:
        return device_model(data, "tflite", contract_of(self.recipe, images.shape[1:]), processors())
