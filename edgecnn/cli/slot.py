"""`edgecnn slot`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import Json, SlotsFolder, check_action, emit_json, note, option, refuse_options
from edgecnn.labels import printable
from edgecnn.tables import to_json

if TYPE_CHECKING:
    from edgecnn.device.slots.record import Slots
    from edgecnn.device.slots.store import Store


ACTIONS = {"add": "BUNDLE", "activate": "RELEASE", "rollback": "", "list": "", "prune": ""}


def slot(
    context: typer.Context,
    action: str = typer.Argument(..., metavar="ACTION", help="add, activate, rollback, list or prune; required"),
    name: str | None = typer.Argument(
        None,
        metavar="[BUNDLE|RELEASE]",
        help="A bundle for add; for activate, the first digits of a release's SHA-256.",
        show_default="none",
    ),
    activate: bool = option(False, "Put it in use immediately.", "off", "With add", "--activate"),
    older: bool = option(
        False, "Activate a release with a smaller serial number.", "off", "With add and activate", "--older"
    ),
    other_classes: bool = option(
        False, "Activate a release with other classes than the one in use.", "off", None, "--other-classes"
    ),
    accept: str = option(
        "",
        "Activate a release without a verdict that it may replace the one in use, and record this reason.",
        "none",
        metavar="REASON",
    ),
    keep: int = option(
        2, "Releases to keep: the one in use and those before it.", True, "With prune", min=1, metavar="N"
    ),
    root: SlotsFolder = Path("/var/lib/edgecnn"),
    json: Json = False,
) -> None:
    """Change the model that edgecnn service runs on this board.

    add copies a bundle to the board, activate puts it in use, rollback returns to the previous one, list shows all, and prune removes bad
    and old ones. A running service switches over immediately. The output names what changes: classes, verified accuracy, and the part of an
    image that is seen. A bundle needs a verdict that it may replace the one in use, from edgecnn run --against, or --accept.

    An activated release is pending. It becomes good once the self-test has passed on this board and new frames have been classified. If
    that does not happen within three starts, it becomes bad, and the previous release comes back automatically.

    \b
    Examples:
      edgecnn slot list
      edgecnn slot add cats.edgecnn --activate
      edgecnn slot activate 3f2a9c
      edgecnn slot rollback
    """
    check_action(context, action, ACTIONS)
    if not (activate or action == "activate"):
        refuse_options(context, ("older", "other_classes", "accept"), "works only with activate and add --activate.")
    if (name is not None) != (action in ("add", "activate")):
        expected = {"add": "name a bundle", "activate": "name a release: edgecnn slot list"}.get(action)
        raise typer.BadParameter(f"{expected or f'{action} takes no name'}.", param_hint="[BUNDLE|RELEASE]")
    from edgecnn.device.slots.record import rolled_back
    from edgecnn.device.slots.store import Store, Use

    store = Store(root)
    slots = store.read()
    before, use = slots.current, Use(older=older, others=other_classes, accept=accept)
    if action == "add":
        name, slots = store.add(Path(name or ""), use if activate else None)
        note(f"added: {slot_text(slots, name)}")
    elif action == "activate":
        _, slots = store.activate(name or "", use)
    if action == "activate" or activate:
        note_change(store, slots, before)
    elif action == "rollback":
        slots = store.change(rolled_back)
        note_change(store, slots, before)
    elif action == "prune":
        gone, slots = store.prune(keep)
        note(f"removed: {', '.join(release[:12] for release in gone) or 'none'}")
    show(store, slots, json)


def note_change(store: "Store", slots: "Slots", before: str | None) -> None:
    from edgecnn.device.slots.store import about_text, class_difference

    if slots.current is None:
        return
    note(f"in use: {slot_text(slots, slots.current)}")
    new, old = store.about(slots.current), store.about(before)
    words, former = about_text(new) if new else {}, about_text(old) if old else {}
    for name, text in words.items():
        changed = former.get(name, text) != text and f"before: {former[name]}"
        if new and old and name == "classes":
            changed = class_difference(new, old)
        note(f"  {name:8} {text}{f'; {changed}' if changed else ', as before' if old else ''}")


def show(store: "Store", slots: "Slots", json: bool) -> None:
    from edgecnn.device.slots.record import NO_RELEASE
    from edgecnn.device.slots.store import about_text

    if json:
        emit_json(table(store, slots))
        return
    if not slots.chain:
        print(NO_RELEASE)
    for release in dict.fromkeys((*slots.chain, *slots.releases)):
        place = "in use" if release == slots.current else "before" if release in slots.chain else "-"
        about = store.about(release)
        words = about_text(about) if about else {}
        rest = (
            "accuracy {accuracy}; classes {classes}".format_map(words) if words else "its bundle is missing or damaged"
        )
        print(f"{place:7} {slot_text(slots, release)}; {rest}")


def slot_text(slots: "Slots", release: str) -> str:
    about = slots.releases[release]
    serial = f" serial {about.serial}" if about.serial else ""
    reason = about.reason or slots.held.get(release)
    accepted = f"; accepted: {about.accepted}" if about.accepted else ""
    return printable(f"{release[:12]} {about.name}{serial} {about.state}{f': {reason}' if reason else ''}{accepted}")


def table(store: "Store", slots: "Slots") -> dict[str, Any]:
    """Return the record as a JSON document, with each intact bundle's description of itself."""
    document = {"current": slots.current, **to_json(slots)}
    for release, entry in document["releases"].items():
        if about := store.about(release):
            entry |= {"labels": about.labels, "accuracy": about.accuracy, "images": about.images}
    return document
