"""Running models over images: their answers and their speed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from edgecnn.bundle.manifest import InputContract
from edgecnn.data import Dataset, Split
from edgecnn.data.dataset import require_split
from edgecnn.files import sha256
from edgecnn.recipe import Recipe
from edgecnn.runs import Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import described, open_engine
from edgecnn.runtime.model import Model, measure_interleaved

WARM_UP = 10
REPEATS = 100
CHUNK = 100
"""Images converted and run at a time, so that verification's memory on top of the pixels does not grow with their number."""

Progress = Callable[[str, int, int], None]
Unit = Literal["logit", "score"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """One model's answers on n images.

    `values` is float32 (n, num_classes), in `unit`. `codes` is the quantized output, with `scale` and `zero_point`; None for a float
    model. `call` runs the model on uint8 images, for timing; `ms_per_image` is None until it has been timed.
    """

    name: str
    format: str
    precision: str
    engine: str
    size_bytes: int
    sha256: str
    values: np.ndarray
    unit: Unit = "logit"
    codes: np.ndarray | None = None
    scale: float = 0.0
    zero_point: int = 0
    call: Callable[[np.ndarray], np.ndarray] | None = None
    ms_per_image: float | None = None

    @property
    def scores(self) -> np.ndarray:
        """Softmax scores, float32, shape (n, num_classes)."""
        return self.values if self.unit == "score" else softmax(self.values)


def input_contract(run: Run) -> InputContract:
    size = run.info.input
    return contract_of(run.recipe, (size.height, size.width, size.channels))


def contract_of(recipe: Recipe, shape: tuple[int, ...]) -> InputContract:
    """Return the input contract of a recipe's models; `shape` is (height, width, channels)."""
    height, width, channels = shape
    return InputContract(
        height=height,
        width=width,
        channels=channels,
        fit=recipe.data.fit,
        region=recipe.data.region,
        scale=recipe.input_scale,
        zero_point=recipe.input_zero_point,
    )


def device_model(data: bytes, format_: str, contract: InputContract, threads: int = 1) -> Model:
    """Open a model file's bytes with the engine that a device would use. An int8 file's answers do not depend on the threads."""
    return Model(open_engine(None, data, format_, num_threads=threads), contract)


def load_test(run: Run, dataset: Dataset, progress: Progress | None = None) -> Split:
    """Load the test split. Raises RunError if it is not the one recorded when the run was trained."""
    require_split(run, dataset, "test")
    return dataset.load(("test",), **vars(run.info.input), stage="verify", progress=progress)["test"]


def export_answers(
    run: Run, path: Path, format_: str, precision: str, images: np.ndarray, progress: Progress
) -> Answers:
    """Run an exported file over images, with the engine that a device would use."""
    data, name = path.read_bytes(), f"{format_}-{precision}"
    model = device_model(data, format_, input_contract(run))
    outputs, given = in_chunks(model.outputs, images, name, progress), model.engine.output
    return Answers(
        name=name,
        format=format_,
        precision=precision,
        engine=described(model.engine),
        size_bytes=len(data),
        sha256=sha256(data),
        values=model.dequantize(outputs),
        codes=outputs if np.issubdtype(outputs.dtype, np.integer) else None,
        scale=given.scale,
        zero_point=given.zero_point,
        call=model.logits,
    )


def in_chunks(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, name: str, progress: Progress
) -> np.ndarray:
    """Call a model on CHUNK images at a time, report progress, and return the concatenated outputs."""
    outputs = []
    for start in range(0, len(images), CHUNK):
        outputs.append(call(images[start : start + CHUNK]))
        progress(name, min(start + CHUNK, len(images)), len(images))
    return np.concatenate(outputs)


def milliseconds(calls: Mapping[str, Callable[[np.ndarray], np.ndarray]], image: np.ndarray) -> dict[str, float]:
    """Return the median time of REPEATS interleaved calls of each function with one uint8 image (1, height, width, channels)."""
    bound = {name: partial(call, image) for name, call in calls.items()}
    timings = measure_interleaved(bound, warmup=WARM_UP, repeats=REPEATS)
    return {name: round(timing.p50_ms, 4) for name, timing in timings.items()}


def timed(answers: Sequence[Answers], image: np.ndarray) -> list[Answers]:
    """Fill in missing `ms_per_image` values with `milliseconds`. The names must be distinct."""
    taken = milliseconds({item.name: item.call for item in answers if item.call and item.ms_per_image is None}, image)
    return [replace(item, ms_per_image=taken.get(item.name, item.ms_per_image)) for item in answers]
