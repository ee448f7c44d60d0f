"""Which bundle, which of its models and which engine are used by default."""

import os
from pathlib import Path
from typing import NamedTuple

from edgecnn.bundle.manifest import PRECISIONS, Manifest, ModelEntry
from edgecnn.bundle.read import Bundle
from edgecnn.errors import BundleError, EngineError, UnknownNameError, nearest
from edgecnn.files import data_folder, is_own, write_atomic
from edgecnn.runtime.engines import ENGINES, Engine, first_installed, known_engine, offering, open_engine
from edgecnn.runtime.state import state_file, tuned_file

LATEST = Path("runs/latest")
SHIPPED = "cifar10-resnet8"
LAST_BUNDLE = "last-bundle"


class BundleChoice(NamedTuple):
    """A bundle's path, and why it was chosen."""

    path: Path
    reason: str


def find_bundle(path: Path | None = None) -> BundleChoice:
    """Find the bundle to use.

    The requested one; else the one that this user made last, in any folder (`remember_bundle`), or a newer one of the last run
    (`runs/latest` below the working directory, if it is this user's); else the installed one (`edgecnn/model.edgecnn` in $XDG_DATA_HOME
    or ~/.local/share); else the one that ships with edgecnn. If the one made last is gone, or runs/latest another user's, the reason
    says so.

    Raises:
        BundleError: if there is none.
    """
    if path is not None:
        return BundleChoice(path, "requested")
    last, since_ns = _remembered()
    made = last if last is not None and last.is_file() else None
    gone = f"; the bundle made last, {last}, is no longer there" if last is not None and made is None else ""
    of_run = max(LATEST.glob("*.edgecnn"), key=_changed, default=None)
    if of_run is not None and not (is_own(LATEST) and is_own(of_run)):
        of_run, gone = None, f"{gone}; {LATEST} belongs to another user"
    if of_run is not None and (made is None or _changed(of_run)[0] > since_ns):
        return BundleChoice(of_run, f"of the last run{gone}")
    if made is not None:
        return BundleChoice(made, f"made last{gone}")
    installed = Path(
        os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "edgecnn", "model.edgecnn"
    )
    if installed.is_file():
        return BundleChoice(installed, f"installed{gone}")
    try:
        shipped = shipped_bundle()
    except FileNotFoundError as error:
        raise BundleError(f"no bundle in {LATEST}, none installed, and {error}") from None
    return BundleChoice(shipped, f"ships with edgecnn{gone}")


def shipped_bundle() -> Path:
    """Return the path of the bundle that ships with edgecnn.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    return data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn"


def remember_bundle(path: Path) -> None:
    """Record that a bundle is the one that this user made last, so that `find_bundle` takes it by default.

    Raises:
        OutputError: if the record, edgecnn/last-bundle in $XDG_STATE_HOME or ~/.local/state, cannot be written.
    """
    write_atomic(Path(state_file(LAST_BUNDLE)), os.fsencode(path.resolve()))


def _remembered() -> tuple[Path | None, int]:
    """Return the recorded path, None if no record can be read, and when it was recorded, in ns."""
    try:
        with open(state_file(LAST_BUNDLE), "rb") as file:
            return Path(os.fsdecode(file.read())), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None, 0


def _changed(file: Path) -> tuple[int, str]:
    return file.stat().st_mtime_ns, file.name


class ModelChoice(NamedTuple):
    """An engine's name and the bundle's model that it is to run."""

    engine: str
    model: ModelEntry


def choose_model(
    manifest: Manifest, *, engine: str | None = None, provider: str | None = None, precision: str | None = None
) -> ModelChoice:
    """Choose an engine and a model of a bundle.

    The requested engine, else the first installed one that has a model here and offers the provider; then the model of its format that
    has the requested precision, else the manifest's default for the format.

    Args:
        manifest: of the bundle.
        engine: one of ENGINES.
        provider: one of `edgecnn.runtime.engines.PROVIDERS`.
        precision: one of PRECISIONS.

    Raises:
        UnknownNameError: for an engine or a precision that does not exist.
        EngineError: if no installed engine has such a model.
        ProviderError: if the engine, or any engine, does not offer the provider.
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
        kind = f"{precision} model" if precision else "model"
        raise EngineError(f"the bundle has no {kind} for {' or '.join(names)}; it has {has}.", advice="choose_model")
    name = first_installed(with_models)
    default = manifest.defaults.get(ENGINES[name].format)
    return ModelChoice(name, next((model for model in fitting[name] if model.file == default), fitting[name][0]))


class OpenedModel(NamedTuple):
    """A bundle's model, opened by an engine. `remark` says that a tuned setting was used, or why it was ignored; "" without one."""

    engine: Engine
    entry: ModelEntry
    num_threads: int
    remark: str


def open_model(
    bundle: Bundle,
    *,
    engine: str | None = None,
    provider: str | None = None,
    precision: str | None = None,
    num_threads: int | None = None,
) -> OpenedModel:
    """Open one of a bundle's models: as requested; without a request, as `edgecnn benchmark --tune` chose; else the default.

    Args:
        bundle: as read.
        engine, provider, precision: as in `choose_model`.
        num_threads: threads for one inference; 1 by default.

    Raises:
        UnknownNameError, EngineError, ProviderError: if the request cannot be met.
    """
    remark = ""
    if (engine, provider, precision, num_threads) == (None, None, None, None) and os.path.exists(tuned_file()):
        from edgecnn.runtime.tuned import open_tuned  # here, since few have tuned

        tuned = open_tuned(bundle)
        if not isinstance(tuned, str):
            return OpenedModel(*tuned)
        remark = tuned
    threads = 1 if num_threads is None else num_threads
    name, entry = choose_model(bundle.manifest, engine=engine, provider=provider, precision=precision)
    opened = open_engine(name, bundle.files[entry.file], entry.format, num_threads=threads, provider=provider)
    return OpenedModel(opened, entry, threads, remark)
