"""The setting that a benchmark chose: used by default, and ignored with a reason once it no longer holds."""

import dataclasses
import json
from pathlib import Path

import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.errors import EngineError
from edgecnn.runtime import Classifier, tuned
from edgecnn.runtime.default import open_model, tuned_file
from edgecnn.runtime.engines import engines_for, first_installed, is_installed, open_engine

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def bundle(shipped):
    return read_bundle(shipped("digits"))


@pytest.fixture
def setting(bundle):
    """A setting that is valid here but is not the default."""
    name = first_installed(engines_for("tflite"))
    version = open_engine(name, bundle.files["models/int8.tflite"], "tflite").version
    return tuned.Tuned(
        engine=name,
        engine_version=version,
        provider=None,
        precision="float32",
        threads=2,
        hardware=tuned.hardware(),
        date="2026-11-25",
        n=100,
        p50_ms=0.5,
        p90_ms=1.0,
    )


def test_it_is_used_and_named(bundle, setting, shipped):
    path = tuned.store(bundle.sha256, setting)
    assert path == Path(tuned_file())
    about = Classifier.load(shipped("digits")).about
    assert (
        "float32 .tflite" in about
        and "2 threads); tuned on 2026-11-25: " in about
        and "p50 0.500 ms, p90 1.000 ms, n = 100" in about
    )


@pytest.mark.parametrize("asked", [{"num_threads": 1}, {"precision": "int8"}, {"engine": True}, {"provider": "cpu"}])
def test_explicit_options_come_first(bundle, setting, asked):
    tuned.store(bundle.sha256, setting)
    asked = {key: setting.engine if value is True else value for key, value in asked.items()}
    opened = open_model(bundle, **asked)
    assert (opened.entry.precision, opened.num_threads, opened.remark) == ("int8", 1, "")


def test_another_bundle_has_its_own(bundle, setting, shipped):
    tuned.store("0" * 64, setting)
    assert open_model(bundle).remark == ""
    tuned.store(bundle.sha256, dataclasses.replace(setting, threads=1))
    entries = json.loads(Path(tuned_file()).read_text())["bundles"]
    assert {key: entry["threads"] for key, entry in entries.items()} == {"0" * 64: 2, bundle.sha256: 1}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hardware": "Raspberry Pi 4"}, "it was measured on Raspberry Pi 4, "),
        ({"engine_version": "0.1"}, "0.1. Tune again: edgecnn benchmark --tune"),
        ({"precision": "float16"}, "the bundle has no float16 model"),
        ({"threads": 0}, "is damaged"),
        ({"threads": "2"}, "is damaged (threads"),
        ({"engine": "lite"}, "is damaged"),
    ],
)
def test_an_outdated_setting_is_ignored_with_a_note(bundle, setting, changed, reason):
    tuned.store(bundle.sha256, dataclasses.replace(setting, **changed))
    opened = open_model(bundle)
    assert (opened.entry.precision, opened.num_threads) == ("int8", 1)
    assert opened.remark.startswith("the tuned setting is ignored: ") and reason in opened.remark


def test_an_engine_that_is_gone(bundle, setting, monkeypatch):
    tuned.store(bundle.sha256, setting)
    monkeypatch.setattr(tuned, "is_installed", lambda name: False)
    assert "no longer installed" in open_model(bundle).remark


def test_an_engine_that_does_not_open_the_model(bundle, setting, monkeypatch):
    def refuse(*arguments, **options):
        raise EngineError("no memory")

    tuned.store(bundle.sha256, setting)
    monkeypatch.setattr(tuned, "open_engine", refuse)
    assert ": no memory. " in open_model(bundle).remark


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "edgecnn.tuned/2", "bundles": {}}', "[" * 100_000, "\x00\xff"]
)
def test_a_damaged_file_is_a_note_and_is_replaced(bundle, setting, text):
    path = Path(tuned_file())
    path.parent.mkdir()
    path.write_text(text)
    assert "the tuned setting is ignored: " in open_model(bundle).remark
    tuned.store(bundle.sha256, setting)
    assert open_model(bundle).remark.startswith("tuned on ")


def test_a_file_that_is_a_folder(bundle):
    Path(tuned_file()).mkdir(parents=True)
    assert "cannot be read" in open_model(bundle).remark


def test_removal(bundle, setting):
    assert not tuned.remove(bundle.sha256)
    tuned.store(bundle.sha256, setting)
    tuned.store("0" * 64, setting)
    assert tuned.remove(bundle.sha256) and not tuned.remove(bundle.sha256)
    assert open_model(bundle).remark == ""
    assert tuned.remove("0" * 64)
    assert not Path(tuned_file()).exists()


def test_without_a_file_nothing_is_computed(bundle, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.tuned.open_tuned", None)
    assert open_model(bundle).remark == ""
