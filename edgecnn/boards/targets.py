"""Targets: one TOML file of data per board, in `targets/`."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.errors import EmulatorError, RecipeError, UnknownNameError, nearest
from edgecnn.files import data_folder

ARCHITECTURES = ("aarch64", "x86_64")
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases that boards run, 12 and 13 by their code names, and the Python of each."""


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """How QEMU plays the board: `cpu` is qemu-aarch64's name for its processor, `release` the Debian on it, one of RELEASES."""

    cpu: str
    release: str = "trixie"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Figures of one inference measured on the board: of which model, on what hardware, with which versions, over n calls.

    `edgecnn benchmark --save` writes them.
    """

    model: str
    hardware: str
    versions: Mapping[str, str]
    n: int
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """A board.

    `arch` is what `uname -m` says, `cpu_model` the processor, `engine`, `provider` and `num_threads` what runs models there,
    `memory_mib` its memory, 0 where it differs from one machine to another.
    """

    name: str
    title: str
    arch: str
    cpu_model: str
    engine: str
    num_threads: int
    memory_mib: int = 0
    provider: str = "cpu"
    emulator: Emulator | None = None
    reference: Reference | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the target as plain JSON values."""
        return dataclasses.asdict(self)


TABLES = {"emulator": Emulator, "reference": Reference}
TYPES = {str: "a string", int: "a whole number", float: "a number", dict: "a table of strings"}


def list_targets() -> list[Target]:
    """Return all targets, sorted by name.

    Raises:
        RecipeError: if a target's file is not a right one.
    """
    return [read_target(path) for path in sorted(data_folder("targets").glob("*.toml"))]


def load_target(name: str) -> Target:
    """Return one target.

    Raises:
        UnknownNameError: if there is none of that name; the message gives the nearest.
        RecipeError: if its file is not a right one.
    """
    paths = {path.stem: path for path in data_folder("targets").glob("*.toml")}
    if name not in paths:
        raise UnknownNameError(f"no target {name!r}. {nearest(name, paths)}")
    return read_target(paths[name])


def read_target(path: Path) -> Target:
    """Read a target's file; the file's name is the target's.

    Raises:
        RecipeError: for an unknown or missing key (naming the nearest) or a wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from None
    target = Target(**_values(Target, {"name": path.stem, **tables}, str(path)))
    if target.name != path.stem:
        raise RecipeError(f"{path}: name must be that of the file, received {target.name!r}")
    if target.arch not in ARCHITECTURES:
        raise RecipeError(f"{path}: arch must be one of {', '.join(ARCHITECTURES)}, received {target.arch!r}")
    if target.emulator and target.emulator.release not in RELEASES:
        raise RecipeError(
            f"{path}: [emulator] release must be one of {', '.join(RELEASES)}, received {target.emulator.release!r}"
        )
    return target


def emulated_targets(names: Sequence[str]) -> list[Target]:
    """Return the targets of some names, each once; "all" stands for every one that can be emulated.

    Args:
        names: of targets with an [emulator] table, several of them in one string with commas between, or "all".

    Raises:
        UnknownNameError: if there is no such target; the message gives the nearest.
        EmulatorError: if it cannot be emulated; the message says which can.
    """
    able = {target.name: target for target in list_targets() if target.emulator}
    chosen: dict[str, Target] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if name == "all":
            chosen |= able
        elif name in able:
            chosen[name] = able[name]
        else:
            load_target(name)
            raise EmulatorError(
                f"{name} cannot be emulated: it has no [emulator] table. Known: {', '.join(able)}, all."
            )
    return list(chosen.values())


def _values(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a table's values as those of a dataclass's fields, each checked."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = next((key for key in table if key not in fields), None)
    if unknown is not None:
        raise RecipeError(f"{where}: unknown key {unknown}. {nearest(unknown, fields)}")
    values: dict[str, Any] = {}
    for name, entry in fields.items():
        if name not in table:
            if entry.default is dataclasses.MISSING:
                raise RecipeError(f"{where}: the key {name} is missing")
        elif name in TABLES:
            if type(table[name]) is not dict:
                raise RecipeError(f"{where}: {name} must be a table, received {table[name]!r}")
            values[name] = TABLES[name](**_values(TABLES[name], table[name], f"{where}: [{name}]"))
        else:
            values[name] = _plain(table[name], entry.type, f"{where}: {name}")
    return values


def _plain(value: Any, annotation: Any, what: str) -> Any:
    """Return a string, number or table of strings after checking its type."""
    expected = annotation if annotation in TYPES else dict
    if expected is float and type(value) is int:
        value = float(value)
    right = type(value) is expected and (expected is not dict or all(type(item) is str for item in value.values()))
    if not right or (expected in (int, float) and value < 0):
        raise RecipeError(f"{what} must be {TYPES[expected]}, received {value!r}")
    return value
