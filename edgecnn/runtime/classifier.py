"""Images to labels."""

from collections.abc import Iterable, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.bundle.file import Bundle, read_bundle
from edgecnn.bundle.manifest import InputContract
from edgecnn.errors import ImageError
from edgecnn.labels import plural
from edgecnn.pixels import resize
from edgecnn.region import EXPECTED, WHOLE, Region, is_region, region_text, whole_size
from edgecnn.runtime.decision import Decision, Score, Strangers, decide, softmax
from edgecnn.runtime.default import BundleChoice, choose_model, find_bundle
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model, bundle_model

Picture = str | PathLike[str] | bytes | np.ndarray | Image.Image
"""A path, an encoded image's bytes, a uint8 array (height, width, channels) in RGB or (height, width) in grey, or a Pillow image."""

BATCH = 64
"""How many images `Classifier.classify_batch` passes to the engine at a time."""


class Result(NamedTuple):
    """The decision on one image (`edgecnn.runtime.decision.Decision`), and the time of each step: decode, preprocess and infer.

    `features` is the input of the model's last layer, float32 (length,), if the classifier `gives_features`.
    """

    top: tuple[Score, ...]
    decision: str
    reason: str | None
    lead: float
    latency_ms: dict[str, float]
    features: np.ndarray | None = None


class Classifier:
    """A bundle's model, ready to classify. `about` describes it and why it was chosen. Threads may share a classifier.

    Do not fork while a thread is classifying; start other processes with `spawn`.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        about: str = "",
        model_sha256: str = "",
        strangers: Strangers | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model
        self.name = bundle.manifest.name
        self.labels = bundle.manifest.labels
        self.temperature = np.float32(bundle.manifest.temperature)
        self.threshold = bundle.manifest.threshold
        self.about = about
        self.model_sha256 = model_sha256
        self.region = model.contract.region
        self.strangers = strangers
        self.gives_features = strangers is not None
        """Whether results include features, which the model must have (`model.engine.features`)."""

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] | BundleChoice | None = None,
        *,
        engine: str | None = None,
        provider: str | None = None,
        precision: str | None = None,
        num_threads: int = 1,
        region: Region | None = None,
        strangers: bool | None = None,
    ) -> "Classifier":
        """Load a bundle and open one of its models, as chosen by `find_bundle` and `choose_model` of `edgecnn.runtime.default`.

        `region` is the part to classify: (x, y, width, height), as fractions of the upright image. `strangers` allows the decision
        "stranger" for out-of-distribution images, if the bundle supports it. Both default to the bundle's settings.

        BundleError for a missing or damaged bundle; ValueError, UnknownNameError, EngineError or ProviderError for an invalid request.
        """
        if region is not None and not is_region(region):
            raise ValueError(f"region must be {EXPECTED}; received {region!r}")
        choice = path if isinstance(path, BundleChoice) else find_bundle(Path(path) if path is not None else None)
        bundle = read_bundle(choice.path)
        name, entry = choose_model(bundle.manifest, engine=engine, provider=provider, precision=precision)
        opened = open_engine(name, bundle.files[entry.file], entry.format, num_threads=num_threads, provider=provider)
        about = (
            f"model {bundle.manifest.name}: {choice.path} ({choice.reason}), "
            f"{entry.precision} .{entry.format} on {opened.name} {opened.version} "
            f"({opened.provider}, {plural(num_threads, 'thread')})"
        )
        about += region_about(bundle.manifest.input.region, region)
        model = bundle_model(opened, bundle.manifest, region)
        limit, found = bundle.manifest.stranger, None
        if strangers is None:
            strangers = limit is not None and limit.decide
        if strangers and limit and opened.features is not None:
            found = Strangers(limit, bundle.known_features())
        elif strangers:
            missing = "model has no features" if limit else "bundle has no limit for them"
            about += f"; strangers are not recognised: the {missing}"
        return cls(bundle, model, about, bundle.manifest.files[entry.file], found)

    def classify(
        self,
        image: Picture,
        top_k: int = 3,
        threshold: float | None = None,
        margin: float = 0.0,
        fit: str | None = None,
        rotation: int = 0,
    ) -> Result:
        """Classify one image of any size, fitted to the model's input.

        `top_k`, `threshold` and `margin` are as in `decide`; `fit` is one of FITS, `rotation` one of ROTATIONS. Threshold and fit
        default to the bundle's.

        ImageError if the image cannot be decoded or has the wrong shape, dtype or mode; TypeError or ValueError for other bad arguments.
        """
        pixels, latency_ms = self._prepare(image, fit, rotation)
        start = perf_counter()
        decisions, features = self._decide(pixels[np.newaxis], top_k, threshold, margin)
        latency_ms["infer"] = (perf_counter() - start) * 1000
        return Result(*decisions[0], latency_ms, features[0])

    def classify_batch(
        self,
        images: Iterable[Picture],
        top_k: int = 3,
        threshold: float | None = None,
        margin: float = 0.0,
        fit: str | None = None,
        rotation: int = 0,
    ) -> list[Result]:
        """Classify images, BATCH at a time. `latency_ms["infer"]` is the batch's mean; an ImageError begins with the image's index."""
        results: list[Result] = []
        remaining = iter(images)
        while batch := list(islice(remaining, BATCH)):
            prepared = []
            for index, image in enumerate(batch, len(results)):
                try:
                    prepared.append(self._prepare(image, fit, rotation))
                except ImageError as error:
                    raise ImageError(f"image {index}: {error}") from None
            start = perf_counter()
            stacked = np.stack([pixels for pixels, _ in prepared])
            decisions, features = self._decide(stacked, top_k, threshold, margin)
            each_ms = (perf_counter() - start) * 1000 / len(batch)
            results += [
                Result(*decision, latency_ms | {"infer": each_ms}, row)
                for decision, (_, latency_ms), row in zip(decisions, prepared, features, strict=True)
            ]
        return results

    def _prepare(self, image: Picture, fit: str | None, rotation: int) -> tuple[np.ndarray, dict[str, float]]:
        contract = self.model.contract
        start = perf_counter()
        picture = decoded(image, contract, rotation)
        after_decode = perf_counter()
        pixels = fitted(picture, contract, fit, rotation)
        end = perf_counter()
        return pixels, {"decode": (after_decode - start) * 1000, "preprocess": (end - after_decode) * 1000}

    def _decide(
        self, pixels: np.ndarray, top_k: int, threshold: float | None, margin: float
    ) -> tuple[list[Decision], Sequence[np.ndarray | None] | np.ndarray]:
        """Run the model on uint8 (n, height, width, channels); return each image's decision, and its features if `gives_features`."""
        threshold = self.threshold if threshold is None else threshold
        if not self.gives_features:
            rows = [softmax(row / self.temperature) for row in self.model.logits(pixels)]
            return [decide(scores, self.labels, top_k, threshold, margin) for scores in rows], [None] * len(rows)
        logits, features = self.model.logits_and_features(pixels)
        scores = softmax(logits / self.temperature)
        refused = [False] * len(scores)
        if self.strangers is not None:
            refused = self.strangers.refused(scores.max(axis=1), features).tolist()
        pairs = zip(scores, refused, strict=True)
        return [decide(row, self.labels, top_k, threshold, margin, stranger) for row, stranger in pairs], features


def region_about(own: Region, requested: Region | None) -> str:
    if requested is None or requested == own:
        return "" if own == WHOLE else f"; region {region_text(own)}, the bundle's"
    return f"; region {region_text(requested)}" + ("" if own == WHOLE else f", not the bundle's {region_text(own)}")


def fitted(
    picture: Image.Image | np.ndarray, contract: InputContract, fit: str | None = None, rotation: int = 0
) -> np.ndarray:
    """Resize a picture from `decoded` to the contract's pixels."""
    size, fit = (contract.height, contract.width), contract.fit if fit is None else fit
    return resize(picture, *size, fit, rotation, contract.region, contract.resampling)


def decoded(image: Picture, contract: InputContract, rotation: int = 0) -> Image.Image | np.ndarray:
    """Decode an image, upright by its EXIF, in the contract's channels. A large JPEG is reduced as far as the later rotation allows."""
    channels = contract.channels
    if isinstance(image, np.ndarray):
        shape = image.shape
        depth = shape[2:]
        if image.dtype != np.uint8 or not image.size or len(shape) < 2 or depth not in ((), (1,), (3,), (4,)):
            raise ImageError(
                "an image array must be uint8, of shape (height, width) or (height, width, 1, 3 or 4); "
                f"received {image.dtype} {shape}"
            )
        if depth == (channels,):
            return image
        return images.to_mode(Image.fromarray(image[:, :, 0] if depth == (1,) else image), channels)
    if isinstance(image, Image.Image):
        return images.to_mode(images.upright(image), channels)
    if isinstance(image, str | PathLike):
        image = images.read_file(image)
    elif not isinstance(image, bytes):  # such as a number, which `open` would treat as a file descriptor
        raise TypeError(
            "an image must be a path, the bytes of an encoded image, a uint8 array or a Pillow image; "
            f"received {type(image).__name__}"
        )
    return images.decode(image, channels, whole_size(contract.height, contract.width, contract.region, rotation))
