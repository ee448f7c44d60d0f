"""Export: a run's models as TFLite and ONNX files, one file per format."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgecnn.errors import ExportError
from edgecnn.files import refuse_existing, write_atomic
from edgecnn.runs import FLOAT_MODEL, QAT_MODEL, Run

FORMATS = ("tflite", "onnx")
PRECISIONS = ("int8", "float32")
EXPORTS = tuple((format_, precision) for format_ in FORMATS for precision in PRECISIONS)
"""All that can be exported, as (format, precision)."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was exported: `size_bytes` long, `sha256` of its content."""

    path: Path
    format: str
    precision: str
    size_bytes: int
    sha256: str


def export_path(run: Run, format_: str, precision: str) -> Path:
    """Return where a run keeps one of its exports, such as `model-int8.tflite`."""
    return run.file(f"model-{precision}.{format_}")


def convert(run: Run, format_: str, precision: str) -> bytes:
    """Convert a run's model: int8 from the fake-quantized one, float32 from the float one.

    Args:
        run: a trained run.
        format_: one of FORMATS.
        precision: one of PRECISIONS.

    Returns:
        The file's bytes.

    Raises:
        ExportError: if there is no such format, the converter fails, or an int8 file holds a float tensor.
        RunError: if the run is not trained.
    """
    if (format_, precision) not in EXPORTS:
        raise ExportError(f"no export as {format_} {precision}: --format is tflite or onnx, with --int8 or --float32.")
    source = run.read(QAT_MODEL if precision == "int8" else FLOAT_MODEL, "train")
    from edgecnn.export import onnx, tflite
    from edgecnn.networks.predict import model_from_bytes

    model = model_from_bytes(source)
    if format_ == "tflite":
        return tflite.int8(model) if precision == "int8" else tflite.float32(model)
    return onnx.int8(tflite.int8(model)) if precision == "int8" else onnx.float32(model)


def export(
    run: Run, format_: str, precision: str, *, force: bool = False, report: Callable[[str], None] = lambda text: None
) -> Exported:
    """Write one export of a run, atomically.

    Args:
        run: a trained run.
        format_: one of FORMATS.
        precision: one of PRECISIONS.
        force: whether an earlier export is replaced.
        report: called with what is being done.

    Returns:
        What was written.

    Raises:
        OutputExistsError: if it exists and `force` is false.
        ExportError, RunError, OutputError: as the parts do.
    """
    path = export_path(run, format_, precision)
    refuse_existing(path, force)
    report(f"converting {run.name} to {format_} {precision}")
    data = convert(run, format_, precision)
    write_atomic(path, data)
    return Exported(
        path=path,
        format=format_,
        precision=precision,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
