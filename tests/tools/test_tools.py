import argparse
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgecnn.runtime import Classifier
from edgecnn.runtime.default import SHIPPED


def load_bench(root, monkeypatch, name):
    """Import a bench as it imports itself."""
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_the_readmes_tables_are_those_of_the_commands_and_the_bundles(root):
    result = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_write_images(root, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, of the train extra")
    subprocess.run(
        [sys.executable, "tools/write_images.py", "--data", "digits", "--out", tmp_path, "--count", "3"],
        cwd=root,
        check=True,
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and all(name[3].isdigit() for name in names)
    with Image.open(tmp_path / names[0]) as image:
        assert image.size == (8, 8) and image.mode == "L"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", SHIPPED])
def test_the_bench_of_the_runtime_measures_grey_models_and_coloured_ones(root, monkeypatch, name):
    """Its parts, on few and small images."""
    pytest.importorskip("ai_edge_litert", reason="it is the engine that is measured")
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, "runtime", raising=False)
    bench = importlib.import_module("runtime")
    monkeypatch.setattr(bench, "PHOTO", (400, 300))
    monkeypatch.setattr(bench, "WARMUP", 1)
    arguments = {
        "model": root / "models" / name / f"{name}.edgecnn",
        "n": 2,
        "photos": 2,
        "folder_n": 1,
        "data": None,
        "parts": list(bench.PARTS),
    }
    report = bench.measure(argparse.Namespace(**arguments, mediapipe_python=None))
    assert all(way["p50_ms"] > 0 for part in bench.PARTS for way in report[part]["ways"].values())


def test_the_accuracy_of_the_bench_of_the_runtime_is_the_bundles_own(root, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="it is the engine that is measured")
    pytest.importorskip("sklearn", reason="the digits come with it")
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, "runtime", raising=False)
    bench = importlib.import_module("runtime")
    monkeypatch.setattr(bench, "FRAME", (160, 120))
    classifier = Classifier.load(root / "models" / "digits" / "digits.edgecnn", engine="litert", precision="int8")
    shares, count = bench.accuracy(classifier, "digits")
    assert count == 385 and shares["the images themselves"] > 0.95
    assert all(share > 0.9 for share in shares.values())


def test_speed_of_another_bundle_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    readme = importlib.import_module("readme")
    report = json.loads(readme.SPEED.read_text())
    assert "| litert " in readme.speed_table()
    report["bundle"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(report))
    monkeypatch.setattr(readme, "SPEED", tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"is of another models/.*: python tools/bench/benchmark\.py"):
        readme.speed_table()


@pytest.mark.slow
def test_the_bench_of_verify_has_what_verify_asks_for(root, tmp_path, monkeypatch):
    """Its parts, on few images: a run without training, then every engine that is here."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, "verify", raising=False)
    bench = importlib.import_module("verify")
    arguments = argparse.Namespace(folder=tmp_path / "resnet8", data="digits", n=64, tflite_python=None)
    bench.make(arguments)
    found = bench.verify(arguments)
    assert len(found["engines"]) >= 4 and found["image_bytes"] == 64 and found["peak_mib"] > 0


@pytest.mark.slow
def test_the_bench_of_explain_measures_bundles_and_runs(root, finished_run, monkeypatch):
    """Its parts, on few images."""
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, "explain", raising=False)
    bench = importlib.import_module("explain")
    model = root / "models" / "digits" / "digits.edgecnn"
    arguments = argparse.Namespace(model=model, data="digits", images=12, n=2, python=sys.executable)
    bundle = bench.of_bundle(arguments, np.random.default_rng(1))
    run = bench.of_run(finished_run, arguments, np.random.default_rng(1))
    assert set(run) - set(bundle) == {"rank_correlation"} and set(run["deletion_area"]) - set(
        bundle["deletion_area"]
    ) == {"gradcam"}
    for figures in (bundle, run):
        assert figures["images"] == 12 and figures["ms"]["p50"] > 0
        assert 20 < figures["peak_mb"] < 80, "what a device may spend on an explanation"
        assert len(bench.maps_row(figures)) == len(bench.MAPS)
        assert len(bench.costs_row(figures)) == len(bench.COSTS)
    areas = bundle["deletion_area"]
    assert areas["occlusion"] < areas["random_patches"]


def test_the_figures_of_explain_are_within_its_limits(root):
    """What docs/explain.md states: the bench's own figures."""
    report = json.loads((root / "tools/bench/results/explain.json").read_text())
    assert all(model["images"] == 200 for model in report["models"])
    for model in report["models"]:
        areas = model["deletion_area"]
        assert areas["occlusion"] < min(areas["random_patches"], areas["random_pixels"])
        assert model["peak_mb"] < 80
        if model["input"][:2] == [32, 32]:
            assert model["ms"]["p50"] <= 300


def test_the_bench_of_a_gpu_runs_whole_on_the_cpu(root, tmp_path, tiny_network, edgecnn, monkeypatch):
    for module in ("tensorflow", "onnxruntime"):
        pytest.importorskip(module, reason="the bench trains, and runs ONNX files")
    bench = load_bench(root, monkeypatch, "gpu")

    def here(*arguments, cwd):
        """Run a command in this process, which has imported TensorFlow."""
        monkeypatch.chdir(cwd)
        done = edgecnn(*arguments)
        assert done.code == 0, done.err
        return done.out.encode()

    monkeypatch.setattr(bench, "edgecnn", here)
    line = ["--provider", "cpu", "--network", str(tiny_network), "--side", "16", "--photos", "80", "--epochs", "1"]
    report = bench.measure(bench.options([*line, "--n", "10"]))
    assert all(report["checks"].values()), report["checks"]
    assert report["training"]["images_per_s"].keys() == {"float", "qat"} and report["training"]["device"].endswith(
        "CPU:0"
    )
    assert {(item["precision"], item["batch"]) for item in report["inference"]} == {
        (precision, batch) for precision in ("int8", "float32", "float16") for batch in (1, 64)
    }
    assert all(item["ms"]["run"] > 0 and item["elsewhere"] == {} for item in report["inference"])
    assert [item["photos"] for item in report["folder"]] == [20] * 3 and report["matrix"]["against"]

    report["versions"]["onnxruntime-gpu"] = "1.31.1"
    (tmp_path / "gpu.json").write_text(json.dumps(report))
    monkeypatch.syspath_prepend(root / "tools")
    readme = importlib.import_module("readme")
    monkeypatch.setattr(readme, "GPU", tmp_path / "gpu.json")
    page = readme.gpu_figures()
    assert (
        page.startswith("| precision | batch |")
        and page.count("\n| float16 |") == 2
        and "onnxruntime-gpu 1.31.1" in page
    )
