"""Wheels for a board: versions, tags, and pip's messages."""

import importlib.metadata
import shlex
import tomllib

import pytest

from edgecnn.emulate import wheels
from edgecnn.errors import EmulatorError
from edgecnn.runtime.engines import ENGINES


def test_every_tag_up_to_the_releases_own_libc():
    tags = wheels.platform_of("bookworm").tags
    assert tags[0] == "manylinux2014_aarch64" and tags[1] == "manylinux_2_17_aarch64"
    assert tags[-1] == "manylinux_2_36_aarch64" and len(tags) == 21
    assert wheels.platform_of("trixie", "x86_64").tags[-1] == "manylinux_2_41_x86_64"


def test_versions_are_this_machines_or_the_newest_before_with_a_wheel():
    wanted = wheels.requirements("litert", "3.13")
    assert f"numpy>=1.23.2,<={importlib.metadata.version('numpy')}" in wanted.needs
    assert wanted.alone == (f"ai-edge-litert>=2.0.2,<={importlib.metadata.version('ai-edge-litert')}",)


def test_a_local_build_counts_as_its_version(monkeypatch):
    monkeypatch.setattr(wheels.importlib.metadata, "version", lambda name: "1.32.0+own")
    assert wheels.requirements("onnxruntime", "3.13").alone == ("onnxruntime>=1.22,<=1.32.0",)


def test_tflite_runtime_gets_numpy_1(monkeypatch):
    monkeypatch.setattr(wheels.importlib.metadata, "version", lambda name: "2.4.6")
    wanted = wheels.requirements("tflite_runtime", "3.11")
    assert "numpy>=1.23.2,<2,<=2.4.6" in wanted.needs and wanted.alone == ("tflite-runtime==2.14.0",)


def test_tflite_runtime_has_no_wheel_for_a_newer_python():
    with pytest.raises(EmulatorError, match=r"no wheel for Python 3\.13.*Debian bookworm"):
        wheels.requirements("tflite_runtime", "3.13")
    assert wheels.engines_on("3.13") == ["litert", "onnxruntime"] and len(wheels.engines_on("3.11")) == 3


def test_versions_that_are_not_installed_come_from_the_project(root, monkeypatch):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {item for name in ("update", "mqtt", "http") for item in project["optional-dependencies"][name]}
    assert extras == {name + versions for name, versions in wheels.EXTRAS.items()}
    stated = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    stated = {text.partition(";")[0].strip() for text in stated}

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wheels.importlib.metadata, "version", missing)
    for engine in wheels.ENGINES:
        wanted = wheels.requirements(engine, "3.11", wheels.EXTRAS)
        for item in (*wanted.needs, *wanted.alone):
            assert item in stated or item == "numpy>=1.23.2,<2", item
    assert wheels.ENGINES.keys() == ENGINES.keys()


def test_pip_is_called_for_the_boards_wheels(program, tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake = program("pip", f'echo "$@" >> {shlex.quote(str(log))}')
    monkeypatch.setattr(wheels, "pip", lambda: [str(fake)])
    (tmp_path / "site" / "ai_edge_litert-2.3.0.dist-info").mkdir(parents=True)
    wanted = wheels.Requirements(("numpy==2.0",), ("ai-edge-litert==2.3.0",))
    assert wheels.install(wanted, wheels.platform_of("trixie"), tmp_path / "site") == {
        wheels.package_name("litert"): "2.3.0"
    }
    first, second = log.read_text().splitlines()
    for text in ("--only-binary=:all:", "--python-version 3.13", "--abi=cp313", "--platform=manylinux_2_27_aarch64"):
        assert text in first and text in second
    assert "--no-deps" not in first and second.endswith("--no-deps ai-edge-litert==2.3.0")


def test_pips_reason_is_shown(program, tmp_path, monkeypatch):
    fake = program("pip", "echo 'WARNING: w' >&2; echo 'ERROR: No matching distribution found for x==1' >&2; exit 1")
    monkeypatch.setattr(wheels, "pip", lambda: [str(fake)])
    with pytest.raises(EmulatorError, match=r"x==1 for Python 3\.13 on aarch64: No matching distribution found"):
        wheels.install(wheels.Requirements(("x==1",), ()), wheels.platform_of("trixie"), tmp_path)


def test_without_pip_the_error_explains_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmulatorError, match="-m ensurepip"):
        wheels.pip()
