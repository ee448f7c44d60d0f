"""The content of the wheel and the sdist, and the data folders of each kind of installation."""

import compileall
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytest.importorskip("hatchling", reason="building needs the dev extra")

from edgecnn.runtime.default import SHIPPED

FIND = (
    "import edgecnn; from edgecnn.files import data_folder; from edgecnn.runtime.default import find_bundle; "
    "print(edgecnn.__file__); print(len(list(data_folder('targets').glob('*.toml')))); print(find_bundle().path)"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory, root):
    """Build the wheel and the sdist without a network."""
    folder = tmp_path_factory.mktemp("dist")
    for target in ("wheel", "sdist"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
            cwd=root,
            check=True,
            capture_output=True,
        )
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def found(folder, python=sys.executable):
    """Return the locations of edgecnn and its data with `folder` first on the path, outside the source tree."""
    result = subprocess.run(
        [python, "-c", FIND],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    package, targets, bundle = result.stdout.splitlines()
    return package, int(targets), bundle


def test_the_wheel_holds_only_the_package_the_targets_and_the_default_bundle(built, root):
    names = set(zipfile.ZipFile(built[0]).namelist())
    package = {path for path in (root / "edgecnn").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    source = {str(path.relative_to(root)) for path in package}
    targets = {f"edgecnn/_data/targets/{path.name}" for path in (root / "targets").glob("*.toml")}
    default = {f"edgecnn/_data/models/{SHIPPED}/{SHIPPED}.edgecnn"}
    metadata = {name for name in names if ".dist-info/" in name}
    schemas = {name for name in source if name.endswith(".schema.json")}
    assert names - metadata == {*source, *targets, *default} - schemas
    assert {name.rsplit("/", 1)[1] for name in metadata} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }


WORKSTATION = {"inspect", "stress", "data", "networks", "train", "export", "verify", "report"}
WORKSTATION |= {
    "stages",
    "calibrate",
    "evaluate",
    "interop",
    "emulate",
    "runs",
    "run_info",
    "recipe",
    "release",
    "fleet",
}
"""Rooms and modules that a device carries but never imports, which import-linter checks."""


def is_workstations(parts):
    """Return whether a file, given the parts of its path, belongs to WORKSTATION, including bytecode."""
    return parts[0] == "edgecnn" and not WORKSTATION.isdisjoint(part.partition(".")[0] for part in parts[1:3])


def test_an_installation_is_small(built, tmp_path):
    """The base install's size on disk, with bytecode as from pip but without dependencies.

    A device's rooms with the default bundle take at most 3.2 MB, everything at most 6.8 MB.
    """
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    assert compileall.compile_dir(tmp_path, quiet=1)
    sizes = {path.relative_to(tmp_path).parts: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert {parts[1].partition(".")[0] for parts in sizes if is_workstations(parts)} >= WORKSTATION
    assert sum(size for parts, size in sizes.items() if not is_workstations(parts)) <= 3_200_000
    assert sum(sizes.values()) <= 6_800_000


def test_data_is_found_from_a_wheel(built, root, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    package, targets, bundle = found(tmp_path)
    assert package.startswith(str(tmp_path))
    assert targets == len(list((root / "targets").glob("*.toml")))
    assert bundle == str(tmp_path / f"edgecnn/_data/models/{SHIPPED}/{SHIPPED}.edgecnn")


def test_data_is_found_from_an_sdist(built, root, tmp_path):
    with tarfile.open(built[1]) as file:
        file.extractall(tmp_path, filter="data")
    folder = next(tmp_path.iterdir())
    package, targets, bundle = found(folder)
    assert package.startswith(str(folder))
    assert targets == len(list((root / "targets").glob("*.toml")))
    assert bundle == str(folder / f"models/{SHIPPED}/{SHIPPED}.edgecnn")


def test_data_is_found_from_an_editable_install(root, tmp_path):
    """The tests' own interpreter has one, in a virtual environment from the Makefile."""
    result = subprocess.run(
        [sys.executable, "-c", FIND], cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    if result.returncode and "No module named 'edgecnn'" in result.stderr:
        pytest.skip("edgecnn is not installed in this interpreter: make test installs it")
    package, targets, bundle = result.stdout.splitlines()
    assert package == str(root / "edgecnn/__init__.py")
    assert int(targets) == len(list((root / "targets").glob("*.toml")))
    assert bundle == str(root / f"models/{SHIPPED}/{SHIPPED}.edgecnn")
