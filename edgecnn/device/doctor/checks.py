"""The checks of `edgecnn doctor`: each is a small function that takes the machine and yields findings."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgecnn.device.doctor.cameras import cameras
from edgecnn.device.doctor.engines import bundle, engines, versions
from edgecnn.device.doctor.finding import SEVERITIES, Finding
from edgecnn.device.doctor.machine import (
    architecture,
    clock,
    disk,
    glibc,
    memory,
    power,
    processor,
    python,
    temperature,
)
from edgecnn.device.system import System
from edgecnn.errors import DoctorError

CHECKS: Mapping[str, Callable[[System], Iterable[Finding]]] = {
    "python": python,
    "architecture": architecture,
    "glibc": glibc,
    "processor": processor,
    "memory": memory,
    "clock": clock,
    "disk": disk,
    "power": power,
    "temperature": temperature,
    "versions": versions,
    "bundle": bundle,
    "engines": engines,
    "cameras": cameras,
}
"""The checks by name, in the order in which they run and are shown."""


class Diagnosis(NamedTuple):
    """All findings, each with the name of its check, in order."""

    findings: tuple[tuple[str, Finding], ...]

    def count(self, severity: str) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity == severity for _, finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain JSON values."""
        return {
            "schema": "edgecnn.doctor/1",
            "findings": [{"check": name, **finding._asdict()} for name, finding in self.findings],
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
        }


def examine(system: System, starting: Callable[[str], object] = lambda name: None) -> Diagnosis:
    """Run all checks.

    Args:
        system: the machine.
        starting: called with each check's name before it runs.
    """
    findings = []
    for name, check in CHECKS.items():
        starting(name)
        findings += [(name, finding) for finding in check(system)]
    return Diagnosis(tuple(findings))


def require_healthy(diagnosis: Diagnosis) -> None:
    """Raise DoctorError if a finding is an error; the message names the checks."""
    failed = list(dict.fromkeys(name for name, finding in diagnosis.findings if finding.severity == "error"))
    if failed:
        count = diagnosis.count("error")
        raise DoctorError(
            f"{count} error{'s' if count > 1 else ''} in: {', '.join(failed)}. Fix what is listed above, then run again: edgecnn doctor"
        )
