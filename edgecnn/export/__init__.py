"""Export: a run's models as TFLite and ONNX files, one module per format."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.errors import DatasetError, DownloadError, ExportError, RunError
from edgecnn.files import refuse_existing, write_atomic
from edgecnn.labels import plural
from edgecnn.runs import QAT_MODEL, ROUNDED_MODEL, Run

if TYPE_CHECKING:
    from edgecnn.data import Dataset, Progress

USUAL = (("tflite", "int8"), ("tflite", "float32"), ("onnx", "int8"), ("onnx", "float32"))
"""The exports of `edgecnn run`, as (format, precision)."""

EXPORTS = (*USUAL, ("tflite", "float16"), ("tflite", "int16x8"), ("onnx", "float16"))

ALTERNATIVES = (("tflite", "int8-ptq"), ("tflite", "int8-qat"))
"""int8 by the method that does not ship, post-training or quantization-aware: see `alternative`. It is verified, but neither gated
nor bundled."""

IOS = ("int8", "uint8", "float32")
"""Types of the input and output that an int8 TFLite file may have. All but the first are for other programs: such a file holds
the same model as the usual one, and is neither verified nor bundled."""


def io_type(format_: str, precision: str, io: str | None = None) -> str:
    """Return the type of an export's input and output: the requested type, or its default. Raises ExportError if it is not supported."""
    if (format_, precision) not in EXPORTS + ALTERNATIVES:
        known = ", ".join(" ".join(pair) for pair in EXPORTS)
        raise ExportError(f"cannot export as {format_} {precision}. Known: {known}.")
    if format_ == "tflite" and precision.startswith("int8"):
        choices: tuple[str, ...] = IOS if precision == "int8" else ("int8",)
    else:
        choices = ("uint8",) if precision == "int8" else ("float32",)
    if io is not None and io not in choices:
        raise ExportError(f"{format_} {precision} supports input and output of {' or '.join(choices)}, received {io}.")
    return io or choices[0]


def alternative(run: Run) -> tuple[str, str] | None:
    """Return the entry of ALTERNATIVES that a run can compare with the shipped method; None if the run has no other method."""
    if not run.file(QAT_MODEL).exists():
        return None
    if run.int8_method == "ptq":
        return ALTERNATIVES[1]
    int8 = run.info.int8
    return None if int8 and int8.validation.ptq is None else ALTERNATIVES[0]  # None: the converter failed


def source_model(run: Run, precision: str) -> str:
    """Return the name of an export's source model: the fake-quantized one for int8 from quantization-aware training, the rounded one for
    int8 of an imported model if it has one, else the float one."""
    if precision == "int8-qat" or (precision == "int8" and run.int8_method == "qat"):
        return QAT_MODEL
    return ROUNDED_MODEL if precision == "int8" and run.file(ROUNDED_MODEL).exists() else run.float_model


def export_path(run: Run, format_: str, precision: str, io: str | None = None) -> Path:
    """Return an export's path in a run, such as `model-int8.tflite`, or `model-int8-uint8.tflite` for another io."""
    variant = "" if io in (None, io_type(format_, precision)) else f"-{io}"
    return run.file(f"model-{precision}{variant}.{format_}")


def convert(
    run: Run,
    format_: str,
    precision: str,
    io: str | None = None,
    *,
    dataset: "Dataset | None" = None,
    progress: "Progress | None" = None,
) -> bytes:
    """Convert a run's model: int8 from the fake-quantized one unless the run's method is "ptq", everything else from the float one.

    Raises ExportError if the export does not exist, the converter fails, or a quantized file contains a float tensor; RunError if the run
    is not trained, or its data have changed.
    """
    io = io_type(format_, precision, io)
    if run.imported and (given := run.info.imported) and given.ships:
        raise ExportError(
            f"{given.file} was imported as a finished file, which ships as it is: nothing else can be made from it. To export other "
            "files, import the float model that it was made from, as ONNX, Keras or SavedModel."
        )
    in_float = run.info.imported.float_layers if run.imported and run.info.imported else ()
    if in_float and (format_, precision) == ("onnx", "int8"):
        raise ExportError(
            f"{run.path} keeps {plural(len(in_float), 'layer')} in float, which edgecnn writes only as TFLite: --format tflite --int8."
        )
    source = run.read(source_model(run, precision), "train")
    from edgecnn.export import onnx, tflite
    from edgecnn.export.onnx import with_features
    from edgecnn.export.tflite import needs_representative_dataset, representative_dataset
    from edgecnn.networks.predict import model_from_bytes

    model = functools.partial(model_from_bytes, source)
    images = representative_dataset(run, dataset, progress) if needs_representative_dataset(run, precision) else None
    # another io is for other programs, which expect one output
    features = bool(run.recipe.stranger.rate) and io == io_type(format_, precision)
    if format_ == "onnx" and precision != "int8":
        data: bytes = getattr(onnx, precision)(model(), features)
        return data
    if precision.startswith("int8"):
        inner = io if format_ == "tflite" else "int8"
        data = (
            _int8(source, inner)
            if images is None
            else tflite.int8_post_training(model(), images, inner, in_float=in_float)
        )
    elif images is not None:
        data = tflite.int16x8(model(), images)
    else:
        data = getattr(tflite, precision)(model())
    data = with_features(data) if features else data
    return data if format_ == "tflite" else onnx.int8(data)


@functools.lru_cache(maxsize=1)
def _int8(qat_model: bytes, io: str) -> bytes:
    """Convert a fake-quantized model to TFLite. The result is kept, because the ONNX file is made from the same one."""
    from edgecnn.export import tflite
    from edgecnn.networks.predict import model_from_bytes

    return tflite.int8(model_from_bytes(qat_model), io)


def export(
    run: Run,
    format_: str,
    precision: str,
    *,
    io: str | None = None,
    force: bool = False,
    dataset: "Dataset | None" = None,
    progress: "Progress | None" = None,
) -> Path:
    """Write one export of a run, atomically. Arguments and errors as in `convert`; OutputExistsError unless `force`."""
    io = io_type(format_, precision, io)
    path = export_path(run, format_, precision, io)
    refuse_existing(path, force)
    data = convert(run, format_, precision, io, dataset=dataset, progress=progress)
    write_atomic(path, data)
    return path


def export_alternative(run: Run, note: Callable[[str], None], progress: "Progress") -> None:
    """Write the export that `alternative` returns, if any, for verification to measure. Without the data it is skipped with a note."""
    other = alternative(run)
    if other is None:
        return
    note(f"converting {run.name} to {' '.join(other)}")
    try:
        export(run, *other, force=True, progress=progress)
    except (DatasetError, DownloadError, RunError) as error:
        note(f"skipped the export {other[1]}, so verify cannot measure it: {error}")
