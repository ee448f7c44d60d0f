"""Make flags from groups of settings: a command's parameter that is a group becomes one flag per setting."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgecnn.cli.options import check_choice, checked, option_name
from edgecnn.device.stream.settings import typed_name
from edgecnn.tables import fields_of


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
