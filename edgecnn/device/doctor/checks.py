"""The checks of `edgecnn doctor`: each is a small function that takes the machine and yields findings."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgecnn.device.doctor import machine
from edgecnn.device.doctor.cameras import cameras
from edgecnn.device.doctor.engines import bundle, engines, versions
from edgecnn.device.doctor.finding import SEVERITIES, Finding
from edgecnn.device.doctor.page import page
from edgecnn.device.system import System
from edgecnn.errors import DoctorError
from edgecnn.labels import plural

CHECKS: Mapping[str, Callable[[System], Iterable[Finding]]] = {
    "python": machine.python,
    "architecture": machine.architecture,
    "glibc": machine.glibc,
    "processor": machine.processor,
    "memory": machine.memory,
    "clock": machine.clock,
    "disk": machine.disk,
    "power": machine.power,
    "temperature": machine.temperature,
    "versions": versions,
    "bundle": bundle,
    "engines": engines,
    "cameras": cameras,
    "page": page,
}


class Diagnosis(NamedTuple):
    """All findings, each with the name of its check, in order."""

    findings: tuple[tuple[str, Finding], ...]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for _, finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "edgecnn.doctor/1",
            "findings": [{"check": name, **finding._asdict()} for name, finding in self.findings],
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
        }


def examine(system: System) -> Diagnosis:
    return Diagnosis(tuple((name, finding) for name, check in CHECKS.items() for finding in check(system)))


def require_healthy(diagnosis: Diagnosis) -> None:
    """Raise DoctorError if a finding is an error; the message names the checks."""
    failed = [name for name, finding in diagnosis.findings if finding.severity == "error"]
    if failed:
        raise DoctorError(
            f"{plural(len(failed), 'error')} in: {', '.join(dict.fromkeys(failed))}. "
            "Fix the errors listed above, then run again: edgecnn doctor"
        )
