"""Replay a bundle's golden vectors: does this device reproduce the bundle's answers?"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgecnn import images
from edgecnn.bundle.file import Bundle
from edgecnn.bundle.manifest import ModelEntry
from edgecnn.errors import EngineError, ImageError, SelftestError
from edgecnn.files import sha256
from edgecnn.region import whole_size
from edgecnn.runtime.child import isolated
from edgecnn.runtime.classifier import fitted
from edgecnn.runtime.engines import ENGINES, engines_for, first_installed, is_installed, known_engine, open_engine
from edgecnn.runtime.model import bundle_model

OTHER_KERNELS = 2.0
"""Codes allowed beyond a bundle's tolerance if other kernels made the golden outputs. tflite-runtime differed from XNNPACK by up to three
codes on a residual network, two on a plain one.
"""

LIMIT_S = 60.0
"""The time limit for one model in a separate process. A Raspberry Pi needs less than a second for each shipped model."""

TOTAL = 5
"""The time limit for all of a bundle's models and images in separate processes, as a multiple of the limit for one model."""


class SelftestRow(NamedTuple):
    """One model on one engine.

    `passed` is None if nothing was checked. `note` explains that, or why the engine could not run the model. `largest_difference`
    and `allowed` are in `unit` (LSB or logit); `top1_changes` counts images whose best class differs.
    """

    model: str
    engine: str = ""
    version: str = ""
    provider: str = ""
    images: int = 0
    largest_difference: float = 0.0
    unit: str = ""
    allowed: float = 0.0
    top1_changes: int = 0
    passed: bool | None = None
    note: str = ""


class Layer(NamedTuple):
    """A step before the model that must be exact: `layer` is "decode" (encoded image to pixels) or "resize" (to the model's input).

    `images` counts the golden images that were checked; `differing` names those that were not exact.
    """

    layer: str
    images: int
    differing: tuple[str, ...]
    passed: bool


class SelftestReport(NamedTuple):
    """A self-test's result: `passed` if at least one model was checked and every check passed."""

    rows: tuple[SelftestRow, ...]
    passed: bool
    layers: tuple[Layer, ...] = ()


def selftest(
    bundle: Bundle,
    engines: Sequence[str] | None = None,
    num_threads: int = 1,
    apart: bool = False,
    limit_s: float = LIMIT_S,
) -> SelftestReport:
    """Run every model of a bundle over the golden images, on every installed engine for its format or only on `engines`.

    `apart` opens each model and decodes the photos in a separate process. A crash there, or exceeding the memory or `limit_s` seconds
    per model, is a failure.
    """
    for name in engines or ():
        known_engine(name)
        first_installed([name])
    chosen = list(engines or ENGINES)
    end = time.monotonic() + TOTAL * limit_s
    rows: list[SelftestRow] = []
    for model in bundle.manifest.models:
        able = [name for name in engines_for(model.format) if name in chosen]
        installed = [name for name in able if is_installed(name)]
        for name in installed:
            rows.append(
                check_apart(bundle, model, name, num_threads, end, limit_s)
                if apart
                else check_model(bundle, model, name, num_threads)
            )
        if not installed:
            reason = f"{' or '.join(able)} is not installed" if able else "not requested"
            rows.append(_row(model, note=f"not checked: {reason}"))
    checked = [row.passed for row in rows if row.passed is not None]
    layers = layers_apart(bundle, end) if apart and bundle.manifest.golden_images else check_layers(bundle)
    return SelftestReport(tuple(rows), bool(checked) and all(checked) and all(layer.passed for layer in layers), layers)


def check_layers(bundle: Bundle) -> tuple[Layer, ...]:
    """Decode and resize the golden photos and compare the bytes. A photo that decodes to other bytes does not count for the resize."""
    contract = bundle.manifest.input
    least = whole_size(contract.height, contract.width, contract.region)
    wrong: dict[str, list[str]] = {"decode": [], "resize": []}
    for golden in bundle.manifest.golden_images:
        try:
            decoded = images.decode(bundle.files[golden.file], contract.channels, least)
        except ImageError:
            decoded = None
        if decoded is None or sha256(decoded.tobytes()) != golden.decoded_sha256:
            wrong["decode"].append(golden.file)
            continue
        resized = fitted(decoded, contract)
        if sha256(resized.tobytes()) != golden.resized_sha256:
            wrong["resize"].append(golden.file)
    count = len(bundle.manifest.golden_images)
    checked_images = {"decode": count, "resize": count - len(wrong["decode"])}
    return tuple(Layer(name, checked_images[name], tuple(files), not files) for name, files in wrong.items() if count)


def failure(report: SelftestReport) -> str | None:
    """Return the first failed layer or model in words, and how many models failed; None if none did."""
    for layer in report.layers:
        if not layer.passed:
            return (
                f"the layer {layer.layer} does not reproduce the bundle's bytes for {len(layer.differing)} of {layer.images} golden "
                f"images ({', '.join(layer.differing[:3])})"
            )
    failed = [row for row in report.rows if row.passed is False]
    if not failed:
        return None
    row = failed[0]
    reason = row.note or f"it differs by {row.largest_difference:g} {row.unit}; the limit is {row.allowed:g}"
    return f"{row.model} on {row.engine} does not reproduce the bundle's answers: {reason} ({len(failed)} failed)"


def require_pass(report: SelftestReport) -> None:
    """Raise SelftestError if a self-test failed, naming the first layer that did: decode, resize, or a model."""
    if words := failure(report):
        remedy = "Do not use this engine here; try another one, or another version."
        if not all(layer.passed for layer in report.layers):
            remedy = "Install the Pillow version that made the bundle, from its wheel."
        raise SelftestError(f"{words}. {remedy}")
    if not report.passed:
        raise SelftestError(
            "nothing was checked: none of the requested engines that can run the bundle's models is installed"
        )


def check_apart(
    bundle: Bundle, entry: ModelEntry, engine: str, num_threads: int, end: float, limit_s: float
) -> SelftestRow:
    """Check a model in a separate process, for at most `limit_s` seconds and until `end`. A crash also gives a failed row."""
    left = end - time.monotonic()
    if left <= 0:
        note = f"not checked: all of the bundle's models together took more than {TOTAL * limit_s:g} s"
        return _row(entry, engine=engine, passed=False, note=note)
    try:
        return isolated(lambda: check_model(bundle, entry, engine, num_threads), min(limit_s, left))
    except EngineError as error:
        return _row(entry, engine=engine, passed=False, note=str(error))


def layers_apart(bundle: Bundle, end: float) -> tuple[Layer, ...]:
    """Check the layers before the model in a separate process; SelftestError if it crashed, hung or took too much memory."""
    try:
        left = max(1.0, end - time.monotonic())
        return isolated(lambda: check_layers(bundle), left, "one of them", "the decoder")
    except EngineError as error:
        raise SelftestError(f"the golden images cannot be decoded here: {error}") from None


def check_model(
    bundle: Bundle, entry: ModelEntry, engine: str, num_threads: int, provider: str | None = None
) -> SelftestRow:
    """Replay the golden vectors of one model on one engine. An engine that refuses the model gives a failed row, not an error."""
    try:
        opened = open_engine(engine, bundle.files[entry.file], entry.format, num_threads=num_threads, provider=provider)
        model, golden_features = bundle_model(opened, bundle.manifest), bundle.golden_features(entry)
        if golden_features is None:
            answers = [model.outputs(bundle.golden_inputs())]
        elif opened.features is None:
            raise EngineError("it gives no features")
        else:
            answers = list(model.outputs_and_features(bundle.golden_inputs()))
    except EngineError as error:
        return _row(entry, engine=engine, passed=False, note=str(error))
    golden = bundle.golden_outputs(entry)
    row = _row(
        entry,
        engine=opened.name,
        version=opened.version,
        provider=opened.provider,
        images=len(golden),
        allowed=allowed(entry, opened.provider),
        passed=False,
    )
    expected = [golden] if golden_features is None else [golden, golden_features]
    difference = 0.0
    for given, right in zip(answers, expected, strict=True):
        if given.dtype != right.dtype or given.shape != right.shape:
            note = f"it gives {given.dtype} {given.shape}; the golden outputs are {right.dtype} {right.shape}"
            return row._replace(note=note)
        apart = float(np.max(np.abs(given.astype(np.float64) - right.astype(np.float64))))
        difference = apart if np.isnan(apart) else max(difference, apart)
    changes = int(np.sum(np.argmax(answers[0], axis=1) != np.argmax(golden, axis=1)))
    return row._replace(largest_difference=difference, top1_changes=changes, passed=difference <= row.allowed)


def allowed(entry: ModelEntry, provider: str) -> float:
    """Return the largest allowed difference from a model's golden outputs: OTHER_KERNELS more for kernels that round differently."""
    other = entry.tolerance_unit == "LSB" and f"({provider})" not in entry.golden_engine
    return entry.tolerance + (OTHER_KERNELS if other else 0.0)


def _row(entry: ModelEntry, **values: Any) -> SelftestRow:
    return SelftestRow(entry.file, unit=entry.tolerance_unit, allowed=entry.tolerance)._replace(**values)
