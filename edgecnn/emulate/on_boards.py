"""A bundle's models in a board's runtime and packages, on an emulated processor, compared code by code with this machine's answers.

The bundle is a run's exports, or an existing one, with its test images if available.

The same wheels must compute the same on another processor, within the one code that the bundle allows. Emulation cannot measure speed.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgecnn
from edgecnn import errors
from edgecnn.boards import RELEASES, Target
from edgecnn.bundle.file import Bundle, read_bundle, write_bundle
from edgecnn.bundle.manifest import Manifest, ModelEntry
from edgecnn.data import Progress, Split
from edgecnn.emulate.machine import LIMIT_S, Emulations, System, find_qemu, make_system
from edgecnn.evaluate.answers import in_chunks, input_contract, recorded_data
from edgecnn.export import export_path
from edgecnn.files import npy
from edgecnn.packages import engines_on, package_name
from edgecnn.runs import Run
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import ENGINES, engine_text, is_installed, open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.runtime.selftest import Layer, SelftestReport, SelftestRow, failure
from edgecnn.tables import Struct
from edgecnn.verify.golden import golden_images, golden_models, golden_photos
from edgecnn.verify.parity_report import BoardFigure, BoardRow, BoardsData, BoardsReport
from edgecnn.versions import library_versions, processor

SAMPLE = 1000
SEED = 0

ALL = "all"
SHOWN = ("libc6", "numpy", "pillow", "ai_edge_litert", "onnxruntime", "tflite_runtime")


class OnBoards(Struct):
    """What to run on which boards.

    `engines` may be ALL: every engine with wheels for the board's Python and a model. Engine and release default to each target's own.
    `sample` is the number of test images, 0 for all.
    """

    targets: tuple[Target, ...]
    engines: tuple[str, ...] = ()
    release: str | None = None
    sample: int = SAMPLE

    def __post_init__(self) -> None:
        if self.release is not None and self.release not in RELEASES:
            raise errors.UnknownNameError(
                f"no Debian release {self.release!r} for boards. {errors.nearest(self.release, RELEASES)}"
            )
        for name in self.engines:
            if name not in (*ENGINES, ALL):
                raise errors.UnknownNameError(f"no engine {name!r}. {errors.nearest(name, (*ENGINES, ALL))}")


class Case(NamedTuple):
    """One emulation, shared by boards with the same processor and system."""

    cpu: str
    release: str
    engine: str
    num_threads: int


class Answer(NamedTuple):
    """An engine's raw outputs, shape (n, num_classes).

    On a board also what ended it, whether the self-test passed, if known, and why it failed.
    """

    engine: str
    outputs: np.ndarray | None = None
    error: str | None = None
    selftest: bool | None = None
    selftest_error: str | None = None


def verify_on_boards(
    bundle: Bundle, split: Split | None, boards: OnBoards, progress: Progress, packages: Sequence[Path] = ()
) -> list[BoardRow]:
    """Run a bundle on emulated boards: its self-test, then the int8 model on test images. Returns a row per board and engine.

    Boards run in parallel, as many as this machine has processors. Boards that an emulation cannot tell apart run once. Without a `split`
    the golden images are used, which have no classes. `packages` are folders of Python packages that take precedence over the wheels.

    Raises:
        EmulatorError: if QEMU is missing or a board's files are unavailable.
        EngineError: if the bundle has no model for a requested engine.
    """
    sample = draw_images(split, boards.sample) if split is not None else None
    pixels = sample.images if sample is not None else bundle.golden_inputs()
    chosen = {target.name: cases(target, boards, bundle.manifest) for target in boards.targets}
    distinct = list(dict.fromkeys(case for items in chosen.values() for case in items))
    systems = {case: make_system(case.release, case.engine, progress) for case in distinct}
    here = {engine: answer_here(bundle, engine, pixels) for engine in {case.engine for case in distinct}}
    emulated: dict[Case, Answer] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packages").mkdir()
        # Only this package, through a link: adding site-packages to the path would bring in this machine's numpy.
        (folder / "packages" / "edgecnn").symlink_to(Path(edgecnn.__file__).resolve().parent)
        (folder / "bundle.edgecnn").write_bytes(bundle.path.read_bytes())
        np.save(folder / "pixels.npy", pixels)
        paths = (*packages, folder / "packages")

        def run(case: Case) -> Answer:
            return emulate(emulations, case, systems[case], paths, bundle.manifest, folder)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, Emulations() as emulations:
            for done, (case, answer) in enumerate(zip(distinct, pool.map(run, distinct), strict=True), 1):
                emulated[case] = answer
                progress(f"emulated {case.cpu}: {case.engine}", done, len(distinct))
    return [
        board_row(target, case, systems[case], bundle.manifest, emulated[case], here[case.engine], sample)
        for target in boards.targets
        for case in chosen[target.name]
    ]


def draw_images(split: Split, count: int) -> Split:
    """Draw `count` of a split's images, always the same ones; all if there are fewer or `count` is 0."""
    if not 0 < count < len(split.classes):
        return split
    keep = np.sort(np.random.default_rng(SEED).choice(len(split.classes), count, replace=False))
    return Split(
        images=split.images[keep], classes=split.classes[keep], sources=tuple(split.sources[index] for index in keep)
    )


def cases(target: Target, boards: OnBoards, manifest: Manifest) -> list[Case]:
    if target.emulator is None:
        raise errors.EmulatorError(f"{target.name} cannot be emulated: it has no [emulator] table.")
    release = boards.release or target.emulator.release
    names = boards.engines or (target.engine,)
    if ALL in names:
        formats = {model.format for model in manifest.models}
        names = tuple(name for name in engines_on(RELEASES[release]) if ENGINES[name].format in formats)
    for name in names:
        model_for(manifest, name)
    return [Case(target.emulator.cpu, release, name, target.num_threads) for name in names]


def model_for(manifest: Manifest, engine: str) -> ModelEntry:
    """Return the model for an engine: the int8 one in its format, else the format's default, else its first."""
    format_ = ENGINES[engine].format
    fitting = [model for model in manifest.models if model.format == format_]
    if not fitting:
        has = ", ".join(model.file for model in manifest.models)
        raise errors.EngineError(
            f"{engine} runs .{format_} models, but the bundle has only {has}. "
            f"Export one: edgecnn export --format {format_} --int8, or choose another engine with --engines."
        )
    default = manifest.defaults.get(format_)
    return min(fitting, key=lambda model: (model.precision != "int8", model.file != default))


SAME_KERNELS = {"tflite_runtime": ("litert", "builtin")}
"""An engine and provider with the same kernels as one that needs its own environment. On 1,000 CIFAR-10 images, tflite-runtime 2.14.0 gave
814 codes different from LiteRT's XNNPACK, up to 2 LSB apart, on x86 and on every emulated board; LiteRT's built-in kernels gave none."""


def answer_here(bundle: Bundle, engine: str, pixels: np.ndarray) -> Answer:
    """Run the model on this machine with the same engine, else one with the same kernels, else any for its format."""
    entry = model_for(bundle.manifest, engine)
    name, provider = (engine, None) if is_installed(engine) else SAME_KERNELS.get(engine, (None, None))
    name = name if name and is_installed(name) else None
    opened = open_engine(name, bundle.files[entry.file], entry.format, provider=provider)
    model = bundle_model(opened, bundle.manifest)
    return Answer(engine_text(opened), in_chunks(model.outputs, pixels, engine, lambda what, done, total: None))


def emulate(
    emulations: Emulations, case: Case, system: System, paths: Sequence[Path], manifest: Manifest, folder: Path
) -> Answer:
    home = Path(tempfile.mkdtemp(dir=folder))
    machine = system.machine(case.cpu, paths)
    result = Answer(f"{case.engine} {system.versions[package_name(case.engine)]}")
    bundle, threads = str(folder / "bundle.edgecnn"), str(case.num_threads)

    def call(*arguments: str) -> Finished:
        return emulations.run(machine, ("-m", *arguments), home)

    try:
        # an emulated board's clock does not measure it: only the emulator's own limit counts
        how = "--engine", case.engine, "--threads", threads, "--limit", f"{LIMIT_S}", "--json"
        ended = call("edgecnn", "selftest", "--model", bundle, *how)
        if not ended.table:
            return result._replace(error=f"the self-test fails on {case.cpu}: {ended.failure}")
        report = SelftestReport(
            tuple(SelftestRow(**row) for row in ended.table["rows"]),
            bool(ended.table["passed"]),
            tuple(Layer(**layer) for layer in ended.table["layers"]),
        )
        result = result._replace(selftest=report.passed, selftest_error=failure(report))
        file, outputs = model_for(manifest, case.engine).file, str(home / "outputs.npy")
        ended = call("edgecnn.runtime.worker", bundle, file, case.engine, threads, str(folder / "pixels.npy"), outputs)
        if ended.code:
            return result._replace(error=f"{file} does not run on {case.cpu}: {ended.failure}")
    except errors.EmulatorError as error:
        return result._replace(error=str(error))
    return result._replace(engine=ended.table["engine"], outputs=np.load(outputs, allow_pickle=False))


def board_row(
    target: Target, case: Case, system: System, manifest: Manifest, emulated: Answer, here: Answer, sample: Split | None
) -> BoardRow:
    """Return a board's row in the report: its answers, compared with this machine's."""
    model = model_for(manifest, case.engine)
    apart = differences(emulated.outputs, here.outputs, sample)
    largest = apart["largest_difference"]
    failed: dict[BoardFigure, bool] = {
        "error": bool(emulated.error),
        "selftest": emulated.selftest is False,
        "largest_difference": largest is not None and not largest <= model.tolerance,
    }
    return BoardRow(
        target=target.name,
        cpu=case.cpu,
        release=case.release,
        engine=emulated.engine,
        model=model.file,
        against=here.engine,
        selftest=emulated.selftest,
        selftest_error=emulated.selftest_error,
        split="test" if sample is not None else "golden",
        **apart,
        unit=model.tolerance_unit,
        limit=model.tolerance,
        error=emulated.error,
        versions={"python": system.versions[f"libpython{system.python}-minimal"]}
        | {name: system.versions[name] for name in SHOWN if name in system.versions},
        qemu=qemu_version(),
        failed=tuple(name for name, value in failed.items() if value),
        passed=not any(failed.values()),
    )


def differences(outputs: np.ndarray | None, expected: np.ndarray | None, sample: Split | None) -> dict[str, Any]:
    if outputs is None or expected is None:
        unknown = ("accuracy", "accuracy_here", "agreement", "rows_that_differ", "largest_difference")
        return {"images": 0, **dict.fromkeys(unknown)}
    apart = np.abs(outputs.astype(np.float64) - expected.astype(np.float64)).max(axis=1)
    there, here = np.argmax(outputs, axis=1), np.argmax(expected, axis=1)
    return {
        "images": len(outputs),
        "accuracy": float(np.mean(there == sample.classes)) if sample is not None else None,
        "accuracy_here": float(np.mean(here == sample.classes)) if sample is not None else None,
        "agreement": float(np.mean(there == here)),
        "rows_that_differ": int(np.count_nonzero(apart)),
        "largest_difference": float(apart.max()),
    }


def qemu_version() -> str:
    printed = subprocess.run([find_qemu(), "--version"], capture_output=True, text=True).stdout
    return (printed.splitlines() or ["unknown"])[0].partition(" version ")[2] or "unknown"


def run_on_boards(
    run: Run, exports: Sequence[tuple[str, str]], split: Split, boards: OnBoards, progress: Progress
) -> list[BoardRow]:
    """Run a run's exports (format, precision) like `verify_on_boards`, in a bundle without a report."""
    contract = input_contract(run)
    images = golden_images(contract)
    models = [(*export, export_path(run, *export).read_bytes()) for export in exports]
    entries, files = golden_models(models, contract, images)
    encoded, golden_encoded = golden_photos(contract)
    manifest = Manifest(
        name=run.name,
        title=run.info.data.title,
        labels=run.info.data.labels,
        input=contract,
        models=entries,
        defaults={},
        golden_images=golden_encoded,
        provenance={"run": run.name},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{run.name}.edgecnn"
        write_bundle(path, manifest, {"golden/inputs.npy": npy(images)} | files | encoded)
        return verify_on_boards(read_bundle(path), split, boards, progress)


def bundle_on_boards(
    path: Path, boards: OnBoards, data: str | None, note: Callable[[str], None], progress: Progress
) -> BoardsReport:
    """Run a bundle on boards, on the test images it was verified with if they are available, else on its golden images."""
    find_qemu()
    bundle = read_bundle(path)
    try:
        split, described = test_images(bundle, data, progress, note)
    except (errors.DatasetError, errors.DownloadError, errors.RecipeError, errors.UnknownNameError) as error:
        if data is not None:
            raise
        note(f"{error}\nusing only the golden images of {path.name}. Give its test images with --data.")
        split, described = None, None
    rows = verify_on_boards(bundle, split, boards, progress)
    return BoardsReport(
        schema="edgecnn.boards/1",
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        data=described,
        boards=tuple(rows),
        passed=all(row.passed for row in rows),
        machine=processor(),
        versions=library_versions(),
    )


def test_images(
    bundle: Bundle, data: str | None, progress: Progress, note: Callable[[str], None]
) -> tuple[Split, BoardsData]:
    """Load the test images that a bundle was verified with, and describe them. Errors as in `recorded_data`."""
    size = bundle.manifest.input
    dataset = recorded_data(bundle, data, "test", progress, note)
    split = dataset.load(
        ("test",), height=size.height, width=size.width, channels=size.channels, stage="verify", progress=progress
    )["test"]
    return split, BoardsData(
        name=dataset.name, title=dataset.title, test_images=len(split.classes), test_sha256=dataset.hashes["test"]
    )
