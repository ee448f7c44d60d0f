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

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.data import open_dataset
from edgecnn.evaluate.statistics import WORTH, paired_interval
from edgecnn.files import sha256_file
from edgecnn.recipe import DataRecipe
from edgecnn.stages.against import compare_bundles
from edgecnn.tables import to_json
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

    def made(name, labels=tuple("0123456789"), by=None, weights="auto", **lists):
        texts = {}
        for file, rows in lists.items():
            buffer = io.StringIO()
            csv.writer(buffer).writerows(rows)
            texts[{"images": "images.csv", "answers": "folds/answers.csv"}[file]] = buffer.getvalue().encode()
        path = tmp_path / f"{name}.edgecnn"
        manifest = dataclasses.replace(shipped.manifest, name=name, labels=labels, serial=3, files={})
        if by:
            data = manifest.provenance["data"] | {"groups": {"by": by, "splits": {"train": 1}}}
            manifest = dataclasses.replace(manifest, provenance=manifest.provenance | {"data": data})
        recipe = manifest.provenance["recipe"]
        recipe = recipe | {"train": recipe["train"] | {"class_weights": weights}}
        manifest = dataclasses.replace(manifest, provenance=manifest.provenance | {"recipe": recipe})
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


@pytest.mark.parametrize("side", ["old", "new"])
def test_groups_on_one_side_only_leave_out_new_photos_of_the_groups_that_taught_it(made, photos, reporter, side):
    """The folder has no list, and one of the bundles was divided by the tens of its photos' names."""
    folder, _ = photos
    names = {sha256_file(path): int(path.stem) for path in folder.glob("*/*.png")}
    taught = [one for one, number in names.items() if number == 20]  # ten classes
    rows = listed(train=taught, test=[one for one, number in names.items() if number >= 40])
    old, new = (made(one, images=rows, by=r"^(\d)\d$" if one == side else None) for one in ("old", "new"))
    against, _ = compared(old, new, folder, reporter)
    assert against.not_counted == {
        "in the training or validation data of the old model": 10,
        f"showing the same thing as a training photo of the {side} model": 90,
    }, "21 to 29 of each class"


@pytest.mark.parametrize(("weights", "verdict"), [("auto", "refused"), ("none", "passed")])
def test_a_rare_class_counts_like_the_others_if_training_weighed_the_classes(
    made, photos, reporter, tmp_path, weights, verdict
):
    """There are 12 nines and 60 of each other digit. The new model gains eight others, and loses four nines."""
    folder = shutil.copytree(photos[0], tmp_path / "photos")
    for path in sorted((folder / "9").iterdir())[12:]:
        path.unlink()
    classes = {sha256_file(path): path.parent.name for path in folder.glob("*/*.png")}
    nines, others = ([one for one, label in classes.items() if (label == "9") == nine] for nine in (True, False))
    right = {digest: (label, label) for digest, label in classes.items()}
    before = right | {one: (classes[one], "9") for one in others[:8]}
    after = right | dict.fromkeys(nines[:4], ("9", "0"))
    old, new = made("old", answers=answers(before)), made("new", weights=weights, answers=answers(after))
    against, _ = compared(old, new, folder, reporter)
    assert (against.parts[0].lost, against.parts[0].gained) == (4, 8)
    assert (against.verdict, against.balanced) == (verdict, weights == "auto")


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


@pytest.mark.parametrize("side", ["old", "new", "neither"])
def test_answers_of_folds_on_one_side_alone_weigh_less(made, photos, reporter, side):
    folder, classes = photos
    held = answers({digest: (label, label) for digest, label in classes.items()})
    old, new = (made(name, **({"answers": held} if name == side else {"images": listed()})) for name in ("old", "new"))
    whole = compared(old, new, folder, reporter)[0].parts[0]
    worth = 1.0 if side == "neither" else WORTH
    assert whole.n == len(classes)
    expected = paired_interval(worth * whole.lost, worth * whole.gained, worth * whole.n)
    assert tuple(whole.drop_interval) == pytest.approx(tuple(expected))


def test_a_later_photo_of_a_scene_that_taught_folds_is_not_counted(made, photos, reporter, tmp_path):
    """The first photo has a held-out answer, which counts; others of its scene came later, and the model that ships has seen it."""
    folder = shutil.copytree(photos[0], tmp_path / "photos")
    classes = photos[1]
    hashes = list(classes)
    sides = [("sha256", "group", "split"), *((one, "door", "train") for one in (hashes[0], *hashes[550:]))]
    with (folder / "edgecnn-splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows(sides)
    old = made("old", answers=answers({digest: (classes[digest], classes[digest]) for digest in hashes[:500]}))
    against, _ = compared(old, made("new", images=listed()), folder, reporter)
    assert {part.photos: part.n for part in against.parts} == {"all": 550, "old": 500, "new": 50}
    assert against.not_counted == {"showing the same thing as a training photo of the old model": 50}


def test_the_folds_answers_of_a_renamed_class_count_as_the_new_one(made, photos, reporter):
    folder, classes = photos
    labels = ("zero", *map(str, range(1, 10)))
    held = {digest: ("zero", "zero") if label == "0" else (label, label) for digest, label in classes.items()}
    old, new = made("old", labels=labels, answers=answers(held)), made("new", images=listed())
    whole = compared(old, new, folder, reporter, renamed={"zero": "0"})[0].parts[0]
    assert (whole.n, whole.accuracy_reference, whole.gained) == (10 * EACH, 1.0, 0)


def test_a_photo_with_two_labels_and_a_damaged_one_count_for_nobody(made, photos, reporter, tmp_path):
    """The damaged one has a held-out answer of the old model, but none of the new one."""
    folder = shutil.copytree(photos[0], tmp_path / "photos")
    twice, damaged = folder / "3" / "7.png", folder / "5" / "9.png"
    shutil.copy(twice, folder / "4" / "again.png")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    held = {sha256_file(path): (path.parent.name,) * 2 for path in folder.glob("*/*.png")}
    old, new = made("old", answers=answers(held)), made("new", images=listed())
    against, _ = compared(old, new, folder, reporter)
    assert against.parts[0].n == 10 * EACH - 2
    assert against.not_counted == {"with two labels": 2, "unreadable": 1}, "the two files, and the damaged one"


def test_each_comparison_of_either_model_counts_as_a_look_and_a_chain_of_passed_ones_is_kept(
    made, photos, reporter, tmp_path
):
    folder, _ = photos

    def compared_with(old, new, verdict="passed"):
        """Return the new bundle with the comparison inside, as `edgecnn bundle` writes it."""
        against, _ = compared(old, new, folder, reporter)
        bundle = read_bundle(new)
        path = new.with_name(f"{new.stem}-compared.edgecnn")
        text = json.dumps(to_json(dataclasses.replace(against, verdict=verdict))).encode()
        write_bundle(path, dataclasses.replace(bundle.manifest, files={}), {**bundle.files, "against.json": text})
        return path, against

    first = made("first", images=listed())
    second, _ = compared_with(first, made("second", images=listed()))
    third, against = compared_with(second, made("third", images=listed()))
    assert (against.looks, against.earlier) == (2, (sha256_file(first),))
    fourth, against = compared_with(third, made("fourth", images=listed()), "refused")
    assert (against.looks, against.earlier) == (3, (sha256_file(second), sha256_file(first)))
    assert compared(fourth, made("fifth", images=listed()), folder, reporter)[0].earlier == (), (
        "the fourth passed nothing"
    )
    assert compared(made("sixth", images=listed()), third, folder, reporter)[0].looks == 3, (
        "those of the new one count too"
    )


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
