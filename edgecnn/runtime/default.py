"""Which bundle, which of its models and which engine are taken when nobody says."""

import os
from pathlib import Path
from typing import NamedTuple

from edgecnn.bundle.manifest import PRECISIONS, Manifest, ModelEntry
from edgecnn.errors import BundleError, EngineError, UnknownNameError, nearest
from edgecnn.files import data_folder
from edgecnn.runtime.engines import ENGINES, first_installed, known_engine, offering

LATEST = Path("runs/latest")
SHIPPED = "cifar10-article"


class BundleChoice(NamedTuple):
    """A bundle's path and why it was taken."""

    path: Path
    reason: str


def find_bundle(path: Path | None = None) -> BundleChoice:
    """Find the bundle to use.

    The one asked for; else that of the last run (`runs/latest` below the working directory); else the installed one
    (`edgecnn/model.edgecnn` in $XDG_DATA_HOME or ~/.local/share); else the one that ships with edgecnn.

    Raises:
        BundleError: if there is none.
    """
    if path is not None:
        return BundleChoice(path, "asked for")
    last = sorted(LATEST.glob("*.edgecnn"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    if last:
        return BundleChoice(last[-1], "of the last run")
    installed = Path(
        os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "edgecnn", "model.edgecnn"
    )
    if installed.is_file():
        return BundleChoice(installed, "installed")
    try:
        shipped = data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn"
    except FileNotFoundError as error:
        raise BundleError(f"no bundle in {LATEST}, none installed, and {error}") from None
    return BundleChoice(shipped, "ships with edgecnn")


class ModelChoice(NamedTuple):
    """An engine's name and the bundle's model that it is to run."""

    engine: str
    model: ModelEntry


def choose_model(
    manifest: Manifest, *, engine: str | None = None, provider: str | None = None, precision: str | None = None
) -> ModelChoice:
    """Choose an engine and a model of a bundle.

    The engine asked for, else the first installed one that has a model here and offers the provider; then the model of its format that
    has the precision, else the manifest's default for the format.

    Args:
        manifest: of the bundle.
        engine: one of ENGINES.
        provider: "cpu" or "cuda".
        precision: one of PRECISIONS.

    Raises:
        UnknownNameError: for an engine or a precision that does not exist.
        EngineError: if no installed engine has such a model.
        ProviderError: if the provider is not the engine's, or nobody's.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError(f"no precision {precision!r}. {nearest(precision, PRECISIONS)}")
    if engine is not None:
        known_engine(engine)
    names = offering([engine] if engine is not None else list(ENGINES), provider)
    fitting = {
        name: [
            model
            for model in manifest.models
            if model.format == ENGINES[name].format and precision in (None, model.precision)
        ]
        for name in names
    }
    with_models = [name for name in names if fitting[name]]
    if not with_models:
        has = ", ".join(f"{model.precision} .{model.format}" for model in manifest.models)
        wanted = f"{precision} model" if precision else "model"
        raise EngineError(
            f"the bundle has no {wanted} for {' or '.join(names)}; it has {has}. See --engine and --precision."
        )
    name = first_installed(with_models)
    default = manifest.defaults.get(ENGINES[name].format)
    return ModelChoice(name, next((model for model in fitting[name] if model.file == default), fitting[name][0]))
