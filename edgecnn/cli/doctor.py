"""`edgecnn doctor`."""

from typing import TYPE_CHECKING, Annotated

from edgecnn.cli.options import Json, Model, emit_json, option
from edgecnn.labels import printable_lines

if TYPE_CHECKING:
    from edgecnn.device.doctor import Finding


def doctor(
    model: Model = None,
    quiet: Annotated[bool, option("Leave out the checks that pass.", "off", None, "--quiet", "-q")] = False,
    json: Json = False,
) -> None:
    """Check this machine, and show how to fix what is wrong.

    Checks the system, processor, power, versions, bundle, engines and cameras. Each engine runs in its own process, so a crash is reported
    too. The exit code is 26 if there is an error. doctor changes nothing and does not use the network.

    \b
    Examples:
      edgecnn doctor
      edgecnn doctor --quiet --model cats.edgecnn
    """
    from edgecnn.device.doctor import examine, require_healthy
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
    lines = [f"{finding.severity:8} {name:14} {finding.result}"]
    lines += [f"{'':23} {finding.means}"] if finding.means else []
    lines += [f"{'':23} fix: {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
