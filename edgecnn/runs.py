"""The run folder, which has all files of one training, and `runs/latest`, a link to the last one."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from edgecnn.errors import BundleError, OutputExistsError, RecipeError, RunError
from edgecnn.files import canonical_json, is_own, output_errors, write_atomic
from edgecnn.labels import unsafe
from edgecnn.recipe import RANDOM, Recipe, Settled, build_recipe, load_recipe, merge, source_kind, to_tables, to_toml
from edgecnn.run_info import RunInfo
from edgecnn.tables import build, to_json

T = TypeVar("T")

RUNS = Path("runs")
LATEST = "latest"

RECIPE = "recipe.toml"
LOCK = ".lock"
INFO = "run.json"
CHOICE = "choice.json"
FOLDS = "folds.csv"
FOLD = "folds/{fold}"
ASKED = "folds/recipe.toml"
FOLD_INFO = "fold.json"
TUNING = "folds/tuning.json"
HELD_OUT = "held-out.npz"
FEATURES = "features"
FRIGATE, MEDIAPIPE = PROGRAMS = ("frigate", "mediapipe")  # folders with files for other programs
IMAGES = "images.csv"
HISTORY = "history.csv"
CURVES = "curves.png"
CHECKPOINT = "checkpoint.npz"
FLOAT_MODEL = "float.h5"
FLOAT_GRAPH = "float.pb"
QAT_MODEL = "qat.h5"
ROUNDED_MODEL = "rounded.h5"
REFERENCES = ("reference.tflite", "reference.onnx")
INIT_MODEL = "init.h5"
NETWORK_FILE = "network.py"
BACKBONE = "backbone.onnx"
PARITY = "parity.json"
CONFIDENCE = "confidence.json"
STRANGERS = "strangers.json"
KNOWN = "known.npy"
AGAINST_PICTURES = "against.npz"
LEFT_OUT = "left-out.csv"
CARD = "card.md"
PREDICTIONS = "predictions.npz"
LAYERS = "layers.json"
STRESS = "stress-{split}.json"
PAGE = "report.html"
PAGE_FIGURES = "report.json"

ANOTHER = "Name another folder with --out"


@dataclass(frozen=True)
class Run:
    """A run folder: `recipe.toml` is the resolved recipe, and `run.json` a `RunInfo`."""

    path: Path

    @cached_property
    def recipe(self) -> Recipe:
        return build_recipe(load_recipe(self.path / RECIPE), str(self.path / RECIPE))

    @property
    def settled(self) -> Settled:
        """The recipe of a run whose open keys the images have closed, as before training begins."""
        return cast(Settled, self.recipe)

    @property
    def public_recipe(self) -> Recipe:
        """The resolved recipe for bundles and cards: data, networks and a teacher by name, without paths of this machine."""
        return without_folders(self.recipe)

    @property
    def info(self) -> RunInfo:
        """The content of `run.json`; RunError if it is missing or damaged."""
        try:
            return build(RunInfo, json.loads((self.path / INFO).read_text(encoding="utf-8")), ValueError)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path} is not a usable run: {INFO}: {error}. Train again.") from None

    def stored(self, name: str, kind: type[T]) -> T | None:
        """Read a JSON file of the run into a dataclass; None if the file is missing or cannot be used."""
        try:
            return build(kind, json.loads(self.file(name).read_text(encoding="utf-8")), ValueError)
        except (OSError, ValueError):
            return None

    @property
    def name(self) -> str:
        return Path(os.path.abspath(self.path)).name  # also of "."

    @property
    def frozen(self) -> bool:
        """Whether its float model is an imported graph without layers, stored as FLOAT_GRAPH."""
        return self.file(FLOAT_GRAPH).exists()

    @property
    def imported(self) -> bool:
        """Whether edgecnn did not train its float model."""
        return self.frozen or (self.file(INFO).exists() and self.info.imported is not None)

    @property
    def finished(self) -> bool:
        """Whether it was imported as a finished file, which ships as it is."""
        return self.imported and self.info.imported is not None and self.info.imported.ships

    @property
    def int8_method(self) -> str:
        """How its int8 models are made: "qat" from the fake-quantized model, or "ptq", quantized after training."""
        int8 = self.info.int8 if self.file(INFO).exists() else None
        return int8.method if int8 else "ptq" if self.imported else "qat"

    @property
    def reference(self) -> str | None:
        """The float model's file, if only its own program can run it: one of REFERENCES. There are no layers and no graph of it."""
        return next((name for name in REFERENCES if self.file(name).exists()), None)

    @property
    def float_model(self) -> str:
        return self.reference or (FLOAT_GRAPH if self.frozen else FLOAT_MODEL)

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str, stage: str, options: str = "") -> bytes:
        """Read a file that an earlier stage wrote; if it is missing, RunError names the command of that stage and its options."""
        try:
            return self.file(name).read_bytes()
        except FileNotFoundError:
            raise RunError(f"{self.path} has no {name} yet. First: {self.command(stage)} {options}".rstrip()) from None

    def command(self, stage: str) -> str:
        """Return the command that runs a stage on this run, for messages. An interrupted training continues."""
        return f"edgecnn train --resume --out {self.path}" if stage == "train" else f"edgecnn {stage} {self.path}"

    def write_info(self, info: RunInfo) -> None:
        write_json(self.file(INFO), info)

    def make_latest(self) -> None:
        """Point `runs/latest` in the working folder at this run, wherever it is; but not at a fold, which is a part of another run."""
        if (self.path.parent.parent / FOLDS).exists():
            return
        link = RUNS / LATEST
        with output_errors(link):
            RUNS.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=RUNS, prefix=".latest.") as folder:
                fresh = Path(folder) / LATEST
                fresh.symlink_to(os.path.relpath(self.path, RUNS))
                os.replace(fresh, link)


def without_folders(recipe: Recipe) -> Recipe:
    """Return a recipe that names its data, own network, starting network and teacher without their folders."""

    def last(path: str) -> str:
        return Path(path).name

    kind, folder = source_kind(recipe.data.source)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data,
            source=f"{kind}:{last(folder)}" if kind else last(folder),
            unseen=recipe.data.unseen and last(recipe.data.unseen),
        ),
        network=dataclasses.replace(recipe.network, name=recipe.network.name and last(recipe.network.name)),
        init=dataclasses.replace(recipe.init, source=recipe.init.source and last(recipe.init.source)),
        teacher=recipe.teacher and dataclasses.replace(recipe.teacher, run=last(recipe.teacher.run)),
    )


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, canonical_json(to_json(value)))


def create_run(recipe: Recipe, path: Path, *, force: bool = False, keep_features: bool = False) -> Run:
    """Make a run folder with the resolved recipe; OutputExistsError if one exists, unless `force` replaces its files.

    `keep_features` is whether the features that frozen networks computed from its photos stay, and the copy of its backbone.
    """
    run = Run(path)
    require_run_folder(path)
    if run.file(RECIPE).exists():
        if not force:
            raise OutputExistsError(
                f"{path} exists. Continue it (--resume), replace it (--force), or name another folder with --out."
            )
        for used in (recipe.init.source, recipe.network.file, recipe.teacher and recipe.teacher.run):
            if used and Path(used).resolve().is_relative_to(path.resolve()):
                raise OutputExistsError(
                    f"{path} contains {used}, which the new run needs, so it is not replaced. {ANOTHER}."
                )
        made = [run.file(ASKED).parent, *map(run.file, PROGRAMS), *(() if keep_features else (run.file(FEATURES),))]
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        for file in path.iterdir():
            if file.name not in (LOCK, *((BACKBONE,) if keep_features else ())):
                with contextlib.suppress(IsADirectoryError):
                    file.unlink()
    write_atomic(run.file(RECIPE), to_toml(recipe))
    return run


def settle_run(run: Run, recipe: Settled) -> Run:
    write_atomic(run.file(RECIPE), to_toml(recipe))
    return Run(run.path)


def run_path(name: str) -> Path:
    """Return `runs/NAME`; RecipeError if the name cannot be that of a folder there."""
    if name in ("", ".", "..", LATEST) or "/" in name or any(map(unsafe, name)):
        raise RecipeError(f"name is {name!r}, expected the name of a new folder in {RUNS}/, without a slash.")
    return RUNS / name


def require_run_folder(path: Path) -> None:
    """Raise OutputExistsError if a run cannot be at `path`, since a file or another folder is there."""
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"{path} is a file, not a run folder. {ANOTHER}.")
    if path.is_dir() and not (path / RECIPE).exists() and any(file.name != LOCK for file in path.iterdir()):
        raise OutputExistsError(f"{path} is not a run folder, so it is not replaced. {ANOTHER}.")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from creating or training the run at `path` meanwhile; RunError if one is. A lock ends with its process."""
    require_run_folder(path)
    with contextlib.ExitStack() as opened:
        with output_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace")
                raise RunError(
                    f"process {holder} is training {path}. Wait until it ends, or name another folder with --out."
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # on file systems without locks
                    raise
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            opened.callback(os.ftruncate, descriptor, 0)
        yield


def free_path(name: str, force: bool = False) -> Path:
    """Return `runs/NAME`, or `runs/NAME-2`, `-3` … if that exists and must not be replaced."""
    others = (RUNS / f"{name}-{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain([run_path(name)], others) if force or not path.exists())


def open_run(path: Path | None = None) -> Run:
    """Open a run folder, by default `runs/latest`; RunError if it does not exist, or `runs/latest` belongs to another user."""
    folder = path if path is not None else RUNS / LATEST
    if not (folder / RECIPE).is_file():
        runs = sorted(str(recipe.parent) for recipe in RUNS.glob(f"*/{RECIPE}") if recipe.parent.name != LATEST)
        if path is None and not runs:
            raise RunError(f"no run in {RUNS}/ here. First: edgecnn train")
        target = f" leads to {os.readlink(folder)}, which" if folder.is_symlink() else ""
        here = f"Name a run; runs here: {', '.join(runs)}." if runs else "To make a run: edgecnn train"
        raise RunError(f"{folder}{target} is not a run folder (it has no {RECIPE}). {here}")
    if path is None and not is_own(folder):
        raise RunError(
            f"{folder} belongs to another user, so it is not followed. To use it, name it: {folder.resolve()}"
        )
    return Run(folder.resolve() if folder.is_symlink() else folder)


def trained_run(source: Path) -> Run:
    """Return the run that `source` names by its folder, float.h5, bundle or recipe; RunError if it was not trained."""
    path = source.expanduser()
    if path.suffix in (".edgecnn", ".toml") and path.is_file():
        path = _run_of(path)
    elif path.name == FLOAT_MODEL and path.is_file():
        path = path.parent
    run = open_run(path)
    if run.imported:
        raise RunError(f"{run.path} was imported: it cannot be trained further. Name a run of edgecnn train.")
    run.read(FLOAT_MODEL, "train")
    return run


def start_from(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a recipe's tables with the network and input of the run that `init.source` names. Errors as in `trained_run`."""
    init = tables.get("init")
    source = init.get("source") if isinstance(init, Mapping) else None
    if not isinstance(source, str) or source == RANDOM:
        return dict(tables)
    run = trained_run(Path(source))
    network = run.recipe.network
    own, backbone = run.file(NETWORK_FILE), run.file(BACKBONE)
    function = network.name.rpartition(":")[2]
    name = str(backbone.resolve()) if backbone.exists() else network.name
    inherited = {
        **{key: getattr(network, key) for key in ("input_range", "input_scale", "input_zero_point")},
        **vars(run.info.input),
        "name": f"{own.resolve()}:{function}" if own.exists() else name,
        "options": dict(network.options),
    }
    given = tables.get("network", {})
    if isinstance(given, Mapping) and "name" in given:
        del inherited["options"]  # they belong to the other network
    return merge({"network": inherited}, merge(tables, {"init": {"source": str(run.path.resolve())}}))


def _run_of(path: Path) -> Path:
    """Return the run of a bundle or a recipe file, which contain no weights that can be trained."""
    name = path.stem
    if path.suffix == ".toml":
        tables, kind = load_recipe(path), "a recipe has no weights"
    else:
        from edgecnn.bundle.file import read_bundle

        manifest, kind = read_bundle(path).manifest, "the models of a bundle can no longer be trained"
        try:
            tables, name = dict(manifest.provenance["recipe"]), manifest.name
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BundleError(f"{path} does not record its recipe. Name a run folder instead.") from None
    recipe = build_recipe(tables, str(path))
    run = Run(run_path(recipe.name or name))
    if not (
        run.file(FLOAT_MODEL).is_file()
        and _agree(tables, *map(to_tables, (without_folders(recipe), run.public_recipe)))
    ):
        network = f" --network {shlex.quote(recipe.network.name)}" if recipe.network.name else ""
        raise RunError(
            f"cannot start from {path}: {kind}, and {run.path} is not its run. Train its network first, then start from that run:\n"
            f"edgecnn train --data {shlex.quote(recipe.data.source)}{network} --out {RUNS}/body\n"
            f"then the same command with --init {RUNS}/body"
        )
    return run.path


def _agree(given: Mapping[str, Any], one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two recipes' tables have the same values of the keys that a file gives."""
    return all(
        _agree(value, one[key], other.get(key) or {})
        if isinstance(value, Mapping) and key in one
        else one.get(key) == other.get(key)
        for key, value in given.items()
    )
