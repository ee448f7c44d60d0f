"""A model behind its input contract: uint8 pixels in, logits out, whatever the engine and the model's types; and how long calls take."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from edgecnn.bundle.manifest import InputContract, Manifest
from edgecnn.errors import EngineError, ImageError
from edgecnn.pixels import to_codes, to_real
from edgecnn.region import Region
from edgecnn.runtime.engines import Engine


def bundle_model(engine: Engine, manifest: Manifest, region: Region | None = None) -> "Model":
    """Wrap a bundle's opened model in the bundle's contract: its input, and one output per label. Errors as in `Model`."""
    contract = manifest.input if region is None else replace(manifest.input, region=region)
    stranger, features = manifest.stranger, engine.features
    if stranger and features and features.shape[1:] != (stranger.length,):
        raise EngineError(
            f"the model's features have shape {features.shape[1:]}; those of the bundle's known images have ({stranger.length},)"
        )
    return Model(engine, contract, len(manifest.labels))


class Model:
    """An opened model that reads pixels."""

    def __init__(self, engine: Engine, contract: InputContract, num_classes: int | None = None) -> None:
        """Check that a model's input matches the contract: int8 (codes), uint8 (pixels) or float32 (real values). EngineError if not.

        `num_classes` None accepts any number of classes; the output must have one value per class.
        """
        self.engine = engine
        self.contract = contract
        self._shape = (contract.height, contract.width, contract.channels)
        tensor = engine.input
        if tensor.shape[1:] != self._shape:
            raise EngineError(
                f"the model reads images of shape {tensor.shape[1:]}; the contract requires {self._shape}"
            )
        if tensor.dtype not in (np.int8, np.uint8, np.float32):
            raise EngineError(f"the model reads {tensor.dtype}; expected int8, uint8 or float32")
        if tensor.dtype != np.float32:
            zero_point = contract.zero_point + (128 if tensor.dtype == np.uint8 else 0)
            if not np.isclose(tensor.scale, contract.scale, rtol=1e-6, atol=0) or tensor.zero_point != zero_point:
                raise EngineError(
                    f"the model's input has scale {tensor.scale:.8g} and zero point {tensor.zero_point}; "
                    f"the contract requires {contract.scale:.8g} and {zero_point}"
                )
        if engine.output.dtype != np.float32 and not engine.output.scale > 0:
            raise EngineError(f"the model's {engine.output.dtype} output has no scale")
        self._num_classes = num_classes
        if num_classes is not None and engine.output.shape[1:] != (num_classes,):
            raise EngineError(
                f"the model's output has shape {engine.output.shape[1:]}, but {num_classes} labels need ({num_classes},)"
            )
        self._scale, self._zero_point = np.float32(engine.output.scale), np.float32(engine.output.zero_point)

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on uint8 pixels (n, height, width, channels); return the raw output, int8, uint8 or float32 (n, num_classes)."""
        return self._checked(self.engine.run(self._inputs(pixels)), len(pixels))

    def outputs_and_features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the model as `outputs` does; return the raw features as well, shape (n, length)."""
        outputs, features = self.engine.run_both(self._inputs(pixels))
        return self._checked(outputs, len(pixels)), features

    def _inputs(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1:] != self._shape:
            raise EngineError(f"pixels have shape {pixels.shape}; expected (n, {', '.join(map(str, self._shape))})")
        if pixels.dtype != np.uint8:
            raise ImageError(f"pixels must be uint8; received {pixels.dtype}")
        if self.engine.input.dtype == np.uint8:
            return pixels
        if self.engine.input.dtype == np.int8:
            return to_codes(pixels)
        return to_real(pixels, self.contract.scale, self.contract.zero_point)

    def _checked(self, outputs: np.ndarray, count: int) -> np.ndarray:
        if self._num_classes is not None and outputs.shape != (count, self._num_classes):
            raise EngineError(
                f"the model returned outputs of shape {outputs.shape} for {count} images; expected {self._num_classes} per image"
            )
        return outputs

    def dequantize(self, outputs: np.ndarray) -> np.ndarray:
        return dequantized(outputs, self._scale, self._zero_point)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on pixels and return float32 logits, shape (n, num_classes). See `outputs`."""
        return self.dequantize(self.outputs(pixels))

    def logits_and_features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the model as `logits` does; return the features as well, float32 (n, length)."""
        outputs, features = self.outputs_and_features(pixels)
        tensor = self.engine.features
        assert tensor is not None
        return self.dequantize(outputs), dequantized(features, np.float32(tensor.scale), np.float32(tensor.zero_point))


def dequantized(codes: np.ndarray, scale: np.float32, zero_point: np.float32) -> np.ndarray:
    """Return the real values of codes, float32: scale * (code - zero_point). Float values are returned unchanged."""
    if codes.dtype == np.float32:
        return codes
    values = codes.astype(np.float32)  # faster than subtracting with a dtype
    values -= zero_point
    values *= scale
    return values


class Timing(NamedTuple):
    """Wall time of `n` calls in milliseconds: the median and the 90th percentile."""

    p50_ms: float
    p90_ms: float
    n: int


def measure_interleaved(calls: Mapping[str, Callable[[], Any]], *, warmup: int, repeats: int) -> dict[str, Timing]:
    """Time several calls, interleaved, in a new random order each round, because a call that follows a large one finds cold caches."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, received {repeats}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, turns in interleave(list(calls), warmup + repeats, block=1):
        start = time.perf_counter()
        calls[name]()
        if turns[0] >= warmup:
            times[name].append((time.perf_counter() - start) * 1000)
    return {
        name: Timing(float(np.median(values)), float(np.percentile(values, 90)), repeats)
        for name, values in times.items()
    }


def interleave(names: Sequence[str], repeats: int, block: int) -> Iterator[tuple[str, range]]:
    """Yield names with their call numbers, in blocks that let caches settle: each name once per round, in random order."""
    import random  # here, since a device's start needs none

    drawn = random.Random(0)
    for start in range(0, repeats, block):
        order = list(names)
        drawn.shuffle(order)
        for name in order:
            yield name, range(start, min(start + block, repeats))
