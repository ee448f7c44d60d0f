"""A missing package of an extra gives a one-line error; a broken import of edgecnn's own modules keeps its traceback."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from edgecnn import __version__, install
from edgecnn.cli.extras import EXTRAS, PURPOSES, missing_extra
from edgecnn.errors import MissingExtraError

CODE = """
import sys
from edgecnn.cli import main
sys.modules[{module!r}] = None
sys.argv = ["edgecnn", *{command!r}]
main()
"""
MQTT_STREAM = ("classify", "synthetic:8x8?frames=1", "--mqtt", "mqtt://broker/door")


def without(root, module, *command):
    code = CODE.format(module=module, command=command or ("networks",))
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["tensorflow", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_a_missing_package_of_an_extra_names_the_extra(root, module):
    result = without(root, module)
    assert result.returncode == MissingExtraError.exit_code == 28
    assert "Traceback" not in result.stderr
    assert f"needs {module}, which the base installation leaves out" in result.stderr
    assert result.stderr.rstrip().endswith("[train]'")


def test_a_broker_without_the_extra_is_one_line(root):
    result = without(root, "paho", *MQTT_STREAM)
    assert result.returncode == MissingExtraError.exit_code and "Traceback" not in result.stderr
    assert "needs paho, which the base installation leaves out. For MQTT and Home Assistant:" in result.stderr
    assert result.stderr.rstrip().endswith("[mqtt]'")


@pytest.mark.parametrize(
    "module", ["uvicorn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("starlette", "prometheus_client"))]
)
def test_a_page_without_the_extra_is_one_line(root, module):
    result = without(root, module, "classify", "synthetic:8x8?frames=1", "--http", "0")
    assert result.returncode == MissingExtraError.exit_code and "Traceback" not in result.stderr
    assert f"needs {module}, which the base installation leaves out. For the page" in result.stderr
    assert result.stderr.rstrip().endswith("[http]'")


@pytest.mark.parametrize("module", ["edgecnn.networks", pytest.param("edgecnn.report.table", marks=pytest.mark.slow)])
def test_any_other_missing_module_keeps_its_traceback(root, module):
    result = without(root, module)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ModuleNotFoundError" in result.stderr


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_of_an_extra_is_known(root, name):
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in extra]
    modules = {"scikit-learn": "sklearn", "opencv-python-headless": "cv2", "paho-mqtt": "paho"}
    assert PURPOSES[name]
    assert list(EXTRAS[name]) == [modules.get(name, name.replace("-", "_")) for name in names]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "edgecnn-{version}-py3-none-any.whl[train]"),
        ('{{"url": "https://example.org/edgecnn.whl", "archive_info": {{}}}}', "edgecnn-{version}-py3-none-any.whl[train]"),
        ('{{"url": "file:///dist/edgecnn-1-py3-none-any.whl", "archive_info": {{}}}}', "/dist/edgecnn-1-py3-none-any.whl[train]"),
        ('{{"url": "file://{folder}/my%20copy", "dir_info": {{}}}}', "{folder}/my copy[train]"),
    ],
)  # fmt: skip
def test_the_advice_installs_from_the_same_source(monkeypatch, tmp_path, origin, expected):
    names = {"folder": tmp_path, "version": __version__}

    class Installed:
        def read_text(self, name):
            return origin and origin.format(**names) if name == "direct_url.json" else None

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(install, "HERE", tmp_path / "site-packages")
    (tmp_path / "my copy").mkdir()
    assert shlex.split(install.install_command("train")) == ["pip", "install", expected.format(**names)]


def test_the_advice_in_a_checkout_installs_it_with_its_constraints(root):
    expected = ["pip", "install", "-c", f"{root}/constraints.txt", "-e", f"{root}[train]"]
    assert shlex.split(install.install_command("train")) == expected


def test_nothing_installs_edgecnn_by_its_name_alone(root):
    """An index may have another program of that name. Only the page on releases names one, for the day of publishing."""
    bare = re.compile(r"pip install [^`;&\n]*(?<![\w./-])edgecnn(?![-\w./])|\bedgecnn\[")
    found = []
    for folder in ("edgecnn", "docs", "tools", "deploy", "targets", ".github", "."):
        for path in root.joinpath(folder).glob("*" if folder == "." else "**/*"):
            if path.suffix in (".py", ".md", ".toml", ".yml", ".txt", ".sh", ".service", ".in") and path.is_file():
                found += [f"{path.name}: {one}" for one in bare.findall(path.read_text(encoding="utf-8"))]
    assert found == []
    for text in ("pip install edgecnn", "pip install -U 'edgecnn[train]'", "needs `edgecnn[mqtt]`"):
        assert bare.search(text), text
    assert not bare.search("pip install edgecnn-0.2.0-py3-none-any.whl && edgecnn doctor")


def test_only_modules_of_an_extra_count():
    assert missing_extra(ModuleNotFoundError(name="tensorflow.python")) is not None
    assert "[frigate]" in str(missing_extra(ModuleNotFoundError(name="cv2")))
    assert missing_extra(ModuleNotFoundError(name="edgecnn.train")) is None
    assert missing_extra(ModuleNotFoundError()) is None
