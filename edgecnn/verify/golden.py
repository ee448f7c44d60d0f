"""Golden vectors: images, and the outputs that every device must produce for them; and which export is faster here."""

import io
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from edgecnn import images as pixels
from edgecnn.bundle.manifest import GoldenImage, InputContract, ModelEntry
from edgecnn.errors import EngineError
from edgecnn.evaluate.answers import device_model, input_contract
from edgecnn.export import export_path
from edgecnn.files import npy, sha256
from edgecnn.region import whole_size
from edgecnn.runs import Run
from edgecnn.runtime.classifier import fitted
from edgecnn.runtime.engines import engine_text
from edgecnn.runtime.model import measure_interleaved
from edgecnn.tables import Struct, absent
from edgecnn.versions import processor

COUNT = 16


def golden_models(
    exports: Iterable[tuple[str, str, bytes]], contract: InputContract, images: np.ndarray, features: bool = False
) -> tuple[tuple[ModelEntry, ...], dict[str, bytes]]:
    """Return a bundle's entries for exports (format, precision, bytes), and its files: the models, and their outputs for `images`.

    `images` are `golden_images`, run with the engine that a device would use. With `features` the bundle detects strangers, and the
    features of models that output them are golden too.
    """
    entries: list[ModelEntry] = []
    files: dict[str, bytes] = {}
    for format_, precision, data in exports:
        model = device_model(data, format_, contract)
        outputs, given = model.outputs_and_features(images) if model.engine.features else (model.outputs(images), None)
        name = f"{precision}.{format_}"
        tolerance, unit, reason = tolerance_of(outputs, precision)
        entry = ModelEntry(
            file=f"models/{name}",
            format=format_,
            precision=precision,
            golden=f"golden/{name}.npy",
            golden_features=f"golden/{name}.features.npy" if features and given is not None else "",
            tolerance=tolerance,
            tolerance_unit=unit,
            tolerance_reason=reason,
            golden_engine=engine_text(model.engine),
        )
        entries.append(entry)
        files |= {entry.file: data, entry.golden: npy(outputs)}
        if features and given is not None:
            files[entry.golden_features] = npy(given)
    return tuple(entries), files


def tolerance_of(outputs: np.ndarray, precision: str) -> tuple[float, str, str]:
    """Return the largest allowed difference from golden outputs, its unit, and the reason."""
    if outputs.dtype != np.float32:
        return 1.0, "LSB", "kernels may round a tie the other way: one code is allowed, two are not"
    share, reason = 1e-3, "float32 sums depend on their order: a thousandth of the largest logit is allowed"
    if precision == "float16":
        share = 1e-2
        reason = (
            "float16 has 11 bits, and an engine may compute in float32: a hundredth of the largest logit is allowed"
        )
    return share * max(1.0, float(np.max(np.abs(outputs)))), "logit", reason


def golden_images(contract: InputContract, seed: int = 0) -> np.ndarray:
    """Draw uint8 (COUNT, height, width, channels), from flat to noise and black to white, so a bundle contains nobody's photos."""
    random = np.random.default_rng(seed)
    size = (contract.width, contract.height)
    images = np.empty((COUNT, contract.height, contract.width, contract.channels), np.uint8)
    for index in range(COUNT):
        cells = 2 + index
        for channel in range(contract.channels):
            coarse = random.integers(0, 256, (cells, cells), np.uint8)
            coarse.flat[random.integers(cells * cells)] = 255 * (index % 2)
            images[index, :, :, channel] = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return images


PHOTOS: tuple[tuple[str, tuple[int, int], str, dict[str, Any]], ...] = (
    ("wide.jpg", (157, 118), "RGB", {"quality": 85, "subsampling": "4:2:0"}),
    ("tall.jpg", (90, 142), "RGB", {"quality": 92, "subsampling": "4:4:4"}),
    ("turned.jpg", (96, 64), "RGB", {"quality": 85, "exif": "turned"}),
    ("grey.jpg", (101, 77), "L", {"quality": 80}),
    ("clear.png", (120, 83), "RGBA", {}),
    ("large.png", (333, 250), "L", {}),
    ("camera.jpg", (640, 480), "RGB", {"quality": 80, "subsampling": "4:2:2"}),
    ("phone.jpg", (1003, 751), "RGB", {"quality": 70, "subsampling": "4:2:0", "exif": "turned"}),
)
"""Golden photos: name, size (width, height), mode and Pillow's encoding options. `turned` ones have an EXIF orientation. The last two
are large enough for reduced decoding at inputs of up to 240 pixels."""


def golden_photos(contract: InputContract, seed: int = 0) -> tuple[dict[str, bytes], tuple[GoldenImage, ...]]:
    """Draw and encode golden photos. Returns files by name, and entries with hashes of the exact decoded and resized bytes."""
    random = np.random.default_rng(seed)
    files, entries = {}, []
    for name, size, mode, options in PHOTOS:
        coarse = random.integers(0, 256, (7, 9, len(mode)), np.uint8)
        drawn = Image.fromarray(coarse if len(mode) > 1 else coarse[:, :, 0]).resize(size, Image.Resampling.BICUBIC)
        save = dict(options)
        if save.get("exif"):
            save["exif"] = Image.Exif()
            save["exif"][pixels.EXIF_ORIENTATION] = 6
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG" if name.endswith(".jpg") else "PNG", **save)
        file = f"golden/encoded/{name}"
        files[file] = buffer.getvalue()
        least = whole_size(contract.height, contract.width, contract.region)
        decoded = pixels.decode(files[file], contract.channels, least)
        resized = fitted(decoded, contract)
        entries.append(
            GoldenImage(file=file, decoded_sha256=sha256(decoded.tobytes()), resized_sha256=sha256(resized.tobytes()))
        )
    return files, tuple(entries)


PRECISIONS = ("int8", "float32")
WARM_UP = 20
REPEATS = 200


class ExportTime(Struct):
    """Wall time of `n` calls with one image, in milliseconds: the median and the 90th percentile."""

    p50_ms: float
    p90_ms: float
    n: int


class Speed(Struct):
    """Times of int8 and float32, and `text`, their summary. If nothing was timed, `text` is the only field and gives the reason."""

    text: str
    measured: Mapping[str, ExportTime] | None = absent("By precision.")
    faster: str | None = absent("int8 or float32.")
    ratio: float | None = absent("int8 by float32, of the medians.")
    engine: str | None = absent("Name and version.")
    machine: str | None = absent("The processor.")


def time_exports(run: Run, format_: str) -> Speed:
    """Time a run's int8 and float32 files of a format: one image, one thread, interleaved."""
    paths = {precision: export_path(run, format_, precision) for precision in PRECISIONS}
    missing = [precision for precision, path in paths.items() if not path.exists()]
    if missing:
        first = f"{run.command('export')} --format {format_} --{missing[0]}"
        return Speed(text=f"not timed: no {format_} {missing[0]} to compare with. First: {first}")
    contract = input_contract(run)
    image = golden_images(contract)[:1]
    try:
        models = {name: device_model(path.read_bytes(), format_, contract) for name, path in paths.items()}
    except EngineError as error:
        return Speed(text=f"not timed: {error}")
    calls = {name: partial(model.logits, image) for name, model in models.items()}
    timings = measure_interleaved(calls, warmup=WARM_UP, repeats=REPEATS)
    int8, float32 = (timings[precision].p50_ms for precision in PRECISIONS)
    faster = "int8" if int8 < float32 else "float32"
    engine = f"{models['int8'].engine.name} {models['int8'].engine.version}"
    times = f"int8 {int8:.3f} ms, float32 {float32:.3f} ms (ratio {int8 / float32:.2f}) on {engine}"
    return Speed(
        text=f"{faster} is faster here: {times}; median of {REPEATS} calls with one image, one thread, interleaved",
        measured={name: ExportTime(**timing._asdict()) for name, timing in timings.items()},
        faster=faster,
        ratio=int8 / float32,
        engine=engine,
        machine=processor(),
    )
