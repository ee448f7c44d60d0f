"""Golden vectors: images and the outputs that every device must give for them."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from edgecnn.bundle.manifest import InputContract
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model

COUNT = 32
INT8_TOLERANCE = 1.0
INT8_REASON = "kernels may round a tie the other way: one code is allowed, two are not"
FLOAT_TOLERANCE = 1e-3
FLOAT_REASON = "float32 sums depend on their order: a thousandth of the largest logit is allowed"
HALF_TOLERANCE = 1e-2
HALF_REASON = "float16 has 11 bits, and an engine may compute in float32: a hundredth of the largest logit is allowed"


class Golden(NamedTuple):
    """Expected outputs of one model: raw, shape (n, num_classes), with the largest difference allowed and why."""

    outputs: np.ndarray
    tolerance: float
    unit: str
    reason: str
    engine: str


def golden_images(contract: InputContract, seed: int = 0) -> np.ndarray:
    """Draw golden images: blotches of every size, from flat to noise, that reach black and white.

    They are drawn, not taken from the data, so that a bundle carries nobody's photographs.

    Args:
        contract: for the shape.
        seed: of the drawing.

    Returns:
        uint8 array, shape (COUNT, height, width, channels).
    """
    random = np.random.default_rng(seed)
    size = (contract.width, contract.height)
    images = np.empty((COUNT, contract.height, contract.width, contract.channels), np.uint8)
    for index in range(COUNT):
        cells = 2 + index % 16
        for channel in range(contract.channels):
            coarse = random.integers(0, 256, (cells, cells), np.uint8)
            coarse.flat[random.integers(cells * cells)] = 255 * (index % 2)
            images[index, :, :, channel] = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return images


def golden_outputs(
    model: bytes, format_: str, contract: InputContract, images: np.ndarray, precision: str = ""
) -> Golden:
    """Run a model over the golden images by the engine that a device would take, one thread.

    Args:
        model: a TFLite or ONNX file's bytes.
        format_: "tflite" or "onnx".
        contract: the models' input.
        images: from `golden_images`.
        precision: of the model; "float16" is allowed more than float32.
    """
    engine = open_engine(None, model, format_, num_threads=1)
    outputs = Model(engine, contract).outputs(images)
    made_by = f"{engine.name} {engine.version} ({engine.provider})"
    if outputs.dtype != np.float32:
        return Golden(outputs, INT8_TOLERANCE, "LSB", INT8_REASON, made_by)
    largest = max(1.0, float(np.max(np.abs(outputs))))
    if precision == "float16":
        return Golden(outputs, HALF_TOLERANCE * largest, "logit", HALF_REASON, made_by)
    return Golden(outputs, FLOAT_TOLERANCE * largest, "logit", FLOAT_REASON, made_by)
