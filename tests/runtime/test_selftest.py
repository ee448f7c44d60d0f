"""Golden vectors are replayed, and helper programs answer in JSON."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.bundle.file import Bundle
from edgecnn.bundle.manifest import GoldenImage, Manifest, ModelEntry
from edgecnn.errors import BundleError, EngineError, SelftestError, UnknownNameError
from edgecnn.files import sha256
from edgecnn.pixels import FITS, resize
from edgecnn.runtime.child import Finished
from edgecnn.runtime.selftest import allowed, failure, require_pass, selftest

ENGINE = "litert"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.fixture
def replay(monkeypatch, fake_engine, contract, pixels, tmp_path):
    """Run a self-test of one model on a fake engine: `replay(golden outputs, tolerance=…, …)`."""
    monkeypatch.setattr("edgecnn.runtime.selftest.is_installed", lambda name: name == ENGINE)
    monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: name == ENGINE)

    def call(
        golden,
        *,
        tolerance=1.0,
        unit="LSB",
        format_="tflite",
        engine=None,
        engines=None,
        photos=None,
        fit="crop",
        **options,
    ):
        opened = engine or fake_engine()

        def open_engine(name, data, format_, **settings):
            call.settings = settings
            return opened

        monkeypatch.setattr("edgecnn.runtime.selftest.open_engine", open_engine)
        entry = ModelEntry(
            file="models/m",
            format=format_,
            precision="int8" if golden.dtype == np.int8 else "float32",
            golden="g",
            tolerance=tolerance,
            tolerance_unit=unit,
            tolerance_reason="",
            golden_engine="fake 1.0 (none)",
        )
        encoded = photos or {}
        manifest = Manifest(
            name="n",
            title="t",
            labels=("a", "b", "c"),
            input=replace(contract, fit=fit),
            models=(entry,),
            defaults={},
            golden_images=tuple(golden_image for _, golden_image in encoded.values()),
            provenance={},
        )
        files = {"models/m": b"", "g": npy(golden), manifest.golden_inputs: npy(pixels)}
        files |= {name: data for name, (data, _) in encoded.items()}
        return selftest(Bundle(tmp_path, manifest, files, data=b""), engines, **options)

    return call


@pytest.fixture
def right(fake_engine, pixels):
    return fake_engine().run((pixels ^ 128).view(np.int8))


def test_matching_outputs_pass(replay, right):
    report = replay(right)
    (row,) = report.rows
    assert report.passed and row.passed
    assert (row.engine, row.version, row.images, row.largest_difference, row.top1_changes) == ("fake", "1.0", 6, 0, 0)
    require_pass(report)


def test_off_by_one_and_never_by_two(replay, right):
    shifted = right.copy()
    shifted[0, 0] += 1
    assert replay(shifted).passed
    shifted[0, 0] += 1
    report = replay(shifted)
    assert not report.passed and report.rows[0].largest_difference == 2
    with pytest.raises(SelftestError, match=r"differs by 2 LSB.* 1 "):
        require_pass(report)


def test_other_kernels_are_allowed_two_codes_more():
    entry = SimpleNamespace(tolerance=1.0, tolerance_unit="LSB", golden_engine="litert 2.3.0 (XNNPACK)")
    assert allowed(entry, "XNNPACK") == 1.0 and allowed(entry, "built-in kernels") == 3.0
    entry.tolerance_unit = "logit"
    assert allowed(entry, "built-in kernels") == 1.0


def test_differences_are_widened(replay, fake_engine, pixels):
    """127 and -128 differ by 255 codes, not by 1."""
    golden = np.full((6, 3), -128, np.int8)
    engine = fake_engine()
    engine.run = lambda batch: np.full((len(batch), 3), 127, np.int8)
    assert replay(golden, engine=engine).rows[0].largest_difference == 255


def test_changed_answers_are_counted(replay, right):
    flipped = right.copy()
    best = np.argmax(right[2])
    flipped[2] = -100
    flipped[2, (best + 1) % 3] = 100
    assert replay(flipped).rows[0].top1_changes == 1


def test_float(replay, fake_engine, pixels):
    engine = fake_engine("float32", "float32")
    golden = engine.run(pixels.astype(np.float32) / 128 - 1)
    assert replay(golden + np.float32(0.0005), tolerance=0.001, unit="logit", engine=engine).passed
    assert not replay(golden + np.float32(0.002), tolerance=0.001, unit="logit", engine=engine).passed
    engine.run = lambda batch: np.full((len(batch), 3), np.nan, np.float32)
    assert not replay(golden, tolerance=1e9, unit="logit", engine=engine).passed


def test_output_of_another_type_or_shape(replay, right, fake_engine):
    report = replay(right, engine=fake_engine(output_type="uint8"))
    assert not report.passed and "uint8" in report.rows[0].note
    engine = fake_engine()
    engine.run = lambda batch: np.zeros((len(batch), 4), np.int8)
    assert not replay(right, engine=engine).passed


def test_engine_that_cannot_run_the_model_is_a_failure(replay, right, fake_engine):
    report = replay(right, engine=fake_engine(zero_point=5))
    assert not report.passed and "zero point 5" in report.rows[0].note
    with pytest.raises(SelftestError, match="zero point 5"):
        require_pass(report)


def test_nothing_checked_is_a_failure(replay, right):
    report = replay(right, format_="onnx")
    assert (report.passed, report.rows[0].passed) == (False, None)
    assert report.rows[0].note == "not checked: onnxruntime is not installed"
    with pytest.raises(SelftestError, match="nothing was checked"):
        require_pass(report)


def test_requested_engines(replay, right):
    assert replay(right, engines=[ENGINE]).passed
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        replay(right, engines=["onnxruntime"])
    with pytest.raises(UnknownNameError, match="litert"):
        replay(right, engines=["lite"])
    assert replay(right, format_="onnx", engines=[ENGINE]).rows[0].note == "not checked: not requested"


def test_one_wrong_engine_fails_it_whatever_the_others_answer(replay, right, fake_engine, monkeypatch):
    names = ["litert", "tflite_runtime"]
    monkeypatch.setattr("edgecnn.runtime.selftest.is_installed", lambda name: name in names)
    engine, runs = fake_engine(), []

    def run(batch):
        runs.append(len(batch))
        return right if len(runs) == 1 else right - 3

    engine.run = run
    report = replay(right, engine=engine)
    assert [row.passed for row in report.rows] == [True, False] and not report.passed
    assert failure(report).endswith("(1 failed)")


def test_threads_reach_the_engine(replay, right):
    replay(right, num_threads=3)
    assert replay.settings["num_threads"] == 3


def golden_photos(contract, fit):
    """Return golden photos for `replay`, wider than high, so that the model's crop is not the whole photo."""
    found = {}
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        resized = resize(pixels, contract.height, contract.width, fit)
        hashes = {"decoded_sha256": sha256(pixels.tobytes()), "resized_sha256": sha256(resized.tobytes())}
        found[f"golden/{seed}.png"] = buffer.getvalue(), GoldenImage(file=f"golden/{seed}.png", **hashes)
    return found


@pytest.fixture
def photos(contract):
    return golden_photos(contract, "crop")


def wrong(photos, count, **changes):
    """Return photos with different expected bytes for the first ones."""
    changed = {name: (data, replace(golden, **changes)) for name, (data, golden) in list(photos.items())[:count]}
    return photos | changed


@pytest.mark.parametrize("fit", FITS)
def test_photos_are_decoded_and_resized_to_the_bytes_that_the_bundle_gives(replay, right, contract, fit):
    report = replay(right, photos=golden_photos(contract, fit), fit=fit)
    assert report.passed and [tuple(layer) for layer in report.layers] == [
        ("decode", 5, (), True),
        ("resize", 5, (), True),
    ]


@pytest.mark.parametrize("digit", "0f")
@pytest.mark.parametrize("layer", ["decode", "resize"])
def test_a_different_layer_before_the_model_fails_it(replay, right, photos, layer, digit):
    names = {"decode": "decoded_sha256", "resize": "resized_sha256"}
    report = replay(right, photos=wrong(photos, 4, **{names[layer]: digit * 64}))
    assert all(row.passed for row in report.rows) and not report.passed
    looked_at = {item.layer: (item.images, item.passed) for item in report.layers}
    # an image that decodes to other bytes proves nothing about the resize
    assert looked_at == {"decode": (5, layer != "decode"), "resize": (1 if layer == "decode" else 5, layer != "resize")}
    with pytest.raises(SelftestError) as raised:
        require_pass(report)
    message = str(raised.value)
    assert f"the layer {layer} does not reproduce the bundle's bytes for 4 of 5 golden images" in message
    assert "golden/2.png" in message and "golden/3.png" not in message, "three are named"


def test_a_photo_that_cannot_be_decoded_here_fails_the_decoding(replay, right, photos):
    (name, (data, golden)), *_ = photos.items()
    report = replay(right, photos=photos | {name: (data[: len(data) // 2], golden)})
    assert not report.passed and report.layers[0].differing == (name,)


def test_a_model_that_uses_too_much_memory_or_time_fails(replay, right, fake_engine, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.child.MEMORY_BYTES", 64 << 20)
    greedy = fake_engine()
    too_much = 4 << 30  # bytes: more than this process can have freed, and nothing writes to them
    greedy.run = lambda batch: np.empty(too_much, np.uint8)
    (row,) = replay(right, engine=greedy, apart=True).rows
    assert (
        row.passed is False and row.note == "this model ends the engine's process, which is limited to 64 MiB of memory"
    )
    assert replay(right, apart=True).passed
    slow = fake_engine()
    slow.run = lambda batch: time.sleep(60)
    (row,) = replay(right, engine=slow, apart=True, limit_s=0.05).rows
    assert row.passed is False and "no answer in 0.05 s" in row.note
    (row,) = replay(right, apart=True, limit_s=0).rows
    assert row.passed is False and "all of the bundle's models together took more than 0 s" in row.note


def test_golden_photos_are_decoded_in_the_separate_process(replay, right, photos, monkeypatch):
    assert replay(right, photos=photos, apart=True).passed
    monkeypatch.setattr("edgecnn.images.decode", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SelftestError, match="cannot be decoded here: one of them crashes the decoder: killed"):
        replay(right, photos=photos, apart=True)


HEAD = "import os\nfrom edgecnn.errors import BundleError\nfrom edgecnn.runtime.child import run_program\n"


@pytest.mark.parametrize(
    ("body", "code", "table"),
    [
        ("print('loud')\n    os.write(1, b'engine')\n    return {'a': 1}", 0, {"a": 1}),
        ("print('loud')\n    raise BundleError('no\\nbundle')", BundleError.exit_code, {"error": "no\nbundle"}),
    ],
)
def test_the_object_is_alone_on_standard_output(body, code, table):
    program = f"{HEAD}def work():\n    {body}\nrun_program(work)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ended = Finished(done.returncode, done.stdout, done.stderr)
    assert (ended.code, ended.table) == (code, table) and "loud" in ended.err


def test_a_failure_reports_the_programs_error_or_the_last_line():
    assert Finished(15, '{"error": "no bundle"}', "a warning").failure == "exit code 15: no bundle"
    assert Finished(1, "", "Traceback\nImportError: no numpy\n\n").failure == "exit code 1: ImportError: no numpy"
    assert Finished(-9, "", "").failure == "killed (SIGKILL)"
