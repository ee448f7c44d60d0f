"""Images to labels, and the default choice of bundle, model and engine."""

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.bundle.file import read_bundle
from edgecnn.bundle.manifest import ModelEntry
from edgecnn.errors import BundleError, EngineError, ImageError, ImageTooLargeError, ProviderError, UnknownNameError
from edgecnn.runtime import Classifier
from edgecnn.runtime.classifier import BATCH
from edgecnn.runtime.decision import ABSTAIN
from edgecnn.runtime.default import SHIPPED, SHIPS, choose_model, find_bundle
from edgecnn.runtime.engines import engines_for, is_installed
from edgecnn.runtime.model import bundle_model

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


@pytest.fixture(scope="module")
def classifier(root):
    return Classifier.load(root / "models" / SHIPPED / f"{SHIPPED}.edgecnn")


@pytest.fixture(scope="module")
def picture():
    small = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC))


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_first_program(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(png(picture))
    classifier = Classifier.load()
    result = classifier.classify("photo.png")
    assert result.decision in classifier.labels
    assert result.decision == result.top[0].label == classifier.labels[result.top[0].index]


def test_every_form_of_an_image_gives_the_same_answer(classifier, picture, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png(picture))
    expected = classifier.classify(picture).top
    for same in (path, str(path), path.read_bytes(), Image.fromarray(picture)):
        assert classifier.classify(same).top == expected


def test_an_image_of_the_models_size_is_not_resampled(classifier):
    exact = np.random.default_rng(4).integers(0, 256, (32, 32, 3), np.uint8)
    logits = classifier.model.logits(exact[np.newaxis])[0]
    assert classifier.classify(exact).top[0].index == int(np.argmax(logits))


def test_scores(classifier, picture):
    top = classifier.classify(picture, top_k=10).top
    assert sum(item.score for item in top) == pytest.approx(1, abs=1e-5)
    assert [item.score for item in top] == sorted((item.score for item in top), reverse=True)
    assert sorted(item.index for item in top) == list(range(10))


@pytest.mark.parametrize("engine", ["litert", "tflite_runtime", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_threads_that_share_a_classifier_get_the_answers_of_one(root, engine):
    """Bit for bit: without a lock, LiteRT returned some answers for the wrong image, and most calls raised."""
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed")
    shared = Classifier.load(root / "models" / SHIPPED / f"{SHIPPED}.edgecnn", engine=engine)
    pictures = np.random.default_rng(6).integers(0, 256, (100, 32, 32, 3), np.uint8)
    expected = [shared.classify(picture, 10).top for picture in pictures]
    assert len({top[0].score for top in expected}) > 10, "pictures whose answers differ clearly"
    calls = [index % len(pictures) for index in range(1500)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda index: shared.classify(pictures[index], 10).top, calls))
    finally:
        sys.setswitchinterval(before)
    assert [index for index, top in zip(calls, answers, strict=True) if top != expected[index]] == []


@pytest.mark.parametrize("engine", ["litert", "tflite_runtime", "onnxruntime"])
def test_a_batch_has_the_answers_of_its_images(root, tmp_path, engine):
    """With every kind of image, in order, and more images than one engine call takes."""
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed")
    classifier = Classifier.load(root / "models" / SHIPPED / f"{SHIPPED}.edgecnn", engine=engine)
    arrays = list(np.random.default_rng(6).integers(0, 256, (BATCH + 3, 40, 50, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(png(arrays[0]))
    pictures = [tmp_path / "a.png", png(arrays[1]), Image.fromarray(arrays[2]), *arrays[3:]]
    options = {"top_k": 4, "threshold": 0.5, "margin": 0.1, "fit": "stretch", "rotation": 90}
    expected = [classifier.classify(picture, **options) for picture in pictures]
    results = classifier.classify_batch(iter(pictures), **options)
    assert [result[:4] for result in results] == [result[:4] for result in expected]
    assert len({result.top[0].score for result in results}) > 10
    assert all(set(result.latency_ms) == {"decode", "preprocess", "infer"} for result in results)
    assert classifier.classify_batch([]) == []


@pytest.mark.parametrize("image", [3, None, [[0]], bytearray(4)])
def test_a_value_that_is_not_an_image_is_a_type_error(classifier, image):
    """`open` would treat a number as a file descriptor, and read and close it."""
    with pytest.raises(TypeError, match=f"received {type(image).__name__}"):
        classifier.classify(image)


def test_a_batch_names_the_image_that_cannot_be_decoded(classifier, picture):
    with pytest.raises(ImageError, match=r"^image 65: "):
        classifier.classify_batch([picture] * 65 + [b"no image"])


def test_a_result_is_a_copy(classifier, picture):
    logits = classifier.model.logits(picture[np.newaxis, :32, :32])
    kept = logits.copy()
    classifier.classify(255 - picture)
    assert np.array_equal(logits, kept)


def test_abstains(classifier, picture):
    sure = classifier.classify(picture, threshold=0.0)
    for options, reason in (({"threshold": 1.0}, "below_threshold"), ({"margin": 1.0}, "below_margin")):
        result = classifier.classify(picture, **{"threshold": 0.0, **options})
        assert (result.top, result.decision, result.reason) == (sure.top, ABSTAIN, reason)


def test_a_threshold_of_zero_overrides_the_bundles(fake_engine, contract, held):
    bundle = held(contract, threshold=0.9)
    classifier = Classifier(bundle, bundle_model(fake_engine(), bundle))
    grey = np.full((8, 8, 3), 128, np.uint8)  # three equal scores
    for threshold, decision in ((None, ABSTAIN), (0.0, "red"), (0.34, ABSTAIN)):
        assert classifier.classify(grey, threshold=threshold).decision == decision
        assert classifier.classify_batch([grey], threshold=threshold)[0].decision == decision


def test_an_image_of_a_batch_has_its_share_of_the_time(fake_engine, contract, held, monkeypatch):
    class Slow(fake_engine):
        def run(self, batch):
            clock.append(clock[-1] + 0.6)
            return super().run(batch)

    clock = [100.0]
    monkeypatch.setattr("edgecnn.runtime.classifier.perf_counter", lambda: clock[-1])
    bundle = held(contract)
    classifier = Classifier(bundle, bundle_model(Slow(shape=(None, 8, 8, 3)), bundle))
    grey = np.full((8, 8, 3), 128, np.uint8)
    assert classifier.classify(grey).latency_ms == pytest.approx({"decode": 0, "preprocess": 0, "infer": 600})
    assert [result.latency_ms["infer"] for result in classifier.classify_batch([grey] * 4)] == pytest.approx([150] * 4)


def test_latency_is_reported(classifier, picture):
    latency = classifier.classify(png(picture)).latency_ms
    assert set(latency) == {"decode", "preprocess", "infer"}
    assert all(0 < value < 10_000 for value in latency.values())


def test_grey_model_and_colour_image_and_the_reverse(root, classifier, picture):
    grey = Classifier.load(root / "models" / "digits" / "digits.edgecnn")
    assert grey.model.contract.channels == 1
    assert grey.classify(picture).decision in grey.labels
    one = np.asarray(Image.fromarray(picture).convert("L"))
    assert grey.classify(one).top == grey.classify(picture).top == grey.classify(one[:, :, np.newaxis]).top
    assert classifier.classify(one).decision in classifier.labels


def test_transparent_array(classifier, picture):
    opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    assert classifier.classify(opaque).top == classifier.classify(picture).top


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["float", "two channels", "batch", "line", "empty"],
)
def test_arrays_that_are_not_images(classifier, array):
    with pytest.raises(ImageError, match="received"):
        classifier.classify(array)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"fit": "zoom"}, "fit must be one of crop, letterbox, stretch, received 'zoom'"),
        ({"fit": ""}, "received ''"),
        ({"rotation": 45}, "rotation must be one of 0, 90, 180, 270, received 45"),
    ],
)
def test_a_fit_or_a_rotation_that_does_not_exist(classifier, picture, wrong, text):
    for image in (picture, np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match=text):
            classifier.classify(image, **wrong)


def test_files_that_are_not_images(classifier, tmp_path, monkeypatch):
    with pytest.raises(ImageError, match="No such file"):
        classifier.classify(tmp_path / "none.jpg")
    with pytest.raises(ImageError):
        classifier.classify(b"hello")
    monkeypatch.setattr("edgecnn.images.MAX_PIXELS", 10)
    with pytest.raises(ImageTooLargeError):
        classifier.classify(png(np.zeros((4, 4, 3), np.uint8)))


def test_reports_what_was_chosen(classifier, root):
    assert f"{SHIPPED}.edgecnn (requested), int8 .tflite on " in classifier.about
    assert "1 thread)" in classifier.about
    two = Classifier.load(root / "models" / "digits" / "digits.edgecnn", precision="float32", num_threads=2)
    assert "float32 .tflite" in two.about and "2 threads)" in two.about


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"none\.edgecnn"):
        Classifier.load(tmp_path / "none.edgecnn")


def test_a_requested_engine_that_is_missing(monkeypatch, root):
    monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: name == "litert")
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        Classifier.load(root / "models" / "digits" / "digits.edgecnn", engine="onnxruntime")


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
