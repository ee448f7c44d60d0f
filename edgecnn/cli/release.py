"""`edgecnn release`."""

import os
import sys
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import (
    Json,
    check_action,
    check_choice,
    checked,
    emit_json,
    note,
    note_if_shared,
    option,
    refuse_options,
    terminal_width,
)
from edgecnn.errors import PartialFailure, ReleaseError, first_line
from edgecnn.labels import plural, printable

if TYPE_CHECKING:
    from edgecnn.bundle.channel import Entry
    from edgecnn.release.keys import Keys
    from edgecnn.release.repository import Repository

ACTIONS = {
    "init": "[DIR]",
    "add": "BUNDLE",
    "share": "CHANNEL PERCENT",
    "stop": "CHANNEL",
    "refresh": "[targets|root]",
    "rotate": "KEY...",
    "status": "",
}
REPOSITORY = Path("releases")


def release(
    context: typer.Context,
    action: str = typer.Argument(
        ..., metavar="ACTION", help="init, add, share, stop, refresh, rotate or status; required"
    ),
    names: list[str] | None = typer.Argument(
        None,
        metavar="[DIR|BUNDLE|CHANNEL|KEY]...",
        help="A new folder for init, a bundle for add, a channel and the percentage for share, a channel for stop, what to sign again "
        "for refresh, and the keys for rotate: online, targets, root-1 and so on.",
        show_default="none",
    ),
    repo: Path = option(REPOSITORY, "The folder of the repository.", True, None, metavar="DIR"),
    keys: list[Path] | None = option(
        None,
        "A folder with keys; new ones go to the first. May be repeated.",
        "DIR-keys, next to DIR",
        None,
        metavar="FOLDER",
    ),
    to: str = option("", "The channel for the release.", "none", "With add", metavar="CHANNEL"),
    share: int | None = option(
        None, "Percentage of the boards that get it.", "none", "With add", metavar="N", min=0, max=100
    ),
    pilot: list[str] | None = option(
        None,
        "Id of a board that gets it regardless of the share. May be repeated.",
        "none",
        "With add and share",
        metavar="ID",
    ),
    accept: str = option(
        "",
        "Release it although its gate failed, or without a verdict that it may replace what boards have, and record this reason.",
        "none",
        "With add",
        metavar="REASON",
    ),
    allow_older_from: list[str] | None = option(
        None,
        "A release that this older bundle may replace: the first digits of its SHA-256. May be repeated.",
        "none",
        "With add",
        metavar="SHA256",
    ),
    root_keys: int = option(3, "Number of root keys.", True, "With init", metavar="N", min=1, max=9),
    root_threshold: int = option(
        2, "Number of root keys that must sign.", True, "With init", metavar="N", min=1, max=9
    ),
    hosts: Path | None = option(
        None, "A file of boards, one per line, to ask over ssh.", "none", "With status", metavar="FILE"
    ),
    jobs: int = option(16, "Boards to ask at a time.", True, "With status", metavar="N", min=1, max=256),
    json: Json = False,
) -> None:
    """Release bundles to boards that fetch them on their own.

    A repository is a folder of signed files: copy it to any web server, bucket or stick. init makes it and its keys. add releases a bundle
    to a share of a channel's boards, share widens it, and stop ends it. refresh signs the metadata again before it expires, within 30 days.
    rotate replaces lost or stolen keys. status shows all of this, or with --hosts what boards report about their last check.

    Root and targets keys have a passphrase, which edgecnn can read from the file that EDGECNN_RELEASE_PASSPHRASE_FILE names.

    \b
    Examples:
      edgecnn release init
      edgecnn release add photos.edgecnn --to door --share 5
      edgecnn release share door 100
      edgecnn release stop door
      edgecnn release refresh
      edgecnn release rotate online
      edgecnn release status
      edgecnn release status --hosts boards.txt
    """
    check_action(context, action, ACTIONS)
    given = names or []
    check_names(action, given)
    if action == "add" and not (to and share is not None):
        raise typer.BadParameter("add needs --to and --share.", param_hint="--to")
    if action == "init" and given:
        refuse_options(context, ("repo",), "init takes the folder's name without it.")
    if hosts is not None:
        show_boards(hosts, jobs, json)
        return
    from edgecnn.release import operations
    from edgecnn.release.keys import Keys, default_folder
    from edgecnn.release.repository import Repository

    folder = Path(given[0]) if action == "init" and given else repo
    repository, held = Repository(folder), Keys(keys or [default_folder(folder)], ask_passphrase)
    if action == "init":
        operations.init(folder, held, root_keys=root_keys, threshold=root_threshold)
        note(f"keys: {held.own}. Keep the root keys offline, each in a different place, and a copy of each.")
        note(f"trust root, for each board: {repository.metadata / '1.root.json'}")
    elif action == "add":
        from edgecnn.bundle.file import read_bundle

        offer = operations.Offer(
            channel=to,
            share=share or 0,
            pilots=pilot or (),
            accepted=accept,
            instead_of=allow_older_from or (),
        )
        entry = operations.add(repository, held, read_bundle(Path(given[0])), offer)
        show_entry(repository, entry)
        for other in operations.left_behind(repository, entry):
            note(
                f"boards that have {other.path} keep it: add --allow-older-from {other.sha256[:12]} to bring them back"
            )
    elif action == "share":
        show_entry(repository, operations.change(repository, held, given[0], share=int(given[1]), pilots=pilot or ()))
    elif action == "stop":
        show_entry(repository, operations.change(repository, held, given[0], stop=True))
    elif action == "refresh":
        operations.refresh(repository, held, *given)
    elif action == "rotate":
        operations.rotate(repository, held, given)
        note("copy the repository to its server; the replaced key files, which end in .revoked, can no longer sign")
    show(repository, held, json)


def check_names(action: str, names: list[str]) -> None:
    """Raise a usage error for arguments that do not fit the action."""
    words = ACTIONS[action].split()
    least, most = sum(word[0] != "[" for word in words), 20 if "KEY..." in words else len(words)
    hint = "[DIR|BUNDLE|CHANNEL|KEY]..."
    if not least <= len(names) <= most:
        expected = f"expected {ACTIONS[action]}" if most else "takes no more arguments"
        raise typer.BadParameter(f"{action}: {expected}; received {' '.join(names) or 'none'}.", param_hint=hint)
    if action == "share" and not (
        names[1].isascii() and names[1].isdecimal() and len(names[1]) <= 3 and int(names[1]) <= 100
    ):
        raise typer.BadParameter(f"received {names[1]!r}, expected a whole number from 0 to 100.", param_hint=hint)
    if action == "refresh" and names:
        check_choice(hint, names[0], ("targets", "root"))


def ask_passphrase(name: str, new: bool) -> str:
    """Return the passphrase from EDGECNN_RELEASE_PASSPHRASE_FILE, else ask for it on the terminal, twice if it is new."""
    from edgecnn.release.keys import PASSPHRASE_FILE

    if file := os.environ.get(PASSPHRASE_FILE):
        note_if_shared(Path(file))
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeError) as error:
            raise ReleaseError(f"cannot read the passphrase of {PASSPHRASE_FILE}: {first_line(error)}") from None
    if not sys.stdin.isatty():
        raise ReleaseError(
            f"the key {name} needs a passphrase, and there is no terminal. Set {PASSPHRASE_FILE} to a file with it."
        )
    what = "New passphrase for root and targets keys" if new else f"Passphrase of the key {name}"
    return str(typer.prompt(what, hide_input=True, confirmation_prompt=new, err=True))


def show_entry(repository: "Repository", entry: "Entry") -> None:
    from edgecnn.release.repository import metadata_bytes

    terms = entry.terms
    metadata = metadata_bytes(repository.folder, repository.read())
    pilots = f" and {count(terms.pilots)}" if terms.pilots else ""
    state = "stopped" if terms.stopped else f"for {terms.share} % of the boards{pilots}"
    note(
        f"{entry.path}: release {terms.number}, {state}; {entry.length:,} bytes and {metadata:,} of metadata for each board"
    )


def show(repository: "Repository", keys: "Keys", json: bool) -> None:
    from edgecnn.release.repository import repository_status

    table = repository_status(repository, keys.known())
    if json:
        emit_json(table)
        return
    for role, about in table["roles"].items():
        print(printable(f"{role:10} until {about['expires'][:10]}, {about['threshold']} of {', '.join(about['keys'])}"))
    for channel, releases in table["channels"].items():
        for entry in reversed(releases):
            print(f"{channel:10} {describe(entry)}")
    for problem in table["problems"]:
        note(f"problem: {problem}")


def describe(entry: dict[str, Any]) -> str:
    """Return a release as a line: its number, share, name and hash, and what is on record."""
    share = "stopped" if entry["stopped"] else f"{entry['share']} %"
    more = [count(entry["pilots"])] if entry["pilots"] else []
    if entry["allow_older"]:
        more.append(f"goes back from {', '.join(digest[:12] for digest in entry['allow_older']['instead_of'])}")
    if entry["accepted"]:
        more.append(f"accepted: {entry['accepted']}")
    text = f"{entry['number']:3}  {share:>7}  {entry['name']}-{entry['serial']}  {entry['sha256'][:12]}  {entry['length']:,} bytes"
    return printable("; ".join([text, *more]))


def count(pilots: Sized) -> str:
    return plural(len(pilots), "pilot")


def show_boards(file: Path, jobs: int, json: bool) -> None:
    """Print what boards report about their updates; PartialFailure if some do not."""
    from edgecnn.fleet.ssh import Sessions, on_each, read_hosts
    from edgecnn.fleet.status import HEADINGS, ask_status, row
    from edgecnn.labels import text_table
    from edgecnn.tables import to_json

    hosts = checked("--hosts", read_hosts, file)
    with Sessions() as sessions:
        found = {
            item.host: item for item in on_each(hosts, jobs, lambda host: ask_status(host, sessions), sessions.stop)
        }
    boards = [found[host] for host in dict.fromkeys(hosts)]
    if json:
        emit_json(to_json(tuple(boards)))
    else:
        print(text_table(HEADINGS, [row(board) for board in boards], terminal_width()))
    if silent := sum(board.status is None for board in boards):
        raise PartialFailure(f"{silent} of {len(boards)} boards did not report what they have.")
