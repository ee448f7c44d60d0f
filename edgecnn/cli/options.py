"""Options that several commands share and how to parse them, and flags made from groups of settings; results on standard output, notes on
standard error.
"""

import dataclasses
import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TextIO, TypeVar

import typer

from edgecnn.device.stream.settings import typed_name
from edgecnn.labels import printable_lines, utf8
from edgecnn.tables import fields_of, to_json

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier


LINE_BYTES = 1 << 20
"""Longest line that goes out in one write. A result with 10,000 classes takes 600 kB."""


def note(text: str) -> None:
    """Print a note on standard error. Control characters in a hostile name cannot move the cursor."""
    sys.stderr.write(f"{printable_lines(text)}\n")
    sys.stderr.flush()


def emit_line(text: str) -> None:
    """Print a line in a single write of bytes; with `print`, a signal may arrive between the text and its newline."""
    sys.stdout.flush()
    out = _buffered(sys.stdout)
    out.write(f"{text}\n".encode(sys.stdout.encoding, sys.stdout.errors or "strict"))
    out.flush()


def emit_json(value: Any) -> None:
    """Print a dataclass, or any value that `edgecnn.tables.to_json` accepts, as an indented JSON document."""
    emit_line(utf8(json.dumps(to_json(value), ensure_ascii=False, indent=2, sort_keys=True), r"\\"))


def terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@functools.lru_cache(maxsize=1)
def _buffered(stdout: TextIO) -> BinaryIO:
    """Return our own buffer for standard output's file: Python's has no bytes under PYTHONUNBUFFERED, and otherwise 8 KiB."""
    return open(stdout.fileno(), "wb", buffering=LINE_BYTES, closefd=False)


T = TypeVar("T")
U = TypeVar("U")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")]
Model = Annotated[
    Path | None,
    typer.Option(
        help="The bundle to use.",
        show_default="the last run's, or the release in use on this board, or the installed one, or the one shipped with edgecnn",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.", show_default="off")]
SlotsFolder = Annotated[Path, typer.Option("--slots", metavar="DIR", help="Folder of this board's releases.")]


def option(
    default: Any, help: str, shown: str | bool = True, panel: str | None = None, *flags: str, **more: Any
) -> Any:
    """Return a typer.Option: its default (... in `Annotated`), its help, its default in words (True shows the value), its heading, and its
    flags unless the parameter's name gives them."""
    return typer.Option(default, *flags, help=help, show_default=shown, rich_help_panel=panel, **more)


def option_name(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    if value is not None and value not in choices:
        raise typer.BadParameter(f"received {value!r}, expected {', '.join(map(str, choices))}.", param_hint=option)


def check_action(context: typer.Context, action: str, actions: Collection[str]) -> None:
    """Raise a usage error for an unknown ACTION, or for an option that its heading gives to other actions: "With add and share"."""
    from edgecnn.cli.help import of_others  # here, since a fast start needs no help

    check_choice("ACTION", action, actions)
    for item in context.command.params:
        heading = getattr(item, "rich_help_panel", None) or ""
        if of_others(heading, action):
            refuse_options(context, (item.name or "",), f"works only {heading.lower()}.")


def refuse_options(context: typer.Context, names: Collection[str], why: str) -> None:
    """Raise a usage error that names the option, if one of these was given where it has no effect."""
    for item in context.command.params:
        given = context.get_parameter_source(item.name or "")
        if item.name in names and given is not None and given.name != "DEFAULT":
            raise typer.BadParameter(why, param_hint=item.opts[0])


def checked(option: str, read: Callable[[T], U], value: T) -> U:
    """Return `read(value)` for an option's value; a ValueError becomes a usage error."""
    try:
        return read(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint=option) from None


def secret(option: str, prefix: str, file: Path | None) -> tuple[str | None, str | None]:
    """Return the user and password that `edgecnn.device.system.read_secret` reads from an option's file; warn if everyone may read it."""
    from edgecnn.device.system import read_secret

    if file is not None:
        note_if_shared(file)
    return checked(option, lambda path: read_secret(prefix, path), file)


def note_if_shared(file: Path) -> None:
    """Warn if every user of this machine may read a file that holds a password."""
    import contextlib
    import shlex
    import stat

    with contextlib.suppress(OSError):
        if file.stat().st_mode & stat.S_IROTH:
            shared = f"{file} holds a password, and every user of this machine may read it."
            note(f"{shared} Change that: chmod o-r {shlex.quote(str(file))}")


def load_classifier(model: Path | None, **choice: Any) -> "Classifier":
    """Load a bundle as `edgecnn.runtime.classifier.Classifier.load` does, and print its name."""
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(default_bundle(model), **choice)
    note(classifier.about)
    return classifier


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return a typer command with flags for each parameter that is a group (all its settings) or `Annotated[KIND, GROUP]` (that one)."""
    kept = []
    settings: dict[str, Any] = {}
    for item in inspect.signature(command).parameters.values():
        kind: Any = item.annotation
        group: Any = next(filter(dataclasses.is_dataclass, (kind, *getattr(kind, "__metadata__", ()))), None)
        if group is None:
            kept.append(item.replace(kind=item.KEYWORD_ONLY))
            continue
        settings[item.name] = (
            (kind, fields_of(group)) if kind is group else (None, {item.name: fields_of(group)[item.name]})
        )
        kept += [flag(entry, group.heading) for entry in settings[item.name][1].values()]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {}
        for name, (kind, entries) in settings.items():
            taken = {field: convert_setting(entry, values.pop(typed_name(entry))) for field, entry in entries.items()}
            made[name] = kind(**taken) if kind else taken[name]
        command(**values, **made)

    run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def flag_names(*groups: type) -> tuple[str, ...]:
    return tuple(typed_name(entry) for kind in groups for entry in fields_of(kind).values())


def flag(entry: dataclasses.Field, heading: str) -> inspect.Parameter:
    about, name = entry.metadata, typed_name(entry)
    default = about.get("typed", entry.default)
    kind: Any = entry.type if "typed" not in about else str | None if default is None else type(default)
    low, high = about.get("low"), None if about.get("unlimited") else about.get("high")
    if kind in (float, float | None):
        low, high = (None if limit is None else float(limit) for limit in (low, high))
    option = typer.Option(
        *([option_name(name)] if default is False or name == "region" else []), min=low, max=high,
        metavar=about.get("metavar"), help=about["about"],
        show_default="off" if default is False else about.get("shown", True), rich_help_panel=about.get("heading", heading),
    )  # fmt: skip
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def convert_setting(entry: dataclasses.Field, value: Any) -> Any:
    """Convert the value typed for a flag to its setting; an invalid value is a usage error (typer.BadParameter)."""
    about, name = entry.metadata, option_name(typed_name(entry))
    check_choice(name, value, about.get("choices", (value,)))
    if value == about.get("typed", entry.default):
        return entry.default
    return checked(name, about["read"], value) if "read" in about else value
