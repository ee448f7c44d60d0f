"""`edgecnn slot`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecnn.cli.console import emit_json, note
from edgecnn.cli.options import Json, Root, check_choice
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.device.slots.record import Slots

ACTIONS = {"add": "BUNDLE", "activate": "RELEASE", "rollback": "", "list": "", "prune": ""}
"""Each action, and what follows it."""


def slot(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="add, activate, rollback, list or prune; required")],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE|RELEASE]",
            help="For add a bundle, for activate a release: the first digits of its SHA-256.",
            show_default="none",
        ),
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate", help="Put it in use at once.", show_default="off", rich_help_panel="With add")
    ] = False,
    older: Annotated[
        bool,
        typer.Option(
            "--older",
            help="Activate a release with a smaller serial number.",
            show_default="off",
            rich_help_panel="With add and activate",
        ),
    ] = False,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Releases that stay: the one in use and those before it.",
            rich_help_panel="With prune",
        ),
    ] = 2,
    root: Root = Path("/var/lib/edgecnn"),
    json: Json = False,
) -> None:
    """Change the model that edgecnn service runs on this board.

    add copies a bundle to the board, activate puts it in use, rollback puts the one before it in use, list shows all, and prune removes bad
    and old ones. A running service changes over at once.

    A release that was activated is pending. It becomes good after the self-test has passed on this board and fresh frames were classified.
    If that does not happen in three starts, it is bad and the one before it comes back by itself.

    \b
    Examples:
      edgecnn slot list
      edgecnn slot add cats.edgecnn --activate
      edgecnn slot activate 3f2a9c
      edgecnn slot rollback
    """
    check_choice("ACTION", action, ACTIONS)
    if activate and action != "add":
        raise typer.BadParameter("goes with add.", param_hint="--activate")
    if (name is not None) != (action in ("add", "activate")):
        expected = {"add": "name a bundle", "activate": "name a release: edgecnn slot list"}.get(action)
        raise typer.BadParameter(f"{expected or f'{action} takes no name'}.", param_hint="[BUNDLE|RELEASE]")
    from edgecnn.device.slots.record import NO_RELEASE, rolled_back
    from edgecnn.device.slots.store import Store

    store = Store(root)
    if action == "add":
        name, slots = store.add(Path(name or ""))
        note(f"added: {described(slots, name)}")
    if action == "activate" or activate:
        release, slots = store.activate(name or "", older=older)
        note(f"in use: {described(slots, release)}")
    elif action == "rollback":
        slots = store.change(rolled_back)
        note(f"in use: {described(slots, slots.current)}" if slots.current else NO_RELEASE)
    elif action == "prune":
        gone, slots = store.prune(keep)
        note(f"removed: {', '.join(release[:12] for release in gone) or 'none'}")
    elif action == "list":
        slots = store.read()
    show(slots, json)


def show(slots: "Slots", json: bool) -> None:
    """Print all releases, those in use or to come back first."""
    if json:
        emit_json(table(slots))
        return
    from edgecnn.device.slots.record import NO_RELEASE

    if not slots.chain:
        print(NO_RELEASE)
    for position, release in enumerate(slots.chain):
        print(f"{'before' if position else 'in use':7} {described(slots, release)}")
    for release in slots.releases:
        if release not in slots.chain:
            print(f"{'-':7} {described(slots, release)}")


def described(slots: "Slots", release: str) -> str:
    """Return a release for people: its name, serial number, state and hash."""
    about = slots.releases[release]
    serial = f" serial {about.serial}" if about.serial else ""
    return printable(f"{release[:12]} {about.name}{serial} {about.state}{f': {about.reason}' if about.reason else ''}")


def table(slots: "Slots") -> dict[str, Any]:
    """Return the record as a JSON document: releases in the order of `chain`, then the others."""
    from edgecnn.tables import to_json

    return {"current": slots.current, **to_json(slots)}
