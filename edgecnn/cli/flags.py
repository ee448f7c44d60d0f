"""Flags made from the settings of a stream: a command's parameter that is a group of settings becomes a flag for each of them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from edgecnn.cli.options import check_choice, checked, option_name
from edgecnn.device.stream.settings import typed_name
from edgecnn.tables import fields_of


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer whose parameters that are groups of settings are replaced by their flags, in place.

    The command gets each group as it was typed, checked.
    """
    parameters = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {
        item.name: item.annotation for item in parameters if dataclasses.is_dataclass(item.annotation)
    }

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: take(kind, values) for name, kind in groups.items()}
        flags = {flag for kind in groups.values() for flag in flag_names(kind)}
        command(**made, **{name: value for name, value in values.items() if name not in flags})

    kept = [[item] if item.name not in groups else flags_of(groups[item.name]) for item in parameters]
    signature = inspect.Signature([item.replace(kind=item.KEYWORD_ONLY) for items in kept for item in items])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def flag_names(*groups: type) -> tuple[str, ...]:
    """Return the parameters of the flags of groups of settings."""
    return tuple(typed_name(entry) for kind in groups for entry in fields_of(kind).values())


def flags_of(group: Any) -> list[inspect.Parameter]:
    """Return the parameters of a group's flags."""
    return [flag(entry, group.heading) for entry in fields_of(group).values()]


def flag(entry: dataclasses.Field, heading: str) -> inspect.Parameter:
    """Return the parameter of a setting's flag."""
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


def take(group: Any, values: Mapping[str, Any]) -> Any:
    """Return a group of settings with the values of its flags.

    Raises:
        typer.BadParameter: a usage error, for a value that is not valid.
    """
    made = {}
    for field in fields_of(group).values():
        flag = typed_name(field)
        value = values[flag]
        check_choice(option_name(flag), value, field.metadata.get("choices", (value,)))
        if value != field.metadata.get("typed", field.default):
            read = field.metadata.get("read")
            made[field.name] = checked(option_name(flag), read, value) if read else value
    return group(**made)
