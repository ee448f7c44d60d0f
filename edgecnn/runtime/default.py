"""The default choice of bundle, model and engine."""

import os
from pathlib import Path
from typing import NamedTuple

from edgecnn.bundle.manifest import PRECISIONS, Manifest, ModelEntry
from edgecnn.errors import BundleError, EngineError, UnknownNameError, nearest
from edgecnn.files import data_folder, is_own
from edgecnn.runtime.engines import ENGINES, first_installed, known_engine, offering

LATEST = Path("runs/latest")
SHIPPED = "cifar10-resnet8"

REQUESTED, OF_RUN, INSTALLED = "requested", "of the last run", "installed"
SHIPS = "ships with edgecnn, for a first try: it classifies everything as one of CIFAR-10's ten classes"


class BundleChoice(NamedTuple):
    path: Path
    reason: str


def find_bundle(path: Path | None = None) -> BundleChoice:
    """Return the requested bundle, else the one from this user's last run (runs/latest), else the installed one, else the shipped one.

    BundleError if no bundle exists, or if the last run has none, since another model would answer with other classes.
    """
    if path is not None:
        return BundleChoice(path, REQUESTED)
    others = ""
    if os.path.lexists(LATEST):
        own = is_own(LATEST)
        bundles = LATEST.glob("*.edgecnn") if own else ()
        of_run = max(bundles, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)
        if of_run is not None and is_own(of_run):
            return BundleChoice(of_run, OF_RUN)
        if own and of_run is None:
            run = LATEST.resolve() if LATEST.is_symlink() else LATEST
            why = f"has no bundle. Write it first: edgecnn bundle {run}" if run.is_dir() else "no longer exists"
            raise BundleError(f"the last run, {run}, {why}. To use another bundle, name it with --model.")
        others = f"; {LATEST} belongs to another user"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    installed = Path(data, "edgecnn", "model.edgecnn")
    if installed.is_file():
        return BundleChoice(installed, INSTALLED + others)
    try:
        return BundleChoice(shipped_bundle(), SHIPS + others)
    except FileNotFoundError as error:
        raise BundleError(
            f"no bundle in {LATEST}, none installed, and {error}. Name one with --model, or make one: edgecnn run"
        ) from None


def shipped_bundle() -> Path:
    """Return the path of the bundle that ships with edgecnn; FileNotFoundError if the installation lacks it."""
    return data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn"


class ModelChoice(NamedTuple):
    engine: str
    model: ModelEntry


def choose_model(
    manifest: Manifest, *, engine: str | None = None, provider: str | None = None, precision: str | None = None
) -> ModelChoice:
    """Choose the requested engine or the first suitable installed one, and its model in the requested precision or its default model.

    UnknownNameError for an unknown engine or precision; EngineError or ProviderError if no installed engine is suitable.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError(f"no precision {precision!r}. {nearest(precision, PRECISIONS)}")
    if engine is not None:
        known_engine(engine)
    names = offering([engine] if engine is not None else list(ENGINES), provider)
    models = [model for model in manifest.models if precision in (None, model.precision)]
    formats = {model.format for model in models}
    with_models = [name for name in names if ENGINES[name].format in formats]
    if not with_models:
        has = ", ".join(f"{model.precision} .{model.format}" for model in manifest.models)
        kind = f"{precision} model" if precision else "model"
        raise EngineError(
            f"the bundle has no {kind} for {' or '.join(names)}; it has {has}. See --engine and --precision."
        )
    name = first_installed(with_models)
    fitting = [model for model in models if model.format == ENGINES[name].format]
    default = manifest.defaults.get(ENGINES[name].format)
    return ModelChoice(name, next((model for model in fitting if model.file == default), fitting[0]))
