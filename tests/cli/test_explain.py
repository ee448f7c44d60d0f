"""`edgecnn explain` on bundles: pictures, lines, names and errors."""

import json
import sys

import jsonschema
import numpy as np
import pytest
from PIL import Image

from edgecnn.errors import OutputExistsError, PartialFailure
from edgecnn.region import WHOLE
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

KEYS = {"schema", "source", "answer", "index", "score", "box", "where", "decrease", "picture", "map"}


@pytest.fixture
def parse(schema_of):
    """Check JSON lines against the schema, and return them parsed."""
    schema = schema_of("explanation")
    validator = jsonschema.Draft202012Validator(schema)

    def lines(output):
        parsed = [json.loads(line) for line in output.splitlines()]
        for line in parsed:
            validator.validate(line)
        return parsed

    return lines


@pytest.fixture
def model(root):
    return "--model", root / "models" / "digits" / "digits.edgecnn"


@pytest.fixture
def photo(tmp_path):
    """Save a small noise image under a name in the working folder."""

    def save(name, seed=1):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path, "png")
        return path

    return save


def test_lines_and_pictures(edgecnn, photo, tmp_path, model):
    photo("photos/a.png"), photo("photos/sub/b.png", 2)
    result = edgecnn("explain", "photos", *model)
    assert result.code == 0
    one, other = result.out.splitlines()
    assert one.startswith("photos/a.png: ") and one.endswith(": explained/a-explained.png")
    assert other.endswith(": explained/b-explained.png") and " looked at " in other
    with Image.open(tmp_path / "explained" / "a-explained.png") as picture:
        assert picture.size == (2 * 256 + 8, 256 + 2 * 19 + 8), "two panels, and two lines below them"
    assert sorted(path.name for path in (tmp_path / "explained").iterdir()) == ["a-explained.png", "b-explained.png"]


def test_json_lines(edgecnn, photo, model, parse):
    source = photo("a.png")
    result = edgecnn("explain", source, "--out", "maps", "--json", *model)
    (line,) = parse(result.out)
    assert set(line) == KEYS
    assert (line["source"], line["picture"]) == (str(source), "maps/a-explained.png")
    map_ = np.array(line["map"])
    assert map_.shape == (8, 8) and np.array_equal(map_, map_.round(3))
    left, top, right, bottom = line["box"]
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    classified = json.loads(edgecnn("classify", source, "--json", *model).out)
    best = classified["top"][0]
    assert (line["answer"], line["index"], line["score"]) == (best["label"], best["index"], best["score"])
    assert line["decrease"] > 0 and line["where"] in edgecnn("explain", source, *model).out


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_an_image_that_cannot_be_decoded_is_skipped(edgecnn, photo, tmp_path, model, json_flag, parse):
    photo("photos/b.png")
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = edgecnn("explain", "photos", "none.png", *model, *json_flag)
    assert result.code == PartialFailure.exit_code
    assert [path.name for path in (tmp_path / "explained").iterdir()] == ["b-explained.png"]
    if json_flag:
        assert [set(line) for line in parse(result.out)] == [
            {"schema", "source", "error"},
            KEYS,
            {"schema", "source", "error"},
        ]
    else:
        assert "photos/a.png: " in result.err and len(result.out.splitlines()) == 1


def test_an_existing_picture_is_replaced_only_on_request(edgecnn, photo, tmp_path, model):
    source = photo("a.png")
    before = source.read_bytes()
    assert edgecnn("explain", source, "--out", ".", *model).code == 0
    (tmp_path / "a-explained.png").write_bytes(b"mine")
    result = edgecnn("explain", source, "--out", ".", *model)
    assert result.code == OutputExistsError.exit_code and "a-explained.png" in result.err
    assert (tmp_path / "a-explained.png").read_bytes() == b"mine"
    assert edgecnn("explain", source, "--out", ".", "--force", *model).code == 0
    assert (tmp_path / "a-explained.png").read_bytes()[:4] == b"\x89PNG" and source.read_bytes() == before


def test_images_with_the_same_name_do_not_share_a_picture(edgecnn, photo, tmp_path, model):
    for number, name in enumerate(("x/a.png", "y/a.png", "a-2.png")):
        photo(name, number)
    result = edgecnn("explain", "x", "y", "a-2.png", "--force", *model)
    written = [line.rpartition(": ")[2] for line in result.out.splitlines()]
    assert written == [f"explained/{name}-explained.png" for name in ("a", "a-2", "a-2-2")]
    assert len(list((tmp_path / "explained").iterdir())) == 3


NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "\u202egnp.exe",
    "\x1b[2J.png",
    "a\nb.png",
    "ü" * 125 + ".png",
    "é\udcff.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(edgecnn, photo, tmp_path, model, name, parse):
    photo(name)
    assert len((tmp_path / name).name.encode(errors="surrogateescape")) <= 255
    result = edgecnn("explain", tmp_path / name, "--json", *model)
    (line,) = parse(result.out)
    assert line["source"] == str(tmp_path / name).replace("\udcff", r"\udcff")
    (picture,) = (tmp_path / "explained").iterdir()
    assert (
        line["picture"] == f"explained/{picture.name}".replace("\udcff", r"\udcff")
        and picture.read_bytes()[:4] == b"\x89PNG"
    )
    if "\udcff" not in name:
        text = edgecnn("explain", tmp_path / name, "--force", *model).out
        assert len(text.splitlines()) == 1 and not set(text) & {"\u202e", "\x1b"}


def test_labels_of_any_kind(parse):
    from pathlib import Path

    from edgecnn.cli.explain import json_line, text_line
    from edgecnn.runtime.occlusion import Occlusion

    for label in ("<script>alert(1)</script>", "\u202egnp\x1b[2J", "ü" * 127):
        found = Occlusion(
            pixels=np.zeros((2, 2, 1), np.uint8), answer=label, index=0, score=0.5,
            map=np.zeros((2, 2), np.float32), box=(0, 0, 0.5, 0.5), decrease=0.0,
        )  # fmt: skip
        text = text_line("a.png", found, Path("a-explained.png"), WHOLE)
        assert not set(text) & {"\u202e", "\x1b"} and "no single place" in text
        (line,) = parse(json_line("a.png", found, Path("a-explained.png"), WHOLE))
        assert line["answer"] == label and line["where"] is None


def test_paths_on_standard_input(edgecnn, photo, tmp_path, model, monkeypatch):
    photo("a.png")
    listed = tmp_path / "listed"
    for content, code in ((b"a.png\n", 0), (b"\n", PartialFailure.exit_code)):
        listed.write_bytes(content)
        with listed.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert edgecnn("explain", "-", *model).code == code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name an image, a folder or a glob"),
        (["a.png", "--fit", "squeeze"], "crop, letterbox, stretch"),
    ],
)
def test_usage_errors(edgecnn, arguments, text):
    result = edgecnn("explain", *arguments)
    assert result.code == 2 and text in result.err
