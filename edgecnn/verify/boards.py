"""Boards: a bundle's models by the runtime itself, in the packages that a board would install, on an emulated processor of the board's.

What an emulated board answers is held against this machine's answers, code by code: the same wheels must compute the same on another
processor, up to the one code that the bundle allows. Speed is not looked at: an emulated processor has none.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgecnn
from edgecnn.boards.qemu import Emulations, Ended, find_qemu
from edgecnn.boards.sysroot import System, make_system
from edgecnn.boards.targets import RELEASES, Target
from edgecnn.boards.wheels import engines_on, package_name
from edgecnn.bundle.manifest import Manifest, ModelEntry
from edgecnn.bundle.read import Bundle
from edgecnn.data import Split
from edgecnn.errors import EmulatorError, EngineError, UnknownNameError, nearest
from edgecnn.runtime.engines import ENGINES, is_installed, open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.verify.answers import Progress, described

SAMPLE = 1000
SEED = 0
"""The sample is drawn by it: the same images each time."""

ALL = "all"
SHOWN = ("libc6", "numpy", "pillow", "ai_edge_litert", "onnxruntime", "tflite_runtime")
"""The packages of a board whose versions are reported, beside Python's."""


@dataclass(frozen=True, kw_only=True)
class OnBoards:
    """What is to run on which boards.

    `engines` are names of ENGINES, or ALL for every one with wheels for the board's Python and a model; empty for each target's
    own. `release` is a Debian for all of them; None for each target's own. `sample` is how many test images, 0 for all.
    """

    targets: tuple[Target, ...]
    engines: tuple[str, ...] = ()
    release: str | None = None
    sample: int = SAMPLE

    def __post_init__(self) -> None:
        if self.release is not None and self.release not in RELEASES:
            raise UnknownNameError(f"no Debian {self.release!r} for boards. {nearest(self.release, RELEASES)}")
        for name in self.engines:
            if name not in (*ENGINES, ALL):
                raise UnknownNameError(f"no engine {name!r}. {nearest(name, (*ENGINES, ALL))}")


class Case(NamedTuple):
    """One emulation: what two boards share if they have the same processor and system."""

    cpu: str
    release: str
    engine: str
    num_threads: int


class Answer(NamedTuple):
    """What this machine answers with a model: by which engine, and its raw outputs, shape (n, num_classes)."""

    engine: str
    outputs: np.ndarray


def verify_on_boards(
    bundle: Bundle,
    split: Split | None,
    boards: OnBoards,
    progress: Progress,
    packages: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """Run a bundle on emulated boards: its self-test, then the int8 model on test images.

    Boards run side by side, as many as this machine has processors; of boards that an emulation cannot tell apart one is run.

    Args:
        bundle: as read.
        split: the test images; None for the bundle's golden images, whose classes nobody knows.
        boards: which boards, and what there.
        progress: told of what is made for the boards, and of the boards done.
        packages: folders of Python packages that stand before those of the wheels, to try another build of one.

    Returns:
        An entry for each board and engine, in the form of `parity.schema.json`; `passed` is false where the self-test failed, an
        output differs by more than the bundle allows, or the process ended.

    Raises:
        EmulatorError: if QEMU is missing or a board's files cannot be had.
        EngineError: if the bundle has no model for an engine that was asked for.
    """
    sample = drawn(split, boards.sample) if split is not None else None
    pixels = sample.images if sample is not None else bundle.golden_inputs()
    chosen = {target.name: cases(target, boards, bundle.manifest) for target in boards.targets}
    wanted = list(dict.fromkeys(case for items in chosen.values() for case in items))
    systems = {case: make_system(case.release, case.engine, progress) for case in wanted}
    here = {engine: answer_here(bundle, engine, pixels) for engine in {case.engine: 0 for case in wanted}}
    found: dict[Case, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packages").mkdir()
        # The package alone, through a link: a site-packages on the path would bring this machine's numpy along.
        (folder / "packages" / "edgecnn").symlink_to(Path(edgecnn.__file__).resolve().parent)
        (folder / "bundle.edgecnn").write_bytes(bundle.path.read_bytes())
        np.save(folder / "pixels.npy", pixels)
        paths = (*packages, folder / "packages")

        def run(case: Case) -> dict[str, Any]:
            return emulate(emulations, case, systems[case], paths, bundle.manifest, folder)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, Emulations() as emulations:
            jobs = {pool.submit(run, case): case for case in wanted}
            try:
                for done, job in enumerate(as_completed(jobs)):
                    found[jobs[job]] = job.result()
                    progress(f"emulated {jobs[job].cpu}: {jobs[job].engine}", done + 1, len(jobs))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    emulator = {"qemu": qemu_version()}
    return [
        entry(target, case, systems[case], bundle.manifest, found[case], here[case.engine], sample) | emulator
        for target in boards.targets
        for case in chosen[target.name]
    ]


def drawn(split: Split, count: int) -> Split:
    """Draw `count` of a split's images without replacement, the same each time; all if they are fewer or it is 0."""
    if not 0 < count < len(split.classes):
        return split
    keep = np.sort(np.random.default_rng(SEED).choice(len(split.classes), count, replace=False))
    return Split(
        images=split.images[keep], classes=split.classes[keep], sources=tuple(split.sources[index] for index in keep)
    )


def cases(target: Target, boards: OnBoards, manifest: Manifest) -> list[Case]:
    """Return what is to be emulated for a target: one case for each of its engines."""
    if target.emulator is None:
        raise EmulatorError(f"{target.name} cannot be emulated: it has no [emulator] table.")
    release = boards.release or target.emulator.release
    names = boards.engines or (target.engine,)
    if ALL in names:
        formats = {model.format for model in manifest.models}
        names = tuple(name for name in engines_on(RELEASES[release]) if ENGINES[name].format in formats)
    for name in names:
        model_for(manifest, name)
    return [Case(target.emulator.cpu, release, name, target.num_threads) for name in names]


def model_for(manifest: Manifest, engine: str) -> ModelEntry:
    """Return the model that an engine is held to: the int8 one of its format, else the format's default, else its first.

    Raises:
        EngineError: if there is none.
    """
    format_ = ENGINES[engine].format
    fitting = [model for model in manifest.models if model.format == format_]
    if not fitting:
        has = ", ".join(model.file for model in manifest.models)
        raise EngineError(
            f"{engine} runs .{format_} models, and there is none (there are {has}). "
            f"Export one: edgecnn export --format {format_} --int8, or take another engine with --engines."
        )
    default = manifest.defaults.get(format_)
    return min(fitting, key=lambda model: (model.precision != "int8", model.file != default))


SAME_KERNELS = {"tflite_runtime": ("litert", "builtin")}
"""An engine and provider with the kernels of one that needs an environment of its own. Of 1,000 CIFAR-10 images tflite-runtime 2.14.0
gave 814 other codes than LiteRT's XNNPACK, up to 2 LSB apart, on x86 and on every emulated board; and LiteRT's built-in kernels, none."""


def answer_here(bundle: Bundle, engine: str, pixels: np.ndarray) -> Answer:
    """Run the model on this machine: by the same engine, else by one with the same kernels, else by any of its format."""
    entry = model_for(bundle.manifest, engine)
    candidates: list[tuple[str | None, str | None]] = [(engine, None), SAME_KERNELS.get(engine, (None, None))]
    name, provider = next(
        ((name, provider) for name, provider in candidates if name and is_installed(name)), (None, None)
    )
    opened = open_engine(name, bundle.files[entry.file], entry.format, provider=provider)
    return Answer(described(opened), bundle_model(opened, bundle.manifest).outputs(pixels))


def emulate(
    emulations: Emulations, case: Case, system: System, paths: Sequence[Path], manifest: Manifest, folder: Path
) -> dict[str, Any]:
    """Run the self-test command and the model in one emulation.

    Returns:
        `error`: what ended it, or None; `selftest`: the command's report, or None; `engine`: its name, version and provider; `outputs`:
        shape (n, num_classes).
    """
    home = Path(tempfile.mkdtemp(dir=folder))
    machine = system.machine(case.cpu, paths)
    engine = f"{case.engine} {system.versions[package_name(case.engine)]}"
    found: dict[str, Any] = {"error": None, "selftest": None, "engine": engine, "outputs": None}
    bundle, threads = str(folder / "bundle.edgecnn"), str(case.num_threads)

    def call(*arguments: str) -> Ended:
        return emulations.run(machine, ("-m", *arguments), home)

    try:
        ended = call("edgecnn", "selftest", "--model", bundle, "--engine", case.engine, "--threads", threads, "--json")
        if not ended.out:
            return found | {"error": f"the self-test ended with code {ended.code} on {case.cpu}: {ended.last_line}"}
        found["selftest"] = json.loads(ended.out)
        file, pixels, outputs = (
            model_for(manifest, case.engine).file,
            str(folder / "pixels.npy"),
            str(home / "outputs.npy"),
        )
        ended = call("edgecnn.runtime.replay", bundle, file, case.engine, threads, pixels, outputs)
        if ended.code:
            return found | {"error": f"{file} does not run on {case.cpu}: {ended.last_line}"}
    except EmulatorError as error:
        return found | {"error": str(error)}
    said = json.loads(ended.out)
    return found | {
        "engine": f"{said['name']} {said['version']} ({said['provider']})",
        "outputs": np.load(outputs, allow_pickle=False),
    }


def entry(
    target: Target,
    case: Case,
    system: System,
    manifest: Manifest,
    found: Mapping[str, Any],
    here: Answer,
    sample: Split | None,
) -> dict[str, Any]:
    """Return a board's entry in the report, but for the emulator's version: what was found there, held against this machine's answers."""
    model = model_for(manifest, case.engine)
    selftest = found["selftest"]
    result: dict[str, Any] = {
        "target": target.name,
        "cpu": case.cpu,
        "release": case.release,
        "engine": found["engine"],
        "model": model.file,
        "against": here.engine,
        "selftest": selftest["passed"] if selftest else None,
        "images": 0,
        "split": "test" if sample is not None else "golden",
        "accuracy": None,
        "accuracy_here": None,
        "agreement": None,
        "rows_that_differ": None,
        "largest_difference": None,
        "unit": model.tolerance_unit,
        "limit": model.tolerance,
        "error": found["error"],
        "versions": {"python": system.versions[f"libpython{system.python}-minimal"]}
        | {name: system.versions[name] for name in SHOWN if name in system.versions},
    }
    outputs = found["outputs"]
    if outputs is not None:
        result |= differences(outputs, here.outputs, sample)
    failed = [
        *(["error"] if result["error"] else []),
        *(["selftest"] if result["selftest"] is False else []),
        *(
            ["largest_difference"]
            if outputs is not None and not result["largest_difference"] <= model.tolerance
            else []
        ),
    ]
    return result | {"failed": failed, "passed": not failed}


def differences(outputs: np.ndarray, expected: np.ndarray, sample: Split | None) -> dict[str, Any]:
    """Compare raw outputs, shape (n, num_classes), with those of this machine; accuracies where the classes are known."""
    apart = np.abs(outputs.astype(np.float64) - expected.astype(np.float64)).max(axis=1)
    there, here = np.argmax(outputs, axis=1), np.argmax(expected, axis=1)
    result = {
        "images": len(outputs),
        "agreement": float(np.mean(there == here)),
        "rows_that_differ": int(np.count_nonzero(apart)),
        "largest_difference": float(apart.max()),
    }
    if sample is not None:
        result["accuracy"] = float(np.mean(there == sample.classes))
        result["accuracy_here"] = float(np.mean(here == sample.classes))
    return result


def qemu_version() -> str:
    """Return the version of the emulator."""
    said = subprocess.run([find_qemu(), "--version"], capture_output=True, text=True).stdout
    return (said.splitlines() or ["unknown"])[0].partition(" version ")[2] or "unknown"
