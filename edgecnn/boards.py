"""Boards that models are deployed to, the targets: one TOML file of data for each, in `targets/`; and where a board keeps its files."""

from collections.abc import Sequence
from pathlib import Path

from edgecnn.errors import EmulatorError, RecipeError, UnknownNameError, nearest
from edgecnn.files import data_folder
from edgecnn.tables import Struct, build, key

SERVICE_CONFIG = Path("/etc/edgecnn/service.toml")
"""On a board: the options of the service."""

TRUST = Path("/var/lib/edgecnn-trust")
"""On a board: files that only root writes, verified metadata, marks, the board's id and the last check."""

UPDATE_SCHEMA = "edgecnn.update/1"
"""The schema of a board's last check for a release."""

SAMPLE_FILE, LABELS_FILE = "sample.json", "labels.jsonl"
"""In a board's folder of kept pictures: the random sample, and the decisions made on the board's own page."""

ARCHITECTURES = ("aarch64", "x86_64")
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
"""The Debian releases that boards run (12 and 13, by code name), and the Python version of each."""


class Emulator(Struct):
    """How QEMU emulates the board: `cpu` is the processor's name in qemu-aarch64, `release` the Debian release."""

    cpu: str
    release: str = key("trixie", choices=tuple(RELEASES))


class Target(Struct):
    """A board. `arch` is the output of `uname -m`; `memory_mib` is 0 if it varies between machines."""

    name: str
    title: str
    arch: str = key(choices=ARCHITECTURES)
    cpu_model: str
    engine: str
    num_threads: int = key(low=0)
    memory_mib: int = key(0, low=0)
    provider: str = "cpu"
    emulator: Emulator | None = None


def list_targets() -> list[Target]:
    return [read_target(path) for path in sorted(data_folder("targets").glob("*.toml"))]


def read_target(path: Path) -> Target:
    """Read a target from its file, NAME.toml; RecipeError if it is not valid."""
    import tomllib  # here, since the device's start does not need it

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from None
    target = build(Target, {"name": path.stem, **tables}, RecipeError, str(path))
    if target.name != path.stem:
        raise RecipeError(
            f"{path}: name must match the file name, {path.stem!r}; received {target.name!r}. Leave name out, or rename the file."
        )
    return target


def emulated_targets(names: Sequence[str]) -> list[Target]:
    """Return the named targets without repeats. A string may hold several names, separated by commas, or "all"."""
    targets = {target.name: target for target in list_targets()}
    able = {name: target for name, target in targets.items() if target.emulator}
    chosen: dict[str, Target] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if name == "all":
            chosen |= able
        elif name in able:
            chosen[name] = able[name]
        elif name not in targets:
            raise UnknownNameError(f"no target {name!r}. {nearest(name, targets)}")
        else:
            raise EmulatorError(
                f"{name} cannot be emulated: it has no [emulator] table. Choose from: {', '.join(able)}, all."
            )
    return list(chosen.values())
