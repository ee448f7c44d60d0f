"""Releases of a model on a device: a new one is tried, kept if it proves itself, and else the one before comes back."""

from pathlib import Path

ROOT = Path("/var/lib/edgecnn")

RECORD = "current"  # the file there that says which is in use
