"""The base install in its own virtual environments (made by `make test`): Python 3.11, 3.13, and tflite-runtime instead of LiteRT."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from edgecnn.cli import COMMANDS
from edgecnn.errors import MissingExtraError

VENVS = (".venv-device-3.11", ".venv-device-3.13", ".venv-tflite-3.11")
EACH = [pytest.param(name, marks=pytest.mark.needs("python3.13") if "3.13" in name else ()) for name in VENVS]


def python_of(root, name):
    python = root / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no virtual environment {name}: make test makes it where its Python is installed")
    return python


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo-sized JPEG of smooth blotches."""
    small = np.random.default_rng(8).integers(0, 256, (9, 12, 3), np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def call(python, folder, *arguments):
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    result = subprocess.run(
        [python, "-m", "edgecnn", *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", EACH)
def test_it_is_the_base_install(root, name):
    code = (
        "import importlib.util as u; print([n for n in ('tensorflow', 'onnx', 'sklearn', 'scipy') if u.find_spec(n)])"
    )
    result = subprocess.run([python_of(root, name), "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", EACH)
def test_selftest_passes(root, name, tmp_path):
    report = call(python_of(root, name), tmp_path, "selftest", "--json")
    assert report["passed"]
    checked = {row["engine"] for row in report["rows"] if row["passed"]}
    assert checked == {"tflite_runtime" if "tflite" in name else "litert"}


@pytest.fixture(scope="module")
def first(root, photo):
    """The answer of the first environment."""
    return call(python_of(root, VENVS[0]), photo.parent, "classify", photo, "--json")


@pytest.mark.parametrize("name", EACH[1:])
def test_it_answers_like_the_first_environment(root, photo, first, tmp_path, name):
    other = call(python_of(root, name), tmp_path, "classify", photo, "--json")
    assert [item["label"] for item in other["top"]] == [item["label"] for item in first["top"]]
    for one, another in zip(first["top"], other["top"], strict=True):
        # one code of the int8 output changes a score by a few hundredths at most
        assert one["score"] == pytest.approx(another["score"], abs=0.05)


@pytest.mark.parametrize("name", EACH)
def test_it_explains_an_answer(root, photo, tmp_path, name):
    command = [python_of(root, name), "-m", "edgecnn", "explain", photo, "--json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    line = json.loads(result.stdout)
    assert np.array(line["map"]).shape == (32, 32) and (tmp_path / line["picture"]).stat().st_size > 1000


COMMANDS_IN_ONE_PROCESS = """
import json, sys
from edgecnn.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["edgecnn", *arguments]
    try:
        main()
    except SystemExit as ended:
        for stream in sys.stdout, sys.stderr:
            stream.write(f"\\x1e{ended.code}\\x1f")
"""


def answers(root, folder, *commands):
    """Return the exit code, output and errors of each command in the base install, which imports nothing that is missing."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(root)}
    python = [python_of(root, ".venv-device-3.11"), "-c", COMMANDS_IN_ONE_PROCESS, json.dumps(commands)]
    done = subprocess.run(python, cwd=folder, env=environment, capture_output=True, text=True)
    parts = [[part.split("\x1e") for part in text.split("\x1f")[:-1]] for text in (done.stdout, done.stderr)]
    assert len(parts[0]) == len(commands), done.stderr
    return [(code, out, err) for (out, code), (err, _) in zip(*parts, strict=True)]


def test_workstation_commands_name_the_extra(root, tmp_path, finished_run):
    shutil.copytree(finished_run.path, tmp_path / "runs" / "latest")
    for name in ("export", "model-int8.tflite", "parity.json", "confidence.json", "stages.json"):
        (tmp_path / "runs" / "latest" / name).unlink(missing_ok=True)
    (tmp_path / "digits.toml").write_text('name = "new"\n[data]\nsource = "digits"\n')
    (tmp_path / "model.keras").write_bytes(b"a model")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (12, 12), (number, len(label), ord(label[0]))).save(
                tmp_path / "photos" / label / f"{number}.png"
            )
    lines = (
        "train --data photos", "train --dry-run --data photos", "networks", "run digits.toml", "import model.keras --calibrate photos",
        "export", "verify", "layers", "compare model.keras model.keras --data photos", "bundle",
    )  # fmt: skip
    for line, (code, _, err) in zip(lines, answers(root, tmp_path, *map(str.split, lines)), strict=True):
        assert code == str(MissingExtraError.exit_code) and "Traceback" not in err, (line, err)
        first, second = err.splitlines()[-2:]
        assert first.startswith("edgecnn: error: this command needs "), line
        assert second.startswith("pip install ") and second.endswith("[train]'"), line


def test_every_help_needs_only_the_base_install(root, tmp_path):
    for command, (code, out, err) in zip(
        COMMANDS, answers(root, tmp_path, *([name, "--help"] for name in COMMANDS)), strict=True
    ):
        assert code == "0" and out.startswith("Usage: "), (command, err)


def test_the_recipe_keys_are_listed_without_the_extra(root, tmp_path):
    assert len(call(python_of(root, ".venv-device-3.11"), tmp_path, "train", "--keys", "--json")) > 40
