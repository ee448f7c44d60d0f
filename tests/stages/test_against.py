"""Old against new on photos that neither was trained on. The bundles are the shipped digits model, with other lists and labels."""

import csv
import dataclasses
import io
import json
import re
import shutil

import jsonschema
import pytest
from PIL import Image

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.data import open_dataset
from edgecnn.recipe import DataRecipe
from edgecnn.stages.against import compare_bundles
from edgecnn.verify.against import against_lines

EACH = 60
SWAPPED = ("1", "0", *map(str, range(2, 10)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with 60 digits per class, and the class of each by hash."""
    folder = tmp_path_factory.mktemp("digits") / "photos"
    digits = open_dataset(DataRecipe(source="digits"))
    for label in range(10):
        items = [item for part in digits.items.values() for item in part if item.label == label][:EACH]
        for number, item in enumerate(items):
            path = folder / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(item.handle[:, :, 0]).save(path)
    listed = open_dataset(DataRecipe(source=str(folder)), for_training=False)
    return folder, {item.hash: str(item.label) for part in listed.items.values() for item in part}


@pytest.fixture
def made(root, tmp_path):
    """Write the shipped model as a different bundle."""
    shipped = read_bundle(root / "models/digits/digits.edgecnn")

    def made(name, labels=tuple("0123456789"), **lists):
        texts = {}
        for file, rows in lists.items():
            buffer = io.StringIO()
            csv.writer(buffer).writerows(rows)
            texts[{"images": "images.csv", "answers": "folds/answers.csv"}[file]] = buffer.getvalue().encode()
        path = tmp_path / f"{name}.edgecnn"
        manifest = dataclasses.replace(shipped.manifest, name=name, labels=labels, serial=3, files={})
        write_bundle(path, manifest, {**shipped.files, **texts})
        return path

    return made


def listed(**splits):
    return [("sha256", "split"), *((digest, split) for split, digests in splits.items() for digest in digests)]


def answers(by_hash):
    rows = ((digest, label, 1, label, answer, 0.9) for digest, (label, answer) in by_hash.items())
    return [("sha256", "class", "fold", "float", "int8", "score"), *rows]


def compared(old, new, photos, reporter, renamed=None, rule="usual"):
    return compare_bundles(old, new, str(photos), renamed=renamed or {}, rule=rule, reporter=reporter)


def test_training_photos_of_the_old_model_are_never_counted_and_new_ones_are_separate(made, photos, reporter):
    folder, classes = photos
    hashes = list(classes)
    old = made("old", images=listed(train=hashes[:200], validation=hashes[200:230], test=hashes[230:300]))
    new = made("new", images=listed(train=hashes[300:400], test=hashes[230:300] + hashes[400:], tied=hashes[:0]))
    against, _ = compared(old, new, folder, reporter)
    parts = {part.photos: part.n for part in against.parts}
    assert parts == {"all": 270, "old": 70, "new": 200}
    assert against.not_counted == {
        "in the training or validation data of the old model": 230,
        "in the training or validation data of the new model": 100,
    }
    assert (against.verdict, against.rule, against.earlier) == ("passed", "usual", ()) and not against.unknown
    assert compared(old, new, folder, reporter, rule="strict")[0].verdict == "not shown"
    tied = made("tied", images=listed(tied=hashes[400:410], test=hashes[410:]))
    left = compared(old, tied, folder, reporter)[0].not_counted
    assert left["showing the same thing as a training photo of the new model"] == 10


def test_a_new_photo_of_an_old_photos_scene_is_not_counted(made, photos, reporter, tmp_path):
    folder = shutil.copytree(photos[0], tmp_path / "photos")
    hashes = list(photos[1])
    sides = [
        ("sha256", "group", "split"),
        (hashes[0], "door", "train"),
        *((one, "door", "train") for one in hashes[550:]),
    ]
    with (folder / "edgecnn-splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows(sides)
    old, new = made("old", images=listed(train=hashes[:1], test=hashes[1:500])), made("new", images=listed())
    against, _ = compared(old, new, folder, reporter)
    assert {part.photos: part.n for part in against.parts} == {"all": 549, "old": 499, "new": 50}
    assert against.not_counted["showing the same thing as a training photo of the old model"] == 50


def test_folds_answer_for_training_photos_and_the_models_for_others(made, photos, reporter):
    folder, classes = photos
    hashes = list(classes)
    wrong = {digest: (classes[digest], "0" if classes[digest] != "0" else "1") for digest in hashes[:100]}
    right = {digest: (classes[digest], classes[digest]) for digest in hashes}
    old, new = (
        made("old", labels=SWAPPED, answers=answers({d: (classes[d], classes[d]) for d in hashes[:400]})),
        made("new", answers=answers(right | wrong)),
    )
    against, pictures = compared(old, new, folder, reporter)
    _, before, later = against.parts
    assert (before.n, before.lost, before.gained) == (400, 100, 0), "held-out answers are paired"
    assert later.n == 200 and later.accuracy_candidate == 1.0
    assert 0.7 < later.accuracy_reference < 0.9, "the model itself was used, which takes a 0 for a 1"
    assert against.verdict == "refused"
    assert len(against.flips) >= 100 and sorted(pictures) == list(range(24)) and pictures[0].shape == (8, 8, 1)
    first = against.flips[0]
    assert first.reference == first.true != first.candidate


def test_an_older_bundle_reports_what_cannot_be_known(made, photos, reporter):
    folder, classes = photos
    tested = sum(int(digest[:16], 16) / 2**64 < 0.2 for digest in classes)
    old = made("old")
    shipped = read_bundle(old)
    own = json.loads(json.dumps(shipped.manifest.provenance))
    own["recipe"]["data"]["source"] = "photos"
    write_bundle(old, dataclasses.replace(shipped.manifest, provenance=own, files={}), dict(shipped.files), force=True)
    against, _ = compared(old, made("new", images=listed(test=list(classes))), folder, reporter)
    assert [part.photos for part in against.parts] == ["all"] and against.parts[0].n == tested
    assert "old does not list its training images" in "\n".join(against_lines(against))


def test_renamed_classes_are_matched_and_added_ones_are_excluded(made, photos, reporter):
    folder, _ = photos
    old = made("old", labels=("zero", *map(str, range(1, 9)), "other"), images=listed())
    new = made("new", images=listed())
    against, _ = compared(old, new, folder, reporter, renamed={"zero": "0"})
    assert (against.added, against.gone, against.renamed) == (("9",), ("other",), {"zero": "0"})
    assert against.parts[0].n == 9 * EACH
    assert against.parts[0].lost == against.parts[0].gained == 0, "the same model answers the same"
    assert "--renamed 'other=9'" in "\n".join(against_lines(against))


def test_the_command_refuses_a_worse_model_and_shows_its_photos(edgecnn, made, photos, schema_of, tmp_path):
    folder, _ = photos
    old, new = made("old", images=listed()), made("new", labels=SWAPPED, images=listed())
    done = edgecnn("compare", old, new, "--data", folder, "--out", tmp_path / "out.json")
    assert done.code == 36
    assert re.search(r"new serial 3 \w{12} against old serial 3 \w{12}: REFUSED: it drops 20\.00 points", done.out)
    assert "--accept" in done.err
    report = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(report, schema_of("against"))
    page = (tmp_path / "out.html").read_text()
    assert page.count("<img") == 24 and "REFUSED" in page
    assert edgecnn("compare", new, old, "--data", folder).code == 0
    assert edgecnn("compare", old, tmp_path / "x.tflite", "--data", folder).code == 2
    assert "no class 'zero'" in edgecnn("compare", old, new, "--data", folder, "--renamed", "zero=0").err
