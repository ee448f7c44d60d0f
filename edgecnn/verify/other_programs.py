"""Answers of other programs with the files that a run exported for them: their resize, the file, and their use of the scores."""

from collections.abc import Callable, Sequence

import numpy as np

from edgecnn.data import Dataset, Split
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import Answers, Progress, described, in_chunks
from edgecnn.files import sha256
from edgecnn.interop.programs import FRIGATE, MEDIAPIPE, MODEL, program_files, program_path, programs_of
from edgecnn.runs import Run
from edgecnn.runtime.engines import open_engine
from edgecnn.verify.parity_report import Comparison, Kind

PRECISION = "int8-softmax"

FRACTIONS = 32
"""Steps between two pixels in OpenCV's fixed-point interpolation (INTER_TAB_SIZE)."""


def check_programs(run: Run) -> list[str]:
    """Return the programs whose files can be judged; called before the work begins.

    Raises:
        ModuleNotFoundError: if such files exist but OpenCV, which resizes like the programs, is missing.
        RunError: if the files were not made from the run's current int8 file.
    """
    programs = programs_of(run)
    if programs:
        import cv2  # noqa: F401 - checks that it is installed
    for program in programs:
        for name, data in program_files(run, program).items():
            path = program_path(run, program) / name
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

    Source: scores of mediapipe 1.2.3, identical to the last code (tests/verify/test_mediapipe.py).
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
    data = (program_path(run, program) / MODEL).read_bytes()
    engine = open_engine(None, data, "tflite", num_threads=1)
    codes = in_chunks(engine.run, images, program, progress)
    sums = np.maximum(codes.sum(axis=1, keepdims=True, dtype=np.int64), 1)
    return Answers(
        name=program,
        format="tflite",
        precision=PRECISION,
        engine=described(engine),
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
