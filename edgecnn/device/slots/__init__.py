"""Releases of a model on a device. A new one is tried and kept if it proves itself; otherwise the previous one comes back."""

from pathlib import Path

ROOT = Path("/var/lib/edgecnn")

RECORD = "current"  # the file there that names the release in use
