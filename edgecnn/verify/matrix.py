"""The matrix: the int8 model on every engine that can run it, each compared with every other."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import edgecnn
from edgecnn.data import Split
from edgecnn.errors import EngineError
from edgecnn.evaluate.answers import CHUNK, Answers, Progress, in_chunks, input_contract
from edgecnn.export import export_path
from edgecnn.pixels import to_codes
from edgecnn.runs import Run
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import described, is_installed, open_engine
from edgecnn.runtime.model import Model
from edgecnn.verify.parity_report import MatrixCell, MatrixRow

OTHER_ENGINES = (("litert", "tflite", "reference"), ("onnxruntime", "onnx", "cuda"))
"""Engine, format and provider beyond those used to verify the exports. They are tried if installed."""


def matrix(
    run: Run,
    fakes: Sequence[Answers],
    candidates: Sequence[Answers],
    split: Split,
    tflite_python: Path | None,
    progress: Progress,
) -> list[MatrixRow]:
    """Compare all engines pairwise on the run's int8 models; `fakes` are the fake-quantized model's answers, if there is one.

    Returns a row per engine, with differences in codes (LSB) of the first int8 export's output. An engine that failed has only a `note`.

    Raises:
        EngineError: if `tflite_python` is given and does not run the model.
    """
    int8 = {item.format: item for item in candidates if item.precision == "int8" and item.codes is not None}
    ran: dict[str, Answers] = dict(zip(["Keras fake-quantized"], fakes, strict=False))
    ran |= {item.engine: item for item in int8.values()}
    notes: dict[str, str] = {}
    for engine, format_, provider in OTHER_ENGINES:
        if format_ in int8 and is_installed(engine):
            try:
                answers = run_by(run, int8[format_], engine, provider, split, progress)
            except EngineError as error:
                notes[f"{engine} ({provider})"] = str(error)
            else:
                ran[answers.engine] = answers
    if tflite_python is not None and "tflite" in int8:
        answers = run_in_environment(run, int8["tflite"], tflite_python, split, progress)
        ran[answers.engine] = answers
    grid = next(iter(int8.values()), None)
    rows = [matrix_row(name, answers, ran, grid, split.classes) for name, answers in ran.items()]
    return rows + [MatrixRow(name=name, accuracy=None, against=(), note=note) for name, note in notes.items()]


def matrix_row(
    name: str, answers: Answers, ran: dict[str, Answers], grid: Answers | None, classes: np.ndarray
) -> MatrixRow:
    top = np.argmax(answers.values, axis=1)
    cells = []
    for other_name, other in ran.items():
        if other is not answers:
            agreement = float(np.mean(top == np.argmax(other.values, axis=1)))
            lsb = int(np.max(np.abs(on_grid(answers, grid) - on_grid(other, grid)))) if grid else None
            cells.append(MatrixCell(name=other_name, agreement=agreement, largest_lsb=lsb))
    return MatrixRow(name=name, accuracy=float(np.mean(top == classes)), against=tuple(cells), note="")


def on_grid(answers: Answers, grid: Answers) -> np.ndarray:
    """Return outputs as codes of the grid's scale and type, int32. Outputs quantized on the same grid are unchanged."""
    assert grid.codes is not None
    limits = np.iinfo(grid.codes.dtype)
    codes = np.rint(answers.values / np.float32(grid.scale)) + grid.zero_point
    return np.clip(codes, limits.min, limits.max).astype(np.int32)


def run_by(run: Run, export: Answers, engine: str, provider: str, split: Split, progress: Progress) -> Answers:
    data = export_path(run, export.format, export.precision).read_bytes()
    opened = open_engine(engine, data, export.format, provider=provider)
    model = Model(opened, input_contract(run))
    outputs = in_chunks(model.outputs, split.images, f"{export.name} {provider}", progress)
    return replace(export, engine=described(opened), values=model.dequantize(outputs), codes=outputs)


def find_python(python: Path) -> Path:
    """Return the absolute path of the Python given with --tflite-python, as a path or a name on PATH. Raises EngineError if not found."""
    path = shutil.which(python)
    if path is None:
        raise EngineError(
            f"--tflite-python {python}: program not found. Name the Python of an environment with tflite-runtime, such as venv/bin/python."
        )
    return Path(path).absolute()


def run_in_environment(run: Run, export: Answers, python: Path, split: Split, progress: Progress) -> Answers:
    progress("tflite_runtime", 0, len(split.images))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Only this package, through a link: adding site-packages to the path would bring in this environment's numpy.
        (folder / "edgecnn").symlink_to(Path(edgecnn.__file__).parent)
        with (folder / "inputs.npy").open("wb") as file:
            header = {"descr": "|i1", "fortran_order": False, "shape": split.images.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(split.images), CHUNK):
                file.write(to_codes(split.images[start : start + CHUNK]).tobytes())
        command = [
            str(python), "-m", "edgecnn.runtime.worker", "tflite_runtime",
            str(export_path(run, export.format, export.precision).resolve()), "inputs.npy", "outputs.npy",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": name}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        except OSError as error:
            raise EngineError(f"--tflite-python {python} cannot be run: {error.strerror}.") from None
        ended = Finished(done.returncode, done.stdout, done.stderr)
        if ended.code:
            raise EngineError(f"--tflite-python {python} did not run the model: {ended.failure}")
        codes = np.load(folder / "outputs.npy", allow_pickle=False)
    progress("tflite_runtime", len(split.images), len(split.images))
    values = (codes.astype(np.float32) - np.float32(export.zero_point)) * np.float32(export.scale)
    return replace(export, engine=ended.table["engine"], values=values, codes=codes)
