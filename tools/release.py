"""Make a release of the last commit in dist/: wheel and sdist, built twice from two clean copies, checked and tried, and the JSON schemas.

It fails unless the working tree is clean, both builds have the same bytes, `twine check` passes, and the wheel, installed in fresh
environments, passes its self-test and classifies a photo from the bundle that ships.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import schema

ROOT = Path(__file__).parent.parent
TRY = """
import json, subprocess, sys
from pathlib import Path
from edgecnn.bundle.file import read_bundle
from edgecnn.runtime.default import find_bundle

bundle = read_bundle(find_bundle().path)
photo = Path("photo.jpg")
photo.write_bytes(bundle.files[bundle.manifest.golden_images[0].file])
command = [str(Path(sys.executable).with_name("edgecnn"))]
subprocess.run([*command, "--version"], check=True)
subprocess.run([*command, "selftest"], check=True)
line = subprocess.run([*command, "classify", "--json", photo], check=True, capture_output=True, text=True).stdout
assert json.loads(line)["top"][0]["label"] in bundle.manifest.labels, line
print(f"classified as {json.loads(line)['top'][0]['label']}")
"""
"""The test that runs in a fresh environment, in an empty folder."""


def git(*arguments: str) -> bytes:
    """Run git in the project and return its output."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def build(out: Path) -> dict[str, bytes]:
    """Build wheel and sdist from a clean copy of the last commit, with its date. Returns the files by name."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").decode().strip()}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as copy:
        with tarfile.open(fileobj=BytesIO(git("archive", "HEAD"))) as archive:
            archive.extractall(copy, filter="data")
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
        subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def build_twice(out: Path) -> list[Path]:
    """Build twice and return the files' paths.

    Raises:
        SystemExit: if the two builds differ.
    """
    with tempfile.TemporaryDirectory() as other:
        first, second = build(out), build(Path(other))
    differing = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    if differing:
        sys.exit(f"two builds differ: {', '.join(sorted(differing))}. Find what depends on time, order or location.")
    for name, content in first.items():
        print(
            f"{name}  {len(content):,} bytes  SHA-256 {hashlib.sha256(content).hexdigest()}  identical in both builds"
        )
    return [out / name for name in first]


def try_wheel(wheel: Path, python: str) -> None:
    """Install a wheel with the pinned versions into a fresh environment of one Python, and run it there."""
    print(f"{python}:", flush=True)
    with tempfile.TemporaryDirectory() as name:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HOME": name}
        subprocess.run([python, "-m", "venv", f"{name}/venv"], check=True)
        installed = f"{name}/venv/bin/python"
        pip = [installed, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
        subprocess.run([installed, "-c", TRY], cwd=name, env=environment, check=True)


def release(pythons: Sequence[str]) -> None:
    """Build, check and try the release; `pythons` are the interpreters to try the wheel with."""
    if git("status", "--porcelain"):
        sys.exit("the working tree has uncommitted changes: commit or stash them, then run make release")
    out = ROOT / "dist"
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    files = build_twice(out)
    for name, text in schema.files().items():
        (out / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    wheel = next(path for path in files if path.suffix == ".whl")
    for python in pythons:
        try_wheel(wheel, python)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", action="append", required=True, help="an interpreter to try the wheel with; repeat it"
    )
    release(parser.parse_args().python)
