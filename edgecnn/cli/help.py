"""A command's help: its arguments and options, under headings."""

from typing import Any


def sections(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the rows of a command's help by heading, in the order of the first row of each.

    typer shows its groups of options (`rich_help_panel`) only with rich, which a device does not have.

    Args:
        command: built by typer.
        context: of the command.

    Returns:
        For each heading its rows: how the parameter is typed, and what it means, with its default.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        if row is None:
            continue
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        heading = getattr(parameter, "rich_help_panel", None) or usual
        groups.setdefault(heading, []).append((row[0], plain_default(row[1], parameter)))
    return {heading: groups[heading] for heading in sorted(groups, key=lambda item: item != "Arguments")}


def plain_default(text: str, parameter: Any) -> str:
    """Return a parameter's help without the brackets that typer puts around a default that is stated as text."""
    default = getattr(parameter, "show_default", None)
    return text.replace(f"default: ({default})", f"default: {default}") if isinstance(default, str) else text
