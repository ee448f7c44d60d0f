"""What a bundle says of itself: the manifest, the scores on validation images, and the verdict."""

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgecnn.bundle.evidence import (
    AGAINST,
    BINS,
    BOUNDS,
    NOT_SHOWN,
    REFUSED,
    VALIDATION,
    ValidationScores,
    bad_reason,
    bin_of,
    objection,
    read_validation,
    score_counts,
    verdict_of,
)
from edgecnn.bundle.manifest import Manifest, safe_name
from edgecnn.errors import BundleError
from edgecnn.files import canonical_json, sha256
from edgecnn.tables import to_json


@pytest.fixture
def manifest(content):
    made, files = content
    return dataclasses.replace(made, files={name: sha256(data) for name, data in files.items()})


def changed(manifest, path, value):
    """Return the manifest's JSON with the value at a path of keys replaced, or removed if the new value is `...`."""
    table = json.loads(manifest.to_json())
    place = table
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return canonical_json(table).encode()


def test_reads_back_equal(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()


def test_is_readable_json_with_sorted_keys(manifest):
    table = json.loads(manifest.to_json())
    assert list(table) == sorted(table)
    assert table["labels"] == ["cat", "dög"]


def nested(levels):
    """Return this many nested lists."""
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["a\x1b[2J"], "red", "'a\\x1b[2J'"),
        (["colour"], "red", "colour"),
        (["title"], ..., "title"),
        (["input", "mean"], 1.0, "input.mean"),
        (["models", 0, "golden"], ..., "models[0].golden"),
        (["title"], 3, "manifest.json: title "),
        (["input", "height"], True, "input.height"),
        (["input", "height"], 4.0, "input.height"),
        (["input", "scale"], 1, "input.scale"),
        (["input"], [], "manifest.json: input "),
        (["models"], {}, "manifest.json: models "),
        (["models", 0], "x", "models[0] "),
        (["models"], [], "must have at least one model"),
        (["input", "height"], 0, "between 1 and 4,096"),
        (["input", "width"], 5000, "between 1 and 4,096"),
        (["input", "channels"], 2, "input.channels"),
        (["input", "fit"], "squeeze", "crop, letterbox, stretch"),
        (["input", "scale"], -0.5, "between 1e-09 and 1e+09"),
        (["input", "scale"], 1e-45, "between 1e-09"),
        (["input", "height"], -1, "between 1 and 4,096"),
        (["input", "height"], 10**400, "between 1 and 4,096"),
        (["input", "zero_point"], 128, "between -128 and 127"),
        (["labels"], ["cat", "cat"], "two or more labels, without repetition"),
        (["labels"], ["cat"], "two or more"),
        (["labels"], ["cat", 1], "labels[1] "),
        (["labels"], ["cat", ""], "it is empty"),
        (["labels"], ["cat", "abstain"], "'abstain' is the answer when the classifier is unsure"),
        (["labels"], ["cat", "é" * 128], "longer than 255 bytes"),
        (["temperature"], 0.0, "temperature"),
        (["temperature"], 1e-45, "temperature"),
        (["temperature"], 1e39, "temperature"),
        (["threshold"], 1.5, "threshold"),
        (["serial"], -1, "0 and 9,007,199,254,740,992"),
        (["serial"], 2**53 + 1, "0 and 9,007,199,254,740,992"),
        (["title"], "a\x1b[2J", "title must hold no control characters"),
        (["models", 0, "tolerance_reason"], "a\nb", "tolerance_reason must hold no control characters"),
        (["provenance"], {"x": nested(20)}, "provenance must have at most 20 levels"),
        (["name"], "", "name must not be empty"),
        (["models", 0, "format"], "pt", "tflite, onnx"),
        (["models", 0, "precision"], "int4", "int8, float32"),
        (["models", 0, "tolerance"], -1.0, "models[0].tolerance"),
        (["models", 0, "tolerance"], 9.0, "a whole number of codes from 0 to 8"),
        (["models", 0, "tolerance"], 0.5, "a whole number of codes from 0 to 8"),
        (["models", 0, "tolerance"], 1e300, "a whole number of codes from 0 to 8"),
        (["models", 1, "tolerance"], -1.0, "models[1].tolerance"),
        (["models", 0, "tolerance_unit"], "apples", "LSB, logit"),
        (["models", 1, "file"], "models/int8.tflite", "each file once"),
        (["defaults"], {"onnx": "models/int8.tflite"}, "must name a model of that format"),
        (["defaults"], {"tflite": "models/int4.tflite"}, "must name a model of that format"),
        (["golden_inputs"], "golden/none.npy", "golden/none.npy"),
        (["files", "../x"], "0" * 64, "plain relative paths"),
        (["files", "recipe.toml"], "0" * 63, "SHA-256"),
        (["files", "recipe.toml"], None, "files.'recipe.toml'"),
        (["schema"], "edgecnn.bundle/2", "edgecnn.bundle/2"),
    ],
)
def test_refuses(manifest, path, value, message):
    with pytest.raises(BundleError) as error:
        Manifest.from_json(changed(manifest, path, value))
    assert message in str(error.value)


UNSAFE = {
    "escape code": "\x1b[2J",
    "zero": "\0",
    "newline": "\n",
    "delete": "\x7f",
    "one-byte escape code": "\x9b",
    "line separator": "\u2028",
    "right to left": "\u202e",
    "isolate": "\u2067",
    "mark": "\u200f",
}


@pytest.mark.parametrize("character", UNSAFE.values(), ids=UNSAFE)
def test_a_label_with_a_control_character(manifest, character):
    with pytest.raises(BundleError, match=r"labels\[1\] cannot be the name of a class: it contains a control") as error:
        Manifest.from_json(changed(manifest, ["labels"], ["cat", f"do{character}g"]))
    assert str(error.value).isascii() and str(error.value).isprintable()


def test_a_label_that_is_not_text(manifest):
    """JSON can contain half of a surrogate pair, which cannot be written to a terminal, a file or an environment."""
    with pytest.raises(BundleError):
        Manifest.from_json(manifest.to_json().replace(b'"cat"', b'"c\\ud800t"'))


def test_labels_in_any_language(manifest):
    """Folder names in any language, 1,000 of them, are valid labels."""
    for label in ("dög", "Katze 2", "猫", "قط", "חתול", "T-shirt/top", "👩\u200d🚀", "it's", "Abstain", "e\u0301"):
        assert Manifest.from_json(changed(manifest, ["labels"], ["x", label])).labels[1] == label
    names = [f"{number:04d} {'name of forty characters or so' * 2}" for number in range(1000)]
    assert len(Manifest.from_json(changed(manifest, ["labels"], names)).labels) == 1000
    assert Manifest.from_json(changed(manifest, ["provenance"], {"x": nested(19)}))


def test_each_photo_is_named_once(manifest):
    photo = {"file": "recipe.toml", "decoded_sha256": "0" * 64, "resized_sha256": "0" * 64}
    assert Manifest.from_json(changed(manifest, ["golden_images"], [photo]))
    with pytest.raises(BundleError, match="each file once"):
        Manifest.from_json(changed(manifest, ["golden_images"], [photo, photo]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_refuses_other_documents(data):
    with pytest.raises(BundleError):
        Manifest.from_json(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_refuses_numbers_that_are_not_finite(manifest, number):
    data = manifest.to_json().replace(b'"scale": 0.0078125', f'"scale": {number}'.encode())
    assert number.encode() in data
    with pytest.raises(BundleError):
        Manifest.from_json(data)


def test_provenance_must_be_json(manifest):
    for value in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(BundleError):
            dataclasses.replace(manifest, provenance=value).to_json()


def test_unknown_model(manifest):
    with pytest.raises(BundleError, match=r"models/int8\.tflite"):
        manifest.model("models/int4.tflite")


@pytest.mark.parametrize("name", ["a", "models/int8.tflite", "A-b_c.d/e"])
def test_safe_names(name):
    assert safe_name(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", ".hidden", "a\\b", "é", "a b", "C:x", "a\n", "a" * 201]
)
def test_unsafe_names(name):
    assert not safe_name(name)


SCORES = [0.0, 0.1, 0.1000001, 0.2, 0.95, 0.951, 0.999, 0.9991, 1.0]
IN_BINS = [0, 0, 1, 1, 9, 10, 14, 15, 15]


def test_a_score_at_a_bound_is_in_the_lower_bin_and_both_counts_agree():
    assert [bin_of(score) for score in SCORES] == IN_BINS
    counts = score_counts(np.array(SCORES))
    assert counts == (2, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2) and len(counts) == BINS
    assert score_counts(np.array([0.3])) == (0, 0, 1, *[0] * 13), "bins without scores at the end are counted too"


SCORES_OF_50 = ValidationScores(
    model="m", model_sha256="a", validation_sha256="b", temperature=1.0, threshold=0.5, limit=-3.0, images=50, bounds=BOUNDS,
    counts=(20, *[0] * (BINS - 2), 30), below=4, strangers=7, strangers_below=2,
)  # fmt: skip


def test_a_device_that_does_not_recognise_strangers_abstains_on_those_below_the_threshold():
    assert SCORES_OF_50.shares(0.5, strangers=True) == (4 / 50, 7 / 50)
    assert SCORES_OF_50.shares(0.5, strangers=False) == (6 / 50, 0)
    assert SCORES_OF_50.shares(0.75, strangers=True) == (None, 7 / 50), "another threshold than the counted one"


def test_scores_of_more_images_than_there_are_are_refused():
    def read(**change):
        return read_validation({VALIDATION: json.dumps(to_json(replace(SCORES_OF_50, **change))).encode()})

    assert read() == SCORES_OF_50 and read_validation({}) is None
    read(below=43), read(strangers=46), read(strangers_below=50)
    for wrong in ({"below": 44}, {"strangers": 47}, {"strangers_below": 51}, {"images": 51}, {"images": 49}):
        with pytest.raises(BundleError):
            read(**wrong)
    none = [0] * (BINS - 2)
    for counts in ((20, 30), (20, *none[1:], 30), (20, 0, *none, 30), (20, -1, 1, *none[2:], 30)):
        with pytest.raises(BundleError):
            read(counts=counts)


OLD, OLDER, OTHER, MODEL = (digit * 64 for digit in "abcd")
GOOD = {
    "verdict": "passed",
    "why": "1 point better",
    "old": {"name": "door-1", "sha256": OLD},
    "new": {"model_sha256": MODEL},
    "earlier": [OLDER],
}


def bundle(against):
    files = (
        {} if against is None else {AGAINST: against if isinstance(against, bytes) else json.dumps(against).encode()}
    )
    manifest = SimpleNamespace(name="door", files={"models/float32.tflite": OTHER, "models/int8.tflite": MODEL})
    return SimpleNamespace(files=files, manifest=manifest)


@pytest.mark.parametrize("word", ["passed", "refused", "not shown"])
def test_a_verdict_is_given_with_the_old_models_name_and_without_control_characters(word):
    found = verdict_of(bundle(GOOD | {"verdict": word, "why": "1 point\x1b[2J"}))
    assert found[:2] == (word, "against door-1, 1 point\\x1b[2J")
    assert found.passed == ((OLD, OLDER) if word == "passed" else ()), (
        "only who passed may replace, itself or by a chain"
    )
    assert verdict_of(bundle(None)) == ("", "", ()), "not compared"


UNREADABLE = ({}, [GOOD], b"{", b"[" * 100_000, b"\xff")
CHANGED = (
    {"verdict": "PASSED"},
    {"verdict": None},
    {"why": 1},
    {"old": "a"},
    {"earlier": 1},
    {"new": {}},
    {"old": {"name": "door"}},
)


@pytest.mark.parametrize("against", [*(GOOD | wrong for wrong in CHANGED), *UNREADABLE])
def test_whatever_else_it_says_nothing_was_shown(against):
    assert verdict_of(bundle(against)) == (NOT_SHOWN, "its against.json cannot be read", ())


def test_a_verdict_on_a_model_that_the_bundle_does_not_contain_does_not_count():
    stale = verdict_of(bundle(GOOD | {"new": {"model_sha256": "e" * 64}}))
    assert stale.word == NOT_SHOWN and "does not contain" in stale.why and stale.passed == ()


def test_a_bundle_replaces_only_what_it_passed_against_itself_or_by_a_chain():
    files = {digest: Path(f"old files/{digest[0]}") for digest in (OLD, OLDER, OTHER)}

    def why(against, *olds):
        return objection(bundle(against), {old: files[old] for old in olds}, 7)

    assert [why(GOOD, *olds) for olds in ((), (OLD,), (OLDER,), (OLD, OLDER))] == [""] * 4
    assert why(None) == "", "the first model needs no comparison"
    for against, olds in (
        (None, (OLD,)),
        (GOOD, (OTHER,)),
        (GOOD, (OTHER, OLD)),
        (GOOD | {"earlier": []}, (OLDER, OLD)),
    ):
        last = next(old for old in reversed(olds) if against is None or old != OLD)
        text = why(against, *olds)
        assert f" {last[:12]}" in text
        words = shlex.split(text.rpartition(": ")[2])
        verify, bundled = words[: words.index("&&")], words[words.index("&&") + 1 :]
        assert verify == ["edgecnn", "verify", "RUN", "--against", str(files[last])]
        assert bundled == ["edgecnn", "bundle", "RUN", "--serial", "7", "--force"]
    for word in (REFUSED, NOT_SHOWN):
        for olds in ((), (OLD,), (OTHER,)):
            assert why(GOOD | {"verdict": word}, *olds) == f"it is {word}: against door-1, 1 point better"


def test_a_reason_is_a_line():
    assert [bool(bad_reason(text)) for text in ("the camera was moved", "x" * 1000, "x" * 1001, "a\nb", "\x1b[2J")] == [
        False, False, True, True, True,
    ]  # fmt: skip
