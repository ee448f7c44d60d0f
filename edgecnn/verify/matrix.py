"""The matrix: the int8 model on every engine and in other programs, each compared with every other."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import edgecnn
from edgecnn.data import Dataset, Progress, Split
from edgecnn.errors import EngineError, RunError
from edgecnn.evaluate.answers import CHUNK, Answers, in_chunks, input_contract
from edgecnn.export import export_path
from edgecnn.files import sha256
from edgecnn.interop import MODEL, program_files, programs_of
from edgecnn.pixels import to_codes
from edgecnn.runs import FRIGATE, MEDIAPIPE, Run
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import engine_text, is_installed, open_engine
from edgecnn.runtime.model import Model, dequantized
from edgecnn.verify.parity_report import Comparison, Kind, MatrixCell, MatrixRow

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
    Raises EngineError if `tflite_python` is given and does not run the model.
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
            lsb = int(np.max(np.abs(as_codes(answers, grid) - as_codes(other, grid)))) if grid else None
            cells.append(MatrixCell(name=other_name, agreement=agreement, largest_lsb=lsb))
    return MatrixRow(name=name, accuracy=float(np.mean(top == classes)), against=tuple(cells), note="")


def as_codes(answers: Answers, grid: Answers) -> np.ndarray:
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
    return replace(export, engine=engine_text(opened), values=model.dequantize(outputs), codes=outputs)


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
    values = dequantized(codes, np.float32(export.scale), np.float32(export.zero_point))
    return replace(export, engine=ended.table["engine"], values=values, codes=codes)


PRECISION = "int8-softmax"

FRACTIONS = 32
"""Steps between two pixels in OpenCV's fixed-point interpolation (INTER_TAB_SIZE)."""


def check_programs(run: Run) -> list[str]:
    """Return the programs whose files can be judged; called before the work begins.

    Raises ModuleNotFoundError if such files exist but OpenCV, which resizes like the programs, is missing; RunError if the files were not
    made from the run's current int8 file.
    """
    programs = programs_of(run)
    if programs:
        import cv2  # noqa: F401 - checks that it is installed
    for program in programs:
        for name, data in program_files(run, program).items():
            path = run.file(program) / name
            if not path.is_file() or path.read_bytes() != data:
                raise RunError(
                    f"{path} does not match the run's current int8 file. First: edgecnn export {run.path} --for {program} --force"
                )
    return programs


def frigate_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize like Frigate: cv2.resize with defaults (frigate/data_processing/real_time/custom_classification.py)."""
    import cv2

    resized: np.ndarray = cv2.resize(image, (width, height))
    return resized


def mediapipe_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize like MediaPipe's ImageClassifier on a CPU: bilinear between the corners of pixels, without antialiasing.

    Pixel x of the result is read at x * columns / width, to the nearest 1/FRACTIONS of a pixel, like warpPerspective in OpenCV 3, which
    MediaPipe bundles. `remap` with integer positions gives the same pixels in every version of OpenCV.

    Source: scores of mediapipe 1.2.3, identical to the last code (tests/verify/test_other_programs.py).
    """
    import cv2

    rows, columns, _ = image.shape
    across = np.rint(np.arange(width) * (columns / width * FRACTIONS)).astype(np.int64)
    down = np.rint(np.arange(height) * (rows / height * FRACTIONS)).astype(np.int64)
    x, y = np.meshgrid(across, down)
    whole = np.stack([x // FRACTIONS, y // FRACTIONS], axis=-1).astype(np.int16)
    part = (y % FRACTIONS * FRACTIONS + x % FRACTIONS).astype(np.uint16)
    resized: np.ndarray = cv2.remap(image, whole, part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return resized


RESIZES = {FRIGATE: frigate_resize, MEDIAPIPE: mediapipe_resize}


def program_answers(
    run: Run, program: str, dataset: Dataset, test: Split, progress: Progress
) -> tuple[Answers, Answers]:
    """Run a program's file over the test split. Returns the answers with the program's own resize, and those on the pixels of `test`."""
    shape = run.info.input

    def resize(image: np.ndarray) -> np.ndarray:
        return RESIZES[program](image, shape.height, shape.width)

    seen = dataset.load(("test",), **vars(shape), stage="verify", progress=progress, other_resize=resize)["test"]
    return file_answers(run, program, seen.images, progress), file_answers(run, program, test.images, progress)


def file_answers(run: Run, program: str, images: np.ndarray, progress: Progress) -> Answers:
    """Run a program's file over pixels. Frigate divides the codes by their sum; MediaPipe uses them directly, in 1/256."""
    data = (run.file(program) / MODEL).read_bytes()
    engine = open_engine(None, data, "tflite", num_threads=1)
    codes = in_chunks(engine.run, images, program, progress)
    sums = np.maximum(codes.sum(axis=1, keepdims=True, dtype=np.int64), 1)
    return Answers(
        name=program,
        format="tflite",
        precision=PRECISION,
        engine=engine_text(engine),
        size_bytes=len(data),
        sha256=sha256(data),
        values=(codes / sums if program == FRIGATE else codes * engine.output.scale).astype(np.float32),
        unit="score",
        codes=codes,
        scale=engine.output.scale,
        zero_point=engine.output.zero_point,
        call=engine.run,
    )


def program_comparisons(
    answers: Sequence[tuple[Answers, Answers]],
    float_: Answers,
    int8: Answers,
    hold: Callable[[Kind, Answers, Answers], Comparison],
) -> list[Comparison]:
    """Return the comparisons of `program_answers` with the float model, edgecnn's int8 path and, on the same pixels, the int8 file."""
    held: list[Comparison] = []
    for own, same in answers:
        held += [hold("program", float_, own), hold("program", int8, own), hold("conversion", int8, same)]
    return held
