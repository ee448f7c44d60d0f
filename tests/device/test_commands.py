"""Commands on a device."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.explain import AGAINST, FOR, GAP, LINE, PANEL, explain, frame_pictures, in_words, picture
from edgecnn.errors import BundleError, EngineError, PartialFailure, SelftestError, UnknownNameError
from edgecnn.pixels import resize
from edgecnn.runtime import Classifier
from edgecnn.runtime.default import SHIPPED, SHIPS
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

FILE_KEYS = {"schema", "source", "top", "decision", "reason", "latency_ms", "model", "model_sha256"}
ERROR_KEYS = {"schema", "source", "error"}


@pytest.fixture
def process(root, folder):
    """Run `edgecnn …` in a separate process, next to photos/ with the shipped default bundle."""

    def call(*arguments, stdout=subprocess.PIPE):
        environment = {**os.environ, "PYTHONPATH": str(root), "XDG_DATA_HOME": "none"}
        command = [sys.executable, "-m", "edgecnn", *arguments]
        return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, cwd=folder.parent, env=environment)

    return call


@pytest.fixture
def command(edgecnn, folder, monkeypatch):
    """Run `edgecnn …` in this process, next to photos/ with the shipped default bundle, and check its exit code."""
    monkeypatch.setenv("XDG_DATA_HOME", "none")

    def call(*arguments, stdin=b"", code=0):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        done = edgecnn(*arguments)
        assert done.code == code, done.err
        return done

    return call


def json_lines(result):
    return [json.loads(line) for line in result.out.splitlines()]


def test_json_lines(command):
    result = command("classify", "photos", "--json", "--top-k", 2)
    lines = json_lines(result)
    assert [line["source"] for line in lines] == ["photos/A.PNG", "photos/b.jpg", "photos/sub/c.bmp"]
    for line in lines:
        assert set(line) == FILE_KEYS and line["schema"] == "edgecnn.result/1"
        assert [set(item) for item in line["top"]] == [{"label", "index", "score"}] * 2
        assert line["decision"] == line["top"][0]["label"]
        assert line["model"] == SHIPPED
        assert 0 < line["top"][1]["score"] <= line["top"][0]["score"] <= 1
    assert result.err.startswith(f"model {SHIPPED}: ")
    assert f"{SHIPPED}.edgecnn ({SHIPS}), int8 .tflite on " in result.err


def test_plain_lines(process):
    result = process("classify", "photos/b.jpg", "--top-k", "1")
    (line,) = result.stdout.decode().splitlines()
    assert line.startswith("photos/b.jpg: ") and line.endswith("%") and "," not in line


def test_broken_images_are_reported_counted_and_skipped(command, folder):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = ("classify", "photos/cut.jpg", "photos/notes.txt", "photos/b.jpg", "none.jpg")
    result = command(*arguments, "--json", code=PartialFailure.exit_code)
    lines = json_lines(result)
    assert [set(line) for line in lines] == [ERROR_KEYS, ERROR_KEYS, FILE_KEYS, ERROR_KEYS]
    assert len({line["error"] for line in lines if "error" in line}) == 3
    plain = command(*arguments, code=PartialFailure.exit_code)
    assert len(plain.out.splitlines()) == 1 and "photos/cut.jpg: " in plain.err
    command("classify", "none.jpg", code=PartialFailure.exit_code)


def test_threshold(command):
    (line,) = json_lines(command("classify", "photos/b.jpg", "--json", "--threshold", "1"))
    assert (line["decision"], line["reason"], len(line["top"])) == ("abstain", "below_threshold", 3)
    (line,) = json_lines(command("classify", "photos/b.jpg", "--json", "--margin", "1", "--top-k", "1"))
    assert (line["decision"], line["reason"], len(line["top"])) == ("abstain", "below_margin", 1)
    assert command("classify", "photos/b.jpg", "--threshold", "1").out == "photos/b.jpg: abstain\n"


def test_fit(edgecnn, folder, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "none")
    scores = {}
    for fit in ("crop", "letterbox", "stretch", None):
        line = json.loads(edgecnn("classify", "photos/b.jpg", "--json", *(["--fit", fit] if fit else [])).out)
        scores[fit] = tuple(item["score"] for item in line["top"])
    assert len(set(scores.values())) == 3 and scores[None] == scores["crop"]


def test_paths_on_standard_input(command):
    result = command("classify", "-", "--json", stdin=b"photos/b.jpg\nphotos/sub\n")
    assert [line["source"] for line in json_lines(result)] == ["photos/b.jpg", "photos/sub/c.bmp"]
    assert "did not name an image" in command("classify", "-", code=PartialFailure.exit_code).err


def test_names_that_are_not_utf8(command, process, folder, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    name = os.path.join(os.fsencode(folder), b"\xff\n.jpg")
    with open(name, "wb") as file:
        file.write((folder / "b.jpg").read_bytes())
    assert len(json_lines(command("classify", "photos", "--json"))) == 4
    plain = process("classify", "photos")
    assert plain.returncode == 0 and b"\\udcff" in plain.stdout


def test_usage_errors(command):
    for arguments in (["classify"], ["classify", "x", "--top-k", "0"], ["classify", "x", "--threshold", "2"]):
        command(*arguments, code=2)
    assert "classify" in command("clasify", code=2).err


def test_requests_that_cannot_be_met(command, folder):
    (folder / "broken.edgecnn").write_bytes(b"PK\x03\x04 no")
    for arguments, kind, named in (
        (["--model", "none.edgecnn"], BundleError, "none.edgecnn"),
        (["--model", "photos/broken.edgecnn"], BundleError, "broken.edgecnn"),
        (["--engine", "litrt"], UnknownNameError, "'litert'"),
        (["--precision", "int9"], UnknownNameError, "'int8'"),
    ):
        refused = command("classify", "photos/b.jpg", *arguments, code=kind.exit_code)
        assert refused.out == "" and named in refused.err and refused.err.startswith("edgecnn: error: ")
        assert len(refused.err.splitlines()) <= 3


def test_engine_that_is_not_installed(command):
    missing = [name for name in ("litert", "tflite_runtime") if not is_installed(name)]
    if not missing:
        pytest.skip("both TFLite engines are installed")
    result = command("classify", "photos/b.jpg", "--engine", missing[0], code=EngineError.exit_code)
    assert "pip install" in result.err


def test_full_disk_behind_standard_output(process):
    with open("/dev/full", "wb") as full:
        for arguments in (["classify", "photos"], ["targets", "--json"]):
            result = process(*arguments, stdout=full)
            assert result.returncode == 19
            assert b"cannot write standard output: No space left" in result.stderr
            assert b"Traceback" not in result.stderr and b"Exception ignored" not in result.stderr


def test_the_reader_of_standard_output_leaves(process):
    for arguments in (["classify", "photos", "--json"], ["targets"]):
        reading, writing = os.pipe()
        os.close(reading)
        result = process(*arguments, stdout=writing)
        os.close(writing)
        assert result.returncode == 141
        assert b"Traceback" not in result.stderr and b"Exception ignored" not in result.stderr


def test_selftest(command, root):
    report = json.loads(command("selftest", "--json").out)
    assert report["passed"]
    assert {row["model"] for row in report["rows"]} == {"models/int8.tflite", "models/int8.onnx"}
    for name in ("digits", "article-as-written"):
        plain = command("selftest", "--model", root / "models" / name / f"{name}.edgecnn", "--engine", "litert")
        for precision in ("int8", "float32"):
            assert f"passed  models/{precision}.tflite on " in plain.out


def test_selftest_that_fails(command, root, folder):
    """The model's answers differ from its golden outputs, which here belong to other pictures."""
    from edgecnn.bundle.file import read_bundle, write_bundle

    bundle = read_bundle(root / "models" / "digits" / "digits.edgecnn")
    inputs = bundle.files[bundle.manifest.golden_inputs]
    files = {**bundle.files, bundle.manifest.golden_inputs: inputs[:-64] + bytes(64)}
    write_bundle(folder / "other.edgecnn", bundle.manifest, files)
    result = command("selftest", "--model", "photos/other.edgecnn", code=SelftestError.exit_code)
    assert "FAILED" in result.out and "does not reproduce the bundle's answers" in result.err


def forged(root, folder, change):
    """Write a hostile bundle with every hash right, and return its path."""
    import dataclasses

    from edgecnn.bundle.file import pack, read_bundle
    from edgecnn.files import sha256

    bundle = read_bundle(root / "models" / "digits" / "digits.edgecnn")
    manifest, files = change(bundle.manifest, dict(bundle.files))
    hashes = {name: sha256(content) for name, content in files.items()}
    path = folder / "forged.edgecnn"
    path.write_bytes(pack(dataclasses.replace(manifest, files=hashes), files))
    return path


@pytest.mark.parametrize("count", [9, 11])
def test_the_number_of_labels_differs_from_the_outputs(command, root, folder, count):
    import dataclasses
    import io

    import numpy as np

    def change(manifest, files):
        for model in manifest.models:
            golden = np.load(io.BytesIO(files[model.golden]))
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(np.concatenate([golden, golden], axis=1)[:, :count]))
            files[model.golden] = buffer.getvalue()
        return dataclasses.replace(manifest, labels=tuple(map(str, range(count)))), files

    path = forged(root, folder, change)
    refused = command("classify", "photos/b.jpg", "--engine", "litert", "--model", path, code=EngineError.exit_code)
    assert "(10,)" in refused.err
    command("selftest", "--engine", "litert", "--model", path, code=SelftestError.exit_code)


@pytest.mark.parametrize("label", ["abstain", "\x1b[2J\x1b[Hphoto.jpg: cat 99.99%", "a\0b"])
def test_labels_that_no_class_can_have(command, root, folder, label):
    import dataclasses

    path = forged(
        root,
        folder,
        lambda manifest, files: (dataclasses.replace(manifest, labels=(label, *map(str, range(9)))), files),
    )
    result = command("classify", "photos/b.jpg", "--model", path, code=BundleError.exit_code)
    assert result.out == "" and result.err.rstrip("\n").isprintable()


def test_file_names_that_move_the_cursor(command, folder):
    """A terminal shows them as escapes; JSON has them exactly."""
    good, bad = "\x1b[2Jgood\nfake.jpg: cat 99.00%.jpg", "\x1b[1Abad\u202e.png"
    (folder / good).write_bytes((folder / "b.jpg").read_bytes())
    (folder / bad).write_bytes(b"no image")
    result = command("classify", "photos", code=PartialFailure.exit_code)
    for text in (result.out, result.err):
        assert all(line.isprintable() for line in text.splitlines())
    assert r"photos/\x1b[2Jgood\nfake.jpg: cat 99.00%.jpg: " in result.out
    assert r"photos/\x1b[1Abad\u202e.png: " in result.err
    lines = json_lines(command("classify", "photos", "--json", code=PartialFailure.exit_code))
    assert {f"photos/{good}", f"photos/{bad}"} <= {line["source"] for line in lines}
    missing = command("classify", "none\x1b[2J.jpg", "--model", "b\x1b[2J.edgecnn", code=BundleError.exit_code)
    assert missing.err.rstrip("\n").isprintable()


FAKE_ENGINE = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "import time; time.sleep(600)",
    "leave": "import os; os._exit(0)",
}


@pytest.fixture
def fake_engine(tmp_path, root):
    """Make a Python path with an ai_edge_litert that does something to its process when it opens a model."""

    def make(what):
        package = tmp_path / "fake" / "ai_edge_litert"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '0.0'\n")
        (package / "interpreter.py").write_text(
            "from enum import Enum\n"
            "OpResolverType = Enum('OpResolverType', 'AUTO BUILTIN_REF BUILTIN_WITHOUT_DEFAULT_DELEGATES')\n"
            f"def Interpreter(**_):\n    print('noise', flush=True); {FAKE_ENGINE[what]}\n"
        )
        return f"{package.parent}{os.pathsep}{root}"

    return make


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("crash", "this model crashes the engine: segmentation fault (SIGSEGV)"),
        pytest.param("hang", "this model hangs the engine: no answer in 1 s", marks=pytest.mark.slow),
        ("leave", "this model ends the engine's process with exit code 0"),
    ],
)
def test_a_model_that_crashes_its_engine_fails_the_selftest(fake_engine, root, folder, what, said):
    """The command itself survives: it reports each model, checks the photos, and exits with the code of a failed self-test."""
    bundle = root / "models" / "digits" / "digits.edgecnn"
    limit = ["--limit", "1"] if what == "hang" else []
    result = subprocess.run(
        [sys.executable, "-m", "edgecnn", "selftest", "--json", "--engine", "litert", "--model", bundle, *limit],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": fake_engine(what)},
        timeout=60,
    )
    assert result.returncode == SelftestError.exit_code, result.stderr
    report = json.loads(result.stdout)
    rows = [row for row in report["rows"] if row["engine"] == "litert"]
    assert [(row["model"], row["passed"], row["note"]) for row in rows] == [
        (f"models/{precision}.tflite", False, said) for precision in ("int8", "float32")
    ]
    assert [layer["passed"] for layer in report["layers"]] == [True, True]
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith(
        "edgecnn: error: models/int8.tflite on litert does not reproduce the bundle's answers: this model "
    )


def test_ctrl_c_ends_a_model_that_hangs(fake_engine, root, folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecnn", "selftest", "--model", root / "models" / "digits" / "digits.edgecnn"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": fake_engine("hang")},
        start_new_session=True,
    )
    assert process.stderr is not None
    while process.stderr.readline() != b"noise\n":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err


def test_targets(command):
    assert "Raspberry Pi Zero 2 W" in command("targets").out
    assert json.loads(command("targets", "--json").out)["rpi4"]["emulator"] == {
        "cpu": "cortex-a72",
        "release": "trixie",
    }


@pytest.fixture
def classifier(root):
    return Classifier.load(root / "models" / "digits" / "digits.edgecnn")


def sheet_of(pixels, map_, answer="cat", score=0.5):
    """A complete picture, and the rows of its panels."""
    data = picture(pixels, np.float32(map_), answer, score)
    sheet = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    return sheet, sheet.shape[0] - 2 * LINE - GAP


def drawn(pixels, map_):
    sheet, rows = sheet_of(pixels, map_)
    return sheet[:rows]


def test_the_answer_its_score_and_the_legend_are_below():
    pixels, map_ = np.full((8, 8, 1), 128, np.uint8), np.zeros((8, 8))
    sheet, rows = sheet_of(pixels, map_)
    caption = sheet[rows:]
    answer, legend = caption[: LINE + GAP // 2], caption[LINE + GAP // 2 :]
    assert (answer < 100).any() and (answer[:, PANEL:] == 255).all(), "a short name, on the left"
    squares = [np.nonzero(np.abs(legend - colour).max(axis=2) < 2)[1] for colour in (FOR, AGAINST)]
    assert all(len(columns) > 80 for columns in squares)
    assert squares[0].max() < 20 < squares[1].min(), "the colour for the answer comes first"
    assert not np.array_equal(caption, sheet_of(pixels, map_, score=0.51)[0][rows:])
    longest, _ = sheet_of(pixels, map_, answer="M" * 255)
    assert longest.shape == sheet.shape and (longest[rows:, -8:] < 100).any(), "the score is still there"
    assert sheet_of(np.full((64, 8, 1), 128, np.uint8), np.zeros((64, 8)))[0].shape[1] >= PANEL, "room for the legend"


def test_the_image_and_the_map_are_next_to_each_other():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    map_ = np.zeros((8, 8))
    map_[:4, :4], map_[4:, 4:] = 3.0, -3.0
    sheet = drawn(pixels, map_)
    assert sheet.shape == (PANEL, 2 * PANEL + GAP, 3)
    side = PANEL // 8
    assert np.array_equal(sheet[:, :PANEL], np.repeat(np.repeat(pixels, side, 0), side, 1)), "each pixel is a square"
    assert (sheet[:, PANEL : PANEL + GAP] == 255).all()
    over = sheet[:, PANEL + GAP :]
    for place, colour in (((16, 16), FOR), ((-17, -17), AGAINST)):
        assert np.abs(over[place] - colour).max() < 45, "almost the pure colour"
    assert np.ptp(over[16, -17]) == 0, "where the map is 0, grey"


def test_a_weak_map_is_at_full_strength():
    pixels, map_ = np.full((8, 8, 1), 128, np.uint8), np.eye(8)
    assert np.array_equal(drawn(pixels, map_), drawn(pixels, 1000 * map_))


def test_a_map_without_anything_is_grey_and_a_large_input_keeps_its_size():
    pixels = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    sheet = drawn(pixels, np.zeros((200, 300)))
    assert sheet.shape == (200, 608, 3)
    assert (np.ptp(sheet[:, 308:], axis=2) == 0).all()


def test_a_boxs_position_in_words():
    thirds = (0.1, 0.5, 0.9)
    words = [in_words((x - 0.1, y - 0.1, x + 0.1, y + 0.1)) for y, x in itertools.product(thirds, thirds)]
    assert words == [
        "upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right",
    ]  # fmt: skip
    assert in_words((0, 0, 1, 1)) == "centre" and in_words((1, 1, 1, 1)) == "lower right"


@pytest.mark.parametrize("fit", [None, "letterbox", "stretch"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_the_explanation_covers_what_the_classifier_read(classifier, tmp_path, fit, rotation):
    frame = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    for image in (frame, tmp_path / "frame.png", (tmp_path / "frame.png").read_bytes()):
        found = explain(image, classifier, fit, rotation)
        best = classifier.classify(image, fit=fit, rotation=rotation).top[0]
        assert (found.answer, found.index) == (best.label, best.index)
        assert found.score == pytest.approx(best.score)
        grey = np.asarray(Image.fromarray(frame).convert("L"))
        assert np.array_equal(found.pixels, resize(grey, 8, 8, fit or "crop", rotation))


def test_a_frame_becomes_a_picture(classifier):
    frame = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    data = frame_pictures(classifier, "stretch")(frame, 90)
    found = explain(frame, classifier, "stretch", 90)
    assert data == picture(found.pixels, found.map, found.answer, found.score)
