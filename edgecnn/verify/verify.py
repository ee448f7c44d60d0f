"""The gate: every exported model against the float and the fake-quantized one, on the test split."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.manifest import InputContract
from edgecnn.data import Dataset, Split
from edgecnn.errors import ParityError, RunError
from edgecnn.export import EXPORTS, export_path
from edgecnn.files import canonical_json, sha256, write_atomic
from edgecnn.runs import PARITY, QAT_MODEL, Run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.timing import measure_interleaved
from edgecnn.verify.statistics import compare, largest_lsb
from edgecnn.versions import library_versions, processor

SCHEMA = "edgecnn.parity/1"
MAX_DROP = 1.0
"""Default of the gate, in percentage points of accuracy."""

MAX_LSB = 1
MIN_AGREEMENT = 0.99
"""An int8 file must be within MAX_LSB of the fake-quantized model everywhere, or agree with it on this share of the images:
one code of rounding is allowed, another answer on more than one image in a hundred is not."""

WARM_UP = 10
REPEATS = 100
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One model's answers on the test split.

    `logits` is float32 (n, num_classes); `codes` its int8 or uint8 output and `scale`, `zero_point` theirs, None for a
    float model; `call` runs it on uint8 images, for timing.
    """

    name: str
    format: str
    precision: str
    engine: str
    size_bytes: int
    sha256: str
    logits: np.ndarray
    codes: np.ndarray | None
    scale: float
    zero_point: int
    call: Callable[[np.ndarray], np.ndarray]


Progress = Callable[[str, int, int], None]


def input_contract(run: Run) -> InputContract:
    """Return the input contract of a run's models."""
    recipe, shape = run.recipe, run.info["input"]
    return InputContract(
        height=shape["height"],
        width=shape["width"],
        channels=shape["channels"],
        fit=recipe.data.fit,
        scale=recipe.input_scale,
        zero_point=recipe.input_zero_point,
    )


def load_test(run: Run, dataset: Dataset, progress: Progress | None = None) -> Split:
    """Load the test split, after checking that it is the one recorded when the run was trained.

    Raises:
        RunError: if the data have changed since.
    """
    recorded = run.info["data"]["split_hashes"]["test"]
    if dataset.hashes["test"] != recorded:
        raise RunError(
            f"the test split of {dataset.name} is not the one that {run.path} was trained beside "
            f"(SHA-256 {dataset.hashes['test'][:12]}, recorded {recorded[:12]}). Verify on the same data, or train again."
        )
    shape = run.info["input"]
    return dataset.load(("test",), **shape, stage="verify", progress=progress)["test"]


def keras_answers(run: Run, name: str, images: np.ndarray, progress: Progress) -> Answers:
    """Run the float or the fake-quantized Keras model over images."""
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    data = run.read(run.float_model if name == "float" else QAT_MODEL, "train")
    predict = predictor(model_from_bytes(data), run.recipe.input_scale, run.recipe.input_zero_point)
    return Answers(
        name=name,
        format="keras",
        precision="float32" if name == "float" else "fake-quantized",
        engine=f"tensorflow {tf.__version__}",
        size_bytes=len(data),
        sha256=sha256(data),
        logits=in_chunks(predict, images, name, progress),
        codes=None,
        scale=0.0,
        zero_point=0,
        call=predict,
    )


def export_answers(
    run: Run, path: Path, format_: str, precision: str, images: np.ndarray, progress: Progress
) -> Answers:
    """Run an exported file over images, by the engine that a device would use."""
    data = path.read_bytes()
    engine = open_engine(None, data, format_, num_threads=1)
    model = Model(engine, input_contract(run))
    name = f"{format_}-{precision}"
    outputs = in_chunks(model.outputs, images, name, progress)
    quantized = outputs.dtype != np.float32
    return Answers(
        name=name,
        format=format_,
        precision=precision,
        engine=f"{engine.name} {engine.version} ({engine.provider})",
        size_bytes=len(data),
        sha256=sha256(data),
        logits=model.dequantize(outputs),
        codes=outputs if quantized else None,
        scale=engine.output.scale,
        zero_point=engine.output.zero_point,
        call=model.logits,
    )


def in_chunks(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, name: str, progress: Progress
) -> np.ndarray:
    """Call a model on CHUNK images at a time, reporting progress, and return the outputs together."""
    outputs = []
    for start in range(0, len(images), CHUNK):
        outputs.append(call(images[start : start + CHUNK]))
        progress(name, min(start + CHUNK, len(images)), len(images))
    return np.concatenate(outputs)


def verify(
    run: Run, dataset: Dataset, *, max_drop: float = MAX_DROP, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Compare a run's exports with its float and fake-quantized models and write `parity.json`.

    float against each export is what quantization cost, held to `max_drop`; fake-quantized against each int8 export is whether the
    conversion is right, held to MAX_LSB or MIN_AGREEMENT.

    Args:
        run: a trained run with at least one export.
        dataset: the run's data.
        max_drop: largest accepted drop in accuracy, in percentage points.
        progress: called with the model's name, images done and images in all.

    Returns:
        The report, as written; its form is `parity.schema.json` beside this module.

    Raises:
        RunError: if nothing was exported or the test split has changed.
    """
    exports = [(format_, precision) for format_, precision in EXPORTS if export_path(run, format_, precision).exists()]
    if not exports:
        raise RunError(f"run {run.path} has no export to verify. First: edgecnn export --format tflite --int8")
    test = load_test(run, dataset, progress)
    float_ = keras_answers(run, "float", test.images, progress)
    # a model that was trained elsewhere has no fake-quantized form: its int8 files are held to the float model alone
    fakes = [] if run.imported else [keras_answers(run, "fake-quantized", test.images, progress)]
    candidates = [
        export_answers(run, export_path(run, format_, precision), format_, precision, test.images, progress)
        for format_, precision in exports
    ]
    comparisons = [compared("quantization", float_, fake, test.classes, max_drop) for fake in fakes]
    for candidate in candidates:
        comparisons.append(compared("quantization", float_, candidate, test.classes, max_drop))
        if candidate.precision == "int8":
            comparisons += [compared("conversion", fake, candidate, test.classes, max_drop) for fake in fakes]
    answers = (float_, *fakes, *candidates)
    one = test.images[:1]
    timings = measure_interleaved(
        {item.name: partial(item.call, one) for item in answers}, warmup=WARM_UP, repeats=REPEATS
    )
    report = {
        "schema": SCHEMA,
        "run": run.name,
        "data": {
            "name": run.info["data"]["name"],
            "title": run.info["data"]["title"],
            "test_images": len(test.classes),
            "test_sha256": dataset.hashes["test"],
        },
        "max_drop": max_drop,
        "passed": all(comparison["passed"] for comparison in comparisons),
        "models": [
            {
                "name": item.name,
                "format": item.format,
                "precision": item.precision,
                "engine": item.engine,
                "size_bytes": item.size_bytes,
                "sha256": item.sha256,
                "accuracy": float(np.mean(np.argmax(item.logits, axis=1) == test.classes)),
                "ms_per_image": round(timings[item.name].p50_ms, 4),
            }
            for item in answers
        ],
        "comparisons": comparisons,
        "timing": f"median of {REPEATS} calls with one image, one thread, interleaved; tensorflow as it comes",
        "machine": processor(),
        "versions": library_versions(),
    }
    write_atomic(run.file(PARITY), canonical_json(report))
    return report


def compared(kind: str, reference: Answers, candidate: Answers, classes: np.ndarray, max_drop: float) -> dict[str, Any]:
    """Compare two models' answers and hold them to the limits of the comparison's kind."""
    result = compare(reference.logits, candidate.logits, classes)
    lsb = None
    if kind == "conversion" and candidate.codes is not None:
        lsb = largest_lsb(reference.logits, candidate.codes, candidate.scale, candidate.zero_point)
        passed = lsb <= MAX_LSB or result.agreement >= MIN_AGREEMENT
        limit = f"at most {MAX_LSB} LSB, or agreement of at least {MIN_AGREEMENT:.0%}"
    else:
        passed = result.drop <= max_drop
        limit = f"drop of at most {max_drop:.2f} points"
    return {
        "kind": kind,
        "reference": reference.name,
        "candidate": candidate.name,
        **asdict(result),
        "largest_lsb": lsb,
        "limit": limit,
        "passed": passed,
    }


def require_parity(report: dict[str, Any]) -> None:
    """Raise ParityError if a comparison of the report failed, naming the first and what to do."""
    failed = [comparison for comparison in report["comparisons"] if not comparison["passed"]]
    if failed:
        first = failed[0]
        measured = (
            f"drops {first['drop']:.2f} points"
            if first["kind"] == "quantization"
            else f"differs by {first['largest_lsb']} LSB and agrees on {first['agreement']:.2%}"
        )
        raise ParityError(
            f"{first['candidate']} does not answer as {first['reference']} does: it {measured} (limit: {first['limit']}); "
            f"{len(failed)} of {len(report['comparisons'])} comparisons failed. "
            "Train longer with --qat-epochs, or accept more with --max-drop."
        )
