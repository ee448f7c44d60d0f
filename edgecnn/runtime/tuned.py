"""Settings from `edgecnn benchmark --tune`, by bundle SHA-256, in one JSON file. Each is valid for one machine and engine version."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.bundle.manifest import PRECISIONS, ModelEntry
from edgecnn.bundle.read import Bundle
from edgecnn.cpu import read_cpu
from edgecnn.errors import EdgeCNNError
from edgecnn.files import canonical_json, tuned_file, write_atomic
from edgecnn.labels import plural
from edgecnn.runtime.engines import ENGINES, Engine, is_installed, open_engine
from edgecnn.tables import build, key

SCHEMA = "edgecnn.tuned/1"
IGNORED, AGAIN = "the tuned setting is ignored", "Tune again: edgecnn benchmark --tune"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The fastest configuration and its measurement: the time per inference over `n` calls, on a `date` such as 2026-11-25."""

    engine: str = key(choices=tuple(ENGINES))
    engine_version: str
    provider: str | None
    precision: str = key(choices=PRECISIONS)
    threads: int = key(low=1, high=256)
    hardware: str
    date: str
    n: int
    p50_ms: float
    p90_ms: float

    @property
    def about(self) -> str:
        threads = plural(self.threads, "thread")
        return (
            f"tuned on {self.date}: {self.engine} {self.precision}, {threads}, p50 {self.p50_ms:.3f} ms, "
            f"p90 {self.p90_ms:.3f} ms, n = {self.n}"
        )


def hardware() -> str:
    """Return this machine's name: its board or processor, and its number of CPUs."""
    try:
        with open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
            name = file.read().strip("\0 \n")
    except OSError:
        name = ""
    return f"{name or read_cpu().name or platform.machine()}, {os.cpu_count()} CPUs"


def open_tuned(bundle: Bundle) -> tuple[Engine, ModelEntry, int, str] | str:
    """Open a bundle's fastest model on this machine, or return why that is not possible: "" if the bundle has no setting."""
    entries, damage = _read()
    if damage or bundle.sha256 not in entries:
        return damage
    try:
        tuned = build(Tuned, entries[bundle.sha256], ValueError)
    except ValueError as error:
        return f"{IGNORED}: {tuned_file()} is damaged ({error}). {AGAIN}"
    here, requested = hardware(), (ENGINES[tuned.engine].format, tuned.precision)
    model = next((item for item in bundle.manifest.models if (item.format, item.precision) == requested), None)
    if tuned.hardware != here:
        why = f"it was measured on {tuned.hardware}, but this is {here}"
    elif not is_installed(tuned.engine):
        why = f"{tuned.engine} is no longer installed"
    elif model is None:
        why = f"the bundle has no {tuned.precision} model for {tuned.engine}"
    else:
        data, threads = bundle.files[model.file], tuned.threads
        try:
            engine = open_engine(tuned.engine, data, model.format, num_threads=threads, provider=tuned.provider)
        except EdgeCNNError as error:
            return f"{IGNORED}: {error}. {AGAIN}"
        if engine.version == tuned.engine_version:
            return engine, model, threads, tuned.about
        why = f"{tuned.engine} is now {engine.version}; it was tuned with {tuned.engine_version}"
    return f"{IGNORED}: {why}. {AGAIN}"


def store(sha256: str, tuned: Tuned) -> Path:
    """Store a bundle's setting and return the file's path. A damaged file is replaced; other bundles' settings stay."""
    entries, _ = _read()
    path = Path(tuned_file())
    write_atomic(path, canonical_json({"schema": SCHEMA, "bundles": {**entries, sha256: dataclasses.asdict(tuned)}}))
    return path


def remove(sha256: str) -> bool:
    """Remove a bundle's setting; return False if it had none. A damaged file is deleted."""
    path = Path(tuned_file())
    entries, damage = _read()
    if sha256 not in entries and not damage:
        return False
    rest = {key: value for key, value in entries.items() if key != sha256}
    if rest:
        write_atomic(path, canonical_json({"schema": SCHEMA, "bundles": rest}))
    else:
        path.unlink(missing_ok=True)
    return True


def _read() -> tuple[dict[str, Any], str]:
    """Return the file's entries, and why it cannot be used, if so."""
    path = Path(tuned_file())
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{IGNORED}: {path} cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError):
        return {}, f"{IGNORED}: {path} is damaged. {AGAIN}"
    entries = table.get("bundles") if type(table) is dict and table.get("schema") == SCHEMA else None
    if type(entries) is not dict:
        return {}, f"{IGNORED}: {path} does not follow the schema {SCHEMA}. {AGAIN}"
    return entries, ""
