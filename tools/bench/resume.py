"""What benches that take long have in common: what a result depends on, and the results of an earlier run that was interrupted."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecnn.versions import library_versions, processor


def about(bench: str, **settings: Any) -> dict[str, Any]:
    """Return what the results of a bench depend on: its settings, the machine and the libraries' versions."""
    return {
        "bench": bench,
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "versions": library_versions(),
        **settings,
    }


def measured(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of an earlier run that was interrupted; none if it was of other settings, libraries or another machine."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    results: list[dict[str, Any]] = report.pop("results")
    return results if report == about else []
