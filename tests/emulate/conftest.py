"""Fake programs on their own PATH."""

import os

import pytest


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script on the PATH under a name: `program("apt-get", "echo hello")`; with `alone`, nothing else is on it."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def put(name, text, alone=False):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder) if alone else f"{folder}{os.pathsep}{os.environ['PATH']}")
        return path

    return put
