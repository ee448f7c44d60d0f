"""Write measured reference figures into a target's file."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from edgecnn.boards.targets import Reference, Target, list_targets
from edgecnn.errors import OutputError, RecipeError, UnknownNameError
from edgecnn.files import data_folder, write_atomic

HEADER = re.compile(r"\s*\[")
OWN = re.compile(r"\s*\[reference[].]")
NEW = "[reference]"


def detect_target(model: str) -> Target:
    """Return the target of a board by the kernel's name for it.

    Args:
        model: the text of /proc/device-tree/model, such as "Raspberry Pi 4 Model B Rev 1.4"; "" where there is none.

    Raises:
        UnknownNameError: if no target's title begins it.
    """
    fitting = [target for target in list_targets() if model and f"{model} ".startswith(f"{target.title} ")]
    if not fitting:
        what = f"no target matches this board, {model!r}" if model else "this machine does not name its board"
        raise UnknownNameError(f"{what}.", advice="name_target")
    return max(fitting, key=lambda target: len(target.title))


def save_reference(target: Target, reference: Reference, out: Path | None = None) -> Path:
    """Write new reference figures into a target's file; its other keys and its comments do not change.

    Args:
        target: whose file it is.
        reference: the figures.
        out: where to write; a file that exists there is changed. The target's own file by default.

    Returns:
        The path written.

    Raises:
        OutputError: if it cannot be written.
        RecipeError: if the file is not TOML that can be changed without changing something else.
    """
    own = data_folder("targets") / f"{target.name}.toml"
    path = out or own
    source = path if path.is_file() else own
    before = source.read_text(encoding="utf-8")
    after = with_reference(before, reference, str(source))
    try:
        write_atomic(path, after)
    except OutputError as error:
        if out is not None:
            raise
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "no permission"
        raise OutputError(f"cannot write {path}, an installed target: {reason}.", advice="save_to") from error
    return path


def with_reference(text: str, reference: Reference, where: str) -> str:
    """Return a TOML text with its table [reference] set.

    Raises:
        RecipeError: if that would change anything else, for example because the table is written inline.
    """
    lines = text.splitlines()
    begin = next((index for index, line in enumerate(lines) if OWN.match(line)), len(lines))
    end = begin
    while end < len(lines) and (end == begin or not HEADER.match(lines[end]) or OWN.match(lines[end])):
        end += 1
    kept = [line for line in lines[begin + 1 : end] if not line.strip() or line.lstrip().startswith("#")]
    while kept and not kept[0].strip():
        kept.pop(0)
    table = [NEW, *(f"{key} = {_toml(value)}" for key, value in dataclasses.asdict(reference).items())]
    before = lines[:begin]
    gap = [""] if before and before[-1].strip() else []
    after = "\n".join(
        [*before, *gap, *table, *([""] if kept and not kept[0].startswith("#") else []), *kept, *lines[end:]]
    )
    after = after.rstrip("\n") + "\n"
    try:
        old, new = tomllib.loads(text), tomllib.loads(after)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: the table [reference] cannot be set: {error}") from None
    old.pop("reference", None)
    if new.pop("reference", None) != dataclasses.asdict(reference) or old != new:
        raise RecipeError(
            f"{where}: the table [reference] cannot be set without changing other keys. Write it as a [reference] table"
        )
    return after


def _toml(value: Any) -> str:
    """Return a string, number or table of strings as TOML, which writes them as JSON does."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
