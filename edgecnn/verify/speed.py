"""Which of a run's exports is faster here: int8 or float32, timed right after an export."""

from functools import partial
from typing import Any

from edgecnn.errors import EngineError
from edgecnn.export import export_path
from edgecnn.runs import Run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.timing import measure_interleaved
from edgecnn.verify.answers import input_contract
from edgecnn.verify.golden import golden_images
from edgecnn.versions import processor

PRECISIONS = ("int8", "float32")
WARM_UP = 20
REPEATS = 200


def time_exports(run: Run, format_: str) -> dict[str, Any]:
    """Time a run's int8 and float32 file of a format: one image, one thread, by turns.

    Args:
        run: a run with exports.
        format_: "tflite" or "onnx".

    Returns:
        A JSON object. Either `measured` (median and 90th percentile of each in milliseconds, and `n`), `faster`, `ratio`
        (int8 by float32), `engine`, `machine`, `text`; or only `text`, which says why nothing was timed.
    """
    paths = {precision: export_path(run, format_, precision) for precision in PRECISIONS}
    lacking = [precision for precision, path in paths.items() if not path.exists()]
    if lacking:
        return {
            "text": f"not timed: no {format_} {lacking[0]} to compare with. First: edgecnn export --format {format_} --{lacking[0]}"
        }
    contract = input_contract(run)
    image = golden_images(contract)[:1]
    try:
        engines = {name: open_engine(None, path.read_bytes(), format_, num_threads=1) for name, path in paths.items()}
        calls = {name: partial(Model(engine, contract).logits, image) for name, engine in engines.items()}
    except EngineError as error:
        return {"text": f"not timed: {error}"}
    timings = measure_interleaved(calls, warmup=WARM_UP, repeats=REPEATS)
    int8, float32 = (timings[precision].p50_ms for precision in PRECISIONS)
    faster = "int8" if int8 < float32 else "float32"
    engine = f"{engines['int8'].name} {engines['int8'].version}"
    return {
        "measured": {name: timing._asdict() for name, timing in timings.items()},
        "faster": faster,
        "ratio": int8 / float32,
        "engine": engine,
        "machine": processor(),
        "text": (
            f"{faster} is faster here: int8 {int8:.3f} ms, float32 {float32:.3f} ms (ratio {int8 / float32:.2f}) on {engine}; "
            f"median of {REPEATS} calls with one image, one thread, interleaved"
        ),
    }
