"""`edgecnn doctor`: is this machine fit for edgecnn?"""

from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json
from edgecnn.cli.options import Model
from edgecnn.labels import printable_lines

if TYPE_CHECKING:
    from edgecnn.device.doctor.finding import Finding


def doctor(
    model: Model = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what is right.", show_default="off")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")] = False,
) -> None:
    """Look for what keeps edgecnn from working on this machine, and say what mends it.

    System, processor, power, versions, bundle, engines and cameras. An engine that crashes does so in a process of its own. The exit code
    is 26 if there is an error. Nothing is changed, and no network is used.

    \b
    Examples:
      edgecnn doctor
      edgecnn doctor --quiet --model cats.edgecnn
    """
    from edgecnn.device.doctor.checks import examine, require_healthy
    from edgecnn.device.system import System

    diagnosis = examine(System(model=str(model or "")))
    if json:
        emit_json(diagnosis.to_json())
    else:
        for name, finding in diagnosis.findings:
            if not quiet or finding.severity != "ok":
                print(printable_lines(text(name, finding)))
        print(", ".join(f"{diagnosis.count(severity)} {severity}" for severity in ("ok", "note", "warning", "error")))
    require_healthy(diagnosis)


def text(name: str, finding: "Finding") -> str:
    """Return a finding for people: what was found, and below it what it means and what mends it."""
    lines = [f"{finding.severity:8} {name:14} {finding.found}"]
    lines += [f"{'':23} {finding.means}"] if finding.means else []
    lines += [f"{'':23} mend: {finding.mend}"] if finding.mend else []
    return "\n".join(lines)
