"""Which of a run's exports is faster here, int8 or float32, timed right after an export."""

from collections.abc import Mapping
from functools import partial

from edgecnn.errors import EngineError
from edgecnn.evaluate.answers import device_model, input_contract
from edgecnn.export import export_path
from edgecnn.runs import Run
from edgecnn.runtime.model import measure_interleaved
from edgecnn.tables import Struct, described
from edgecnn.verify.golden import golden_images
from edgecnn.versions import processor

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
    measured: Mapping[str, ExportTime] | None = described("By precision.", default=None, left_out=True)
    faster: str | None = described("int8 or float32.", default=None, left_out=True)
    ratio: float | None = described("int8 by float32, of the medians.", default=None, left_out=True)
    engine: str | None = described("Name and version.", default=None, left_out=True)
    machine: str | None = described("The processor.", default=None, left_out=True)


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
