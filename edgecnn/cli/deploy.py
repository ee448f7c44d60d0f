"""`edgecnn deploy`."""

import functools
import json as json_
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.options import checked, emit_line, note, option
from edgecnn.errors import PartialFailure
from edgecnn.labels import plural, printable

if TYPE_CHECKING:
    from edgecnn.fleet.deploy import DeployOutcome


SETUP = "What the boards get"


def deploy(
    hosts: list[str] | None = typer.Argument(
        None,
        metavar="HOST...",
        help="Boards, named as for ssh: NAME, USER@NAME, ssh://USER@NAME:PORT.",
        show_default="none",
    ),
    repo: Path = option(Path("releases"), "The repository's folder.", True, SETUP, "--repo", metavar="DIR"),
    channel: str | None = option(
        None, "The channel of these boards.", "the only one of the repository", SETUP, metavar="NAME"
    ),
    source: str = option(
        "",
        "Where the boards look for releases on their own from now on.",
        "as before, or only when you deploy",
        SETUP,
        "--from",
        metavar="URL",
    ),
    options: Path | None = option(None, "The service's options, in TOML.", "those of the board", SETUP, metavar="FILE"),
    deb: list[Path] | None = option(
        None,
        "Install this Debian package. Repeat it for another architecture.",
        "a virtual environment, /opt/edgecnn",
        SETUP,
        metavar="FILE",
    ),
    replace_root: bool = option(
        False, "Let boards that trust another repository trust this one.", "off", SETUP, "--replace-root"
    ),
    hosts_file: Path | None = option(
        None, "A file of boards, one per line; # starts a comment.", "none", None, "--hosts", metavar="FILE"
    ),
    jobs: int = option(8, "Boards to handle at a time.", True, min=1, max=256, metavar="N"),
    json: bool = option(False, "Print a JSON line for each board.", "off", None, "--json"),
) -> None:
    """Install edgecnn and the newest release on boards over ssh.

    Each board gets what it lacks: edgecnn itself, the key that it trusts, its channel and options, and the release. Then it runs edgecnn
    update, which verifies the release and puts it in use. Deploying again sends almost nothing.

    ssh is OpenSSH, with your configuration, keys, agent, known hosts and jump hosts. Log in with keys, as root or as a user whose sudo
    needs no password. Boards need no package index: this machine downloads the wheels for each kind of board. A board that fails does not
    stop the others; the exit code is then 22.

    \b
    Examples:
      edgecnn deploy root@door.local
      edgecnn deploy pi@door.local pi@gate.local --from https://models.example.org/
      edgecnn deploy --hosts boards.txt --channel doors --options service.toml --jobs 20
    """
    from edgecnn.device.service.config import valid_options
    from edgecnn.device.update.board import Options
    from edgecnn.fleet.deploy import Offer, Package, Plan, Wheels, deploy
    from edgecnn.fleet.ssh import Sessions, check_host, on_each, read_hosts
    from edgecnn.tables import to_json

    named = [checked("HOST", check_host, host) for host in hosts or ()]
    named += checked("--hosts", read_hosts, hosts_file) if hosts_file else []
    if not named:
        raise typer.BadParameter("name a board, or a file of boards with --hosts.", param_hint="HOST")
    if source and not Options(source=source).is_url:
        raise typer.BadParameter(f"received {source!r}, expected an address: https://…", param_hint="--from")
    plan = Plan(
        software=checked("--deb", Package, deb) if deb else Wheels(),
        offer=Offer(repo, channel),
        url=source,
        options=None if options is None else valid_options(options).encode(),
        replace_root=replace_root,
    )
    failed = total = 0
    with Sessions() as sessions:
        work = functools.partial(
            deploy, plan=plan, sessions=sessions, progress=lambda host, what: note(f"{host}: {what}")
        )
        for outcome in on_each(named, jobs, work, sessions.stop):
            total += 1
            failed += bool(outcome.problem)
            if outcome.problem:
                note(f"{outcome.host}: failed: {outcome.problem}.")
            elif outcome.warning:
                note(f"{outcome.host}: {outcome.warning}.")
            if json:
                emit_line(json_.dumps(to_json(outcome), sort_keys=True))
            elif not outcome.problem:
                emit_line(printable(board_outcome_text(outcome)))
    if failed:
        raise PartialFailure(f"{failed} of {total} boards failed, for the reasons above; the others are done.")


def board_outcome_text(outcome: "DeployOutcome") -> str:
    from edgecnn.fleet.status import in_use

    done = [outcome.installed and f"installed {outcome.installed}", outcome.files and plural(outcome.files, "file")]
    what = ", ".join(map(str, filter(None, done))) or "nothing new"
    return f"{outcome.host}  {in_use(outcome.status or {})}; {what}; sent {outcome.sent_bytes / 1000:,.1f} kB in {outcome.seconds:.1f} s"
