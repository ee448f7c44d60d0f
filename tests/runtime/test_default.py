"""Which bundle, model and engine are the defaults."""

import os
from types import SimpleNamespace

import pytest

from edgecnn.bundle.manifest import ModelEntry
from edgecnn.bundle.read import read_bundle
from edgecnn.errors import BundleError, EngineError, ProviderError, UnknownNameError
from edgecnn.runtime.default import SHIPPED, SHIPS, choose_model, find_bundle


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A working folder and a data folder without bundles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def touch(path, time=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time, time))
    return path


def test_order(empty):
    shipped = find_bundle()
    assert shipped.reason == SHIPS
    assert read_bundle(shipped.path).manifest.name == SHIPPED
    installed = touch(empty / "data" / "edgecnn" / "model.edgecnn")
    assert find_bundle() == (installed, "installed")
    touch(empty / "runs" / "one" / "b.edgecnn", 2000)
    touch(empty / "runs" / "one" / "a.edgecnn", 3000)
    (empty / "runs" / "latest").symlink_to("one")
    choice = find_bundle()
    assert (choice.path.name, choice.reason) == ("a.edgecnn", "of the last run")
    other = empty / "other.edgecnn"
    assert find_bundle(other) == (other, "requested"), "even if it is not there: no silent fallback"


def test_an_installation_without_any_bundle_names_the_option(empty, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.default.SHIPPED", "gone")
    monkeypatch.setattr(
        "edgecnn.runtime.default.data_folder", lambda name: (_ for _ in ()).throw(FileNotFoundError(name))
    )
    with pytest.raises(BundleError, match="--model"):
        find_bundle()


def test_a_run_without_a_bundle_is_no_reason_for_another_model(empty):
    touch(empty / "data" / "edgecnn" / "model.edgecnn")
    bundle = touch(empty / "runs" / "one" / "b.edgecnn")
    (empty / "runs" / "latest").symlink_to("one")
    bundle.rename(empty / "moved.edgecnn")
    with pytest.raises(BundleError, match=r"the last run, .*runs/one, has no bundle\. .*edgecnn bundle "):
        find_bundle()
    bundle.parent.rename(empty / "runs" / "two")
    with pytest.raises(BundleError, match=r"the last run, .*runs/one, no longer exists"):
        find_bundle()


def test_the_last_run_of_somebody_else_is_skipped(empty, monkeypatch):
    touch(empty / "runs" / "latest" / "b.edgecnn")
    assert find_bundle().reason == "of the last run"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert find_bundle().reason == f"{SHIPS}; runs/latest belongs to another user"


def test_a_bundle_that_somebody_else_put_into_the_last_run_is_skipped(empty, monkeypatch):
    bundle = touch(empty / "runs" / "latest" / "b.edgecnn")
    monkeypatch.setattr("edgecnn.runtime.default.is_own", lambda path: path.name != bundle.name)
    assert find_bundle().reason == f"{SHIPS}; runs/latest belongs to another user"


def test_home_folder(empty, monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(empty))
    installed = touch(empty / ".local" / "share" / "edgecnn" / "model.edgecnn")
    assert find_bundle().path == installed


def test_installation_without_models(empty, monkeypatch):
    def none(name):
        raise FileNotFoundError("this installation has no models/ folder")

    monkeypatch.setattr("edgecnn.runtime.default.data_folder", none)
    with pytest.raises(BundleError, match="no models/ folder"):
        find_bundle()


@pytest.fixture
def manifest():
    """An object with a manifest's models and defaults: int8 and float32, in both formats."""

    def entry(precision, format_):
        return ModelEntry(
            file=f"models/{precision}.{format_}",
            format=format_,
            precision=precision,
            golden="g",
            tolerance=1.0,
            tolerance_unit="LSB",
            tolerance_reason="r",
            golden_engine="e",
        )

    models = tuple(entry(precision, format_) for format_ in ("tflite", "onnx") for precision in ("int8", "float32"))
    return SimpleNamespace(models=models, defaults={"tflite": "models/int8.tflite", "onnx": "models/float32.onnx"})


@pytest.fixture
def only(monkeypatch):
    return lambda *names: monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: name in names)


def chosen(manifest, **asked):
    choice = choose_model(manifest, **asked)
    return choice.engine, choice.model.file


def test_choice(manifest, only):
    only("litert", "tflite_runtime", "onnxruntime")
    assert chosen(manifest) == ("litert", "models/int8.tflite")
    assert chosen(manifest, precision="float32") == ("litert", "models/float32.tflite")
    assert chosen(manifest, engine="onnxruntime") == ("onnxruntime", "models/float32.onnx")
    assert chosen(manifest, engine="onnxruntime", precision="int8") == ("onnxruntime", "models/int8.onnx")
    assert chosen(manifest, provider="cpu") == ("litert", "models/int8.tflite")
    assert chosen(manifest, provider="cuda") == ("onnxruntime", "models/float32.onnx")
    only("onnxruntime")
    assert chosen(manifest) == ("onnxruntime", "models/float32.onnx")
    only("tflite_runtime")
    assert chosen(manifest) == ("tflite_runtime", "models/int8.tflite")


def test_no_default_for_the_format(manifest, only):
    only("onnxruntime")
    manifest.defaults = {}
    assert chosen(manifest) == ("onnxruntime", "models/int8.onnx")


def test_a_requested_model_that_is_not_available(manifest, only):
    only("litert")
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        chosen(manifest, engine="onnxruntime")
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        chosen(manifest, provider="cuda")
    with pytest.raises(ProviderError, match="litert cannot run on 'cuda'"):
        chosen(manifest, engine="litert", provider="cuda")
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        chosen(manifest, precision="int9")
    with pytest.raises(UnknownNameError, match="Did you mean 'litert'"):
        chosen(manifest, engine="litrt")
    only()
    with pytest.raises(EngineError, match="pip install ai-edge-litert"):
        chosen(manifest)


def test_a_bundle_without_the_requested_model(manifest, only):
    only("litert", "onnxruntime")
    manifest.models = manifest.models[:1]
    assert chosen(manifest) == ("litert", "models/int8.tflite")
    with pytest.raises(EngineError, match=r"no float32 model for litert.*it has int8 \.tflite"):
        chosen(manifest, precision="float32")
    with pytest.raises(EngineError, match="no model for onnxruntime"):
        chosen(manifest, engine="onnxruntime")
