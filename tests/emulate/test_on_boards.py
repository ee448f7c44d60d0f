"""Bundles on boards: an emulator that is a shell script runs this machine's own Python, so everything except the processor is real."""

import shlex
import sys
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the models are TFLite files")

from edgecnn.boards import emulated_targets
from edgecnn.bundle.file import read_bundle
from edgecnn.data import Split
from edgecnn.emulate import on_boards as module
from edgecnn.emulate.machine import System
from edgecnn.emulate.on_boards import OnBoards, differences, draw_images, model_for, verify_on_boards
from edgecnn.errors import DatasetError, EmulatorError, EngineError, ParityError, UnknownNameError
from edgecnn.evaluate.answers import recorded_data
from edgecnn.labels import text_table
from edgecnn.report.sections import boards_section
from edgecnn.tables import to_json
from edgecnn.verify.parity_report import require_boards

QEMU = 'case "$1" in --version) echo "qemu-aarch64 version 0.0 (fake)"; exit;; esac; SCRIPT shift 5; unset PYTHONHOME; exec @PYTHON "$@"'
VERSIONS = {
    "libpython3.13-minimal": "3.13.5-2",
    "numpy": "2",
    "ai_edge_litert": "2",
    "onnxruntime": "1",
    "tflite_runtime": "2",
}

QUICK = 'case "$*" in *selftest*) echo \'{"passed": true, "layers": [], "rows": []}\'; exit;; esac'
"""A self-test that passes at once, for tests of something else."""

GOLDEN = 16
"""The bundle's golden inputs."""


@pytest.fixture
def emulator(tmp_path, monkeypatch):
    """Make qemu-aarch64 a script that runs this Python after a given line of shell."""
    folder = tmp_path / "programs"
    folder.mkdir()
    made = []

    def make_system(release, engine, progress):
        made.append((release, engine))
        return System(release, "3.13", tmp_path / "root", tmp_path / "site", VERSIONS)

    monkeypatch.setattr(module, "make_system", make_system)
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def put(script=""):
        path = folder / "qemu-aarch64"
        path.write_text(
            "#!/bin/sh\n"
            + QEMU.replace("SCRIPT", script and script + ";").replace("@PYTHON", shlex.quote(sys.executable))
        )
        path.chmod(0o755)
        return made

    return put


@pytest.fixture(scope="module")
def bundle(root):
    return read_bundle(root / "models" / "digits" / "digits.edgecnn")


def on(*names, **options):
    return OnBoards(targets=tuple(emulated_targets(names)), **options)


def valid(report, schema_of, definition):
    schema = schema_of("parity")
    jsonschema.validate(report, {"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]})


def test_boards_answer_like_this_machine(emulator, bundle, schema_of):
    made, told = emulator(), []
    rows = verify_on_boards(bundle, None, on("rpi-zero2w,rpi3,rpi4"), lambda *state: told.append(state))
    assert [(row.target, row.cpu) for row in rows] == [
        ("rpi-zero2w", "cortex-a53"), ("rpi3", "cortex-a53"), ("rpi4", "cortex-a72"),
    ]  # fmt: skip
    assert len(made) == 2 and [state[1:] for state in told] == [(1, 2), (2, 2)]
    for row in rows:
        valid(to_json(row), schema_of, "board_row")
        assert row.passed and row.selftest is True and row.largest_difference == 0
        assert (row.images, row.split, row.accuracy, row.agreement) == (GOLDEN, "golden", None, 1.0)
        assert row.engine.startswith("litert ") and row.against == row.engine
        assert row.versions["python"] == "3.13.5-2" and row.qemu == "0.0 (fake)"
    require_boards(rows)
    printed = text_table(*boards_section(rows).table)
    assert "rpi4 (cortex-a72)" in printed and f"{GOLDEN} golden" in printed and "0 LSB" in printed


def test_accuracy_on_a_sample_of_the_test_split(emulator, bundle):
    emulator(QUICK)
    pixels = np.concatenate([bundle.golden_inputs()] * 4)
    split = Split(images=pixels, classes=np.zeros(len(pixels), np.int64), sources=tuple(map(str, range(len(pixels)))))
    (row,) = verify_on_boards(bundle, split, on("rpi4", sample=20, release="bookworm"), lambda *state: None)
    assert (row.images, row.split, row.release) == (20, "test", "bookworm")
    assert row.accuracy == row.accuracy_here and 0 <= row.accuracy <= 1


def test_an_illegal_instruction_names_engine_and_processor(emulator, bundle, schema_of):
    emulator('case "$2" in cortex-a72) kill -ILL $$;; esac; ' + QUICK)
    rows = verify_on_boards(bundle, None, on("rpi4,rpi5"), lambda *state: None)
    assert [row.error for row in rows] == ["illegal instruction (SIGILL) on cortex-a72", None]
    assert [row.passed for row in rows] == [False, True] and rows[0].failed == ("error",)
    valid(to_json(rows[0]), schema_of, "board_row")
    assert "illegal instruction (SIGILL) on cortex-a72" in text_table(*boards_section(rows).table)
    with pytest.raises(EmulatorError, match=r"rpi4.*cortex-a72.*1 of 2"):
        require_boards(rows)


def test_the_boards_python_error_is_shown(emulator, bundle):
    emulator("echo 'ImportError: no libstdc++' >&2; exit 1")
    (row,) = verify_on_boards(bundle, None, on("rpi4"), lambda *state: None)
    assert row.error == "the self-test fails on cortex-a72: exit code 1: ImportError: no libstdc++"
    emulator('case "$*" in *runtime.worker*) echo oh >&2; exit 1;; esac; ' + QUICK)
    (row,) = verify_on_boards(bundle, None, on("rpi4"), lambda *state: None)
    assert row.error == "models/int8.tflite does not run on cortex-a72: exit code 1: oh" and row.selftest is True


def test_more_than_one_code_fails_the_gate(emulator, bundle, monkeypatch):
    emulator(QUICK)
    honest = module.answer_here

    def shifted(bundle, engine, pixels, by):
        answer = honest(bundle, engine, pixels)
        outputs = answer.outputs.astype(np.int16)
        outputs[3, 0] += by if outputs[3, 0] < 0 else -by
        return answer._replace(engine="of this machine", outputs=outputs.astype(np.int8))

    monkeypatch.setattr(module, "answer_here", lambda *arguments: shifted(*arguments, by=1))
    (row,) = verify_on_boards(bundle, None, on("rpi4"), lambda *state: None)
    assert row.passed and (row.largest_difference, row.rows_that_differ) == (1, 1)
    assert (row.against, row.limit, row.unit) == ("of this machine", 1, "LSB") and row.engine.startswith("litert ")
    monkeypatch.setattr(module, "answer_here", lambda *arguments: shifted(*arguments, by=2))
    (row,) = verify_on_boards(bundle, None, on("rpi4"), lambda *state: None)
    assert row.failed == ("largest_difference",)
    with pytest.raises(ParityError, match=r"rpi4.*cortex-a72.*2 LSB.*1 allowed"):
        require_boards([row])


def test_a_self_test_that_fails_fails_the_gate_with_its_reason(bundle, emulator):
    """Its limit is the emulator's: a board's own time is not known here."""
    rows = '[{"model": "model.tflite", "engine": "litert", "passed": false, "note": "no answer"}]'
    table = f'{{"passed": false, "layers": [], "rows": {rows}}}'
    emulator(f"case \"$*\" in *selftest*'--limit 3600'*) echo '{table}'; exit 18;; esac")
    (row,) = verify_on_boards(bundle, None, on("rpi4"), lambda *state: None)
    assert row.failed == ("selftest",)
    with pytest.raises(
        ParityError,
        match=r"rpi4.*cortex-a72.*model\.tflite on litert .*: no answer \(1 failed\)",
    ):
        require_boards([row])


def test_all_means_every_engine_with_wheels_and_a_model(bundle):
    (target,) = emulated_targets(["rpi4"])

    def engines(**options):
        return [case.engine for case in module.cases(target, on("rpi4", **options), bundle.manifest)]

    assert engines() == ["litert"]
    assert engines(engines=("onnxruntime",)) == ["onnxruntime"]
    assert engines(engines=("all",)) == ["litert", "onnxruntime"]
    assert engines(engines=("all",), release="bookworm") == ["litert", "tflite_runtime", "onnxruntime"]


def test_tflite_runtime_is_compared_with_the_same_kernels(bundle):
    answer = module.answer_here(bundle, "tflite_runtime", bundle.golden_inputs())
    assert answer.engine.startswith("litert ") and "built-in kernels" in answer.engine


def test_which_model(bundle):
    manifest = bundle.manifest
    assert model_for(manifest, "litert").file == "models/int8.tflite"
    floats = [model for model in manifest.models if model.precision != "int8"]
    other = replace(next(model for model in floats if model.format == "tflite"), file="models/other.tflite")
    for default in ("models/float32.tflite", other.file):
        without_int8 = replace(manifest, models=(other, *floats), defaults={"tflite": default})
        assert model_for(without_int8, "litert").file == default
    assert model_for(replace(manifest, models=tuple(floats)), "litert").file == "models/float32.tflite"
    with pytest.raises(EngineError, match=r"runs \.onnx models.*edgecnn export --format onnx"):
        model_for(replace(manifest, models=tuple(item for item in floats if item.format == "tflite")), "onnxruntime")


def test_requests_are_checked():
    with pytest.raises(UnknownNameError, match="Did you mean 'litert'"):
        on("rpi4", engines=("litertt",))
    with pytest.raises(UnknownNameError, match="Did you mean 'trixie'"):
        on("rpi4", release="trixi")


def test_the_sample_is_the_same_each_time():
    split = Split(images=np.arange(50), classes=np.arange(50), sources=tuple(map(str, range(50))))
    one, other = draw_images(split, 20), draw_images(split, 20)
    assert one.sources == other.sources and len(set(one.sources)) == 20
    assert [int(name) for name in one.sources] == one.classes.tolist() == one.images.tolist()
    assert draw_images(split, 0) is split and draw_images(split, 50) is split


def test_differences():
    here = np.array([[1, 2], [127, -128], [5, 4]], np.int8)
    there = np.array([[1, 2], [-128, 127], [4, 5]], np.int8)
    found = differences(there, here, Split(images=here, classes=np.array([1, 0, 0]), sources=("a", "b", "c")))
    assert found["largest_difference"] == 255 and found["rows_that_differ"] == 2
    assert found["agreement"] == pytest.approx(1 / 3)
    assert (found["accuracy"], found["accuracy_here"]) == (pytest.approx(1 / 3), 1.0)
    assert differences(there, here, None) == found | {"accuracy": None, "accuracy_here": None}
    for one, other in ((None, here), (there, None)):
        assert differences(one, other, None) == dict.fromkeys(found, None) | {"images": 0}


@pytest.mark.parametrize(
    "said", [{}, {"recipe": {}, "data": "photos"}, {"recipe": {}, "data": {"split_hashes": 3}}, {"recipe": 1}]
)
def test_a_bundle_that_claims_anything_about_its_images(bundle, said):
    """Its description of itself is free JSON, which an attacker may have written."""
    from edgecnn.emulate.on_boards import test_images as images_of

    forged = replace(bundle, manifest=replace(bundle.manifest, provenance=said))
    with pytest.raises(DatasetError, match="does not record which images"):
        images_of(forged, None, lambda *state: None, lambda text: None)


def test_a_bundles_images_are_found_in_the_recipe_or_where_they_are_now(bundle):
    """Digits come from a package. The bundle says that they were in a folder, which has gone."""
    recipe = bundle.manifest.provenance["recipe"]
    moved = recipe | {"data": recipe["data"] | {"source": "gone"}}
    forged = replace(
        bundle, manifest=replace(bundle.manifest, provenance=bundle.manifest.provenance | {"recipe": moved})
    )
    quiet = lambda *state: None, lambda text: None
    assert recorded_data(bundle, None, "test", *quiet).name == recorded_data(forged, "digits", "test", *quiet).name
    with pytest.raises(DatasetError):
        recorded_data(forged, None, "test", *quiet)
