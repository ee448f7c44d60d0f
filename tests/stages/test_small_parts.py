"""The stages' small parts, on inputs small enough to count by hand: draws, counts, orders, lines, and what is kept or made again."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.evidence import VALIDATION, ValidationScores
from edgecnn.data import Split
from edgecnn.data.items import Item
from edgecnn.data.splits import SplitGroup
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import Answers, HeldOut
from edgecnn.files import sha256
from edgecnn.recipe import build_recipe
from edgecnn.run_info import GroupInfo
from edgecnn.runs import KNOWN, Run
from edgecnn.stages import compare, train
from edgecnn.stages.against import flips_in_order
from edgecnn.stages.bundle import default_model, verified_scores
from edgecnn.stages.choose import Choosing, labelled, splits_to_try
from edgecnn.stages.folds import divided, fold_line, voted_line
from edgecnn.stages.pipeline import STAGES, Stages, changed_keys
from edgecnn.stages.verify import by_folds, held_out_pixels, refused_strangers


def split_of(classes, first=0, name="photo", shape=(2, 3, 1)):
    """Return a split whose images have the values `first`, `first` + 1, …"""
    values = np.arange(first, first + len(classes), dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (len(classes), *shape)).copy()
    return Split(
        images=images, classes=np.array(classes, np.int64), sources=tuple(f"{name}{number}" for number in values)
    )


def test_input_ranges_are_tried_on_validation_images_and_training_images_only_below_100():
    for sizes, expected in (
        ((500, 100, 80), ("validation",)),
        ((500, 99, 80), ("validation", "train")),
        ((500, 0, 80), ("train",)),
        ((0, 7, 80), ("validation",)),
        ((0, 0, 80), ()),
    ):
        dataset = SimpleNamespace(sizes=dict(zip(("train", "validation", "test"), sizes, strict=True)))
        assert splits_to_try(dataset) == expected, sizes


def test_the_drawn_images_keep_their_classes_and_are_200_as_even_as_possible():
    validation, train = split_of([2, 0, 2]), split_of([1, 1, 0, 2, 1], first=3)
    drawn = labelled({"validation": validation, "train": train})
    assert drawn.name == "8 validation and training images"
    by_value = dict(zip(drawn.images[:, 1, 2, 0].tolist(), drawn.classes.tolist(), strict=True))
    assert by_value == {0: 2, 1: 0, 2: 2, 3: 1, 4: 1, 5: 0, 6: 2, 7: 1} and drawn.images.shape == (8, 2, 3, 1)
    many = labelled({"validation": split_of([0] * 150), "train": split_of([1] * 30 + [2] * 60)})
    assert np.bincount(many.classes).tolist() == [110, 30, 60] and many.name.startswith("200 ")
    empty = {"validation": split_of([]), "train": split_of([])}
    alone = labelled(empty, split_of([0, 1, 1], first=9))
    assert alone.name == "3 of the compared images, since there are no others"
    assert sorted(alone.images[:, 0, 0, 0].tolist()) == [9, 10, 11]


SCORES = (0.51, 0.55, 0.58, 0.62, 0.66, 0.72, 0.76, 0.81, 0.83, 0.86, 0.88, 0.91, 0.94, 0.96, 0.985)
COUNTS = (0, 0, 0, 0, 0, 3, 2, 2, 4, 2, 1, 1, 0, 0, 0, 0)
"""The number of SCORES in each bin of the histogram."""


@pytest.fixture
def choosing(tmp_path):
    """Return a function that begins to choose for a run with an int8 file, and 15 validation images that have SCORES at temperature 2.

    The more confident the answer, the more the image resembles the known ones.
    """
    (tmp_path / "model-int8.tflite").write_bytes(b"int8")

    def begin(rate=0.25, images=15):
        run = SimpleNamespace(
            file=tmp_path.joinpath,
            stored=Run(tmp_path).stored,
            info=SimpleNamespace(folds=(), head_ships=False),
            recipe=SimpleNamespace(stranger=SimpleNamespace(rate=rate), seed=1),
        )
        dataset = SimpleNamespace(hashes={"train": "1" * 64, "validation": "2" * 64})
        begun = Choosing(run, dataset, ("tflite", "int8"), lambda *progress: None)
        scores = np.array(SCORES[:images])
        logits = np.stack([2 * np.log(scores / (1 - scores)), np.zeros(images)], axis=1).astype(np.float32)
        begun.validation = logits, np.linspace(0.2, 0.8, images), np.zeros(images, np.int64)
        begun.features, begun.known = True, np.arange(24, dtype=np.int8).reshape(6, 4)
        return begun

    return begin


def test_a_devices_decisions_on_validation_images_are_counted(choosing):
    begun = choosing()
    run = begun.run
    strangers = begun.strangers(2.0)
    for threshold, given, expected in (
        (0.7, None, (5, 0, 0)),
        (0.7, strangers, (2, 3, 3)),
        (0.57, strangers, (0, 3, 2)),
    ):
        begun.scores(SimpleNamespace(threshold=threshold, temperature=2.0), given)
        found = run.stored(VALIDATION, ValidationScores)
        assert (found.below, found.strangers, found.strangers_below) == expected, threshold
        assert (found.images, found.counts, found.threshold) == (15, COUNTS, threshold)
        assert found.limit == (given and given.limit.limit) and found.model_sha256 == sha256(b"int8")
    level = choosing(images=3)
    level.validation = np.zeros((3, 2), np.float32), np.ones(3), np.zeros(3, np.int64)
    level.scores(SimpleNamespace(threshold=0.5, temperature=1.0), None)
    assert run.stored(VALIDATION, ValidationScores).below == 0, "a score of exactly the threshold is answered"


def test_the_strangers_limit_is_chosen_with_enough_images(choosing):
    first = choosing().strangers(2.0)
    assert (first.validation_images, first.known_images, first.rate, first.temperature) == (15, 6, 0.25, 2.0)
    assert np.load(choosing().run.file(KNOWN)).tolist() == np.arange(24).reshape(6, 4).tolist()
    few = choosing(rate=0.05).strangers(2.0)
    assert few.limit is None and few.not_fitted == "15 validation images; refusing 5% needs at least 19"
    none = choosing()
    none.features = False
    assert none.strangers(2.0) is None


def test_photos_that_show_the_same_thing_are_counted_when_folds_are_made(tmp_path):
    groups, notes = {"b": "a", "c": "a", "h": "g"}, []
    items = [
        Item(split="train", label=int(one > "f"), hash=one, source=f"{one}.png", handle=None) for one in "abcdefghijkl"
    ]
    dataset = SimpleNamespace(
        name="pets", labels=("cat", "dog"), items={"train": items}, given=frozenset(), tied={},
        split_groups={item.hash: SplitGroup(groups.get(item.hash, item.hash), "train") for item in items},
    )  # fmt: skip
    recipe = build_recipe({"train": {"folds": 3}})
    folds = divided(dataset, Run(tmp_path), recipe, SimpleNamespace(note=notes.append))
    assert notes == ["pets: 12 images in 3 folds; 5 of them share a group with others, and its fold"]
    assert divided(dataset, Run(tmp_path), recipe, SimpleNamespace(note=None)) == folds, "they are made once"


def test_the_lines_on_a_fold_and_on_the_folds_vote(fold_info):
    given = {"network": "net", "height": 160, "width": 96, "images": 1_234, "epoch": 3}
    one = fold_info(**given, float_accuracy=0.9123, int8_accuracy=0.8901)
    assert fold_line(2, one) == (
        "fold 2: net at 96x160; accuracy on 1,234 images that it never saw: float 91.23%, "
        "int8 (quantization-aware, epoch 3) 89.01%"
    )
    assert "int8 (quantized after training) 89.01%" in fold_line(1, dataclasses.replace(one, method="ptq"))
    tables = {"train": {"epochs": 31}, "qat": {"method": "qat", "epochs": 8, "keep": 4}}
    infos = [one] * 5
    assert voted_line(build_recipe(tables), infos, 6_170) == (
        "the model itself learns from all 6,170 images: 31 epochs, the folds' median, and quantization-aware training to epoch 4, "
        "as most of the 5 folds chose"
    )
    tables["qat"] = {"method": "ptq"}
    assert "median, and quantized after training, as" in voted_line(build_recipe(tables), infos, 6_170)


def test_held_out_answers_stand_for_a_shipped_models_in_its_own_precision_and_with_their_pictures():
    held = held_out(1 + np.arange(5.0), np.ones(5, int), wrong=())
    held = dataclasses.replace(held, sources=np.array(["c", "a", "e", "b", "d"]), float=held.int8 + 7)
    own = Answers(
        name="x", format="tflite", precision="", engine="", size_bytes=1, sha256="", values=np.zeros((2, 2)), unit="score",
        codes=np.zeros((2, 2)), scale=0.0, zero_point=0, call=None,
    )  # fmt: skip
    for precision in ("int8", "int8-ptq", "fake-quantized"):
        assert by_folds(dataclasses.replace(own, precision=precision), held).values is held.int8, precision
    for precision in ("float32", "float16", "int16x8"):
        found = by_folds(dataclasses.replace(own, precision=precision), held)
        assert found.values is held.float and (found.unit, found.codes) == ("logit", None), precision
    split = Split(images=np.arange(5).reshape(5, 1, 1, 1), classes=np.zeros(5, np.int64), sources=tuple("abcde"))
    pixels = held_out_pixels(split, held)
    assert [int(pixels(index).item()) for index in range(5)] == [2, 0, 4, 1, 3]


def held_out(values, fold, wrong):
    """Return answers of two classes that are the surer, and their features the more familiar, the larger their value."""
    logits = np.stack([np.asarray(values) / 3, np.zeros(len(values))], axis=1).astype(np.float32)
    names = np.array([f"{number:02}" for number in range(len(values))])
    return HeldOut(
        hashes=names,
        sources=names,
        classes=np.isin(values, wrong).astype(np.int64),
        fold=np.asarray(fold),
        float=logits,
        int8=logits,
        similarity=np.asarray(values) / 100,
    )


def test_each_fold_refuses_by_the_limit_of_the_other_fold():
    """Of 15 images the 4th lowest is the limit at a rate of 1 in 4, and of 7 the 2nd: 3 of fold 1 and 2 of fold 2 are below."""
    values = [1, 2, 3, 10, 11, 12, 13, 0.5, 1.5, 2.5, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17, 18, 19]
    held = held_out(values, [1] * 7 + [2] * 15, wrong=(0.5, 1.5, 3, 4, 10, 19))
    run = SimpleNamespace(recipe=SimpleNamespace(stranger=SimpleNamespace(decide=True)))
    chosen = SimpleNamespace(temperature=2.0, rate=0.25, not_fitted=None, known_images=40, validation_images=21)
    found = refused_strangers(run, held, chosen, "tflite-int8")
    assert (found.n, found.refused, found.refused_wrong) == (22, 5, 3)
    interval = binomtest(5, 22).proportion_ci(method="wilson")
    assert tuple(found.refused_interval) == pytest.approx((interval.low, interval.high))
    assert (found.model, found.rate, found.known_images, found.validation_images) == ("tflite-int8", 0.25, 40, 21)
    assert found.decide is True
    chosen.rate, run.recipe.stranger.decide = 0.05, None
    few = refused_strangers(run, held, chosen, "tflite-int8")
    assert (few.refused, few.refused_wrong, few.refused_interval, few.decide) == (0, 0, None, False)


def test_a_reference_is_doubtful_below_a_third_of_the_way_from_guessing():
    """With 4 classes guessing gives 25 %, and a third of the way from there is 50 %."""
    classes = np.array([0, 1, 2, 3, 3, 3, 2, 1])
    for right, doubtful in ((8, False), (4, False), (3, True)):
        answers = np.where(np.arange(8) < right, classes, (classes + 1) % 4)
        found = compare.doubts(SimpleNamespace(name="net.h5", values=np.eye(4)[answers]), classes, 4)
        assert bool(found) == doubtful, right
    (text,) = found
    assert text.startswith("net.h5 classifies 37.5% of 8 images correctly") and "these 4 classes (below 50%)" in text


def test_splits_are_joined_in_order_and_images_that_only_one_size_has_are_left_out():
    first, last = split_of([4, 0], shape=(2, 5, 3)), split_of([1, 1, 3], first=2, shape=(2, 5, 3))
    both = compare.joined_splits([first, last], "photos")
    assert both.images[:, 1, 4, 2].tolist() == [0, 1, 2, 3, 4] and both.images.shape == (5, 2, 5, 3)
    assert both.classes.tolist() == [4, 0, 1, 1, 3]
    assert both.sources == ("photo0", "photo1", "photo2", "photo3", "photo4")
    assert compare.joined_splits([last], "photos") is last
    large = split_of([4, 0, 1, 1, 3], shape=(4, 7, 1))
    one, other = compare.in_both(large, last)
    assert other is last and one.images.shape == (3, 4, 7, 1)
    assert one.images[:, 3, 6, 0].tolist() == [2, 3, 4] and one.classes.tolist() == [1, 1, 3]
    assert one.sources == other.sources == ("photo2", "photo3", "photo4")
    assert [len(part.classes) for part in compare.in_both(last, large)] == [3, 3]
    assert compare.in_both(last, last) == (last, last)


def test_each_model_reads_images_at_its_own_size_and_the_datas_own_where_it_is_open():
    splits = {
        "test": split_of([1], name="t"), "train": split_of([0, 1], 1, "a"), "validation": split_of([1, 1, 0], 3, "v"),
    }  # fmt: skip
    asked = []

    def load(names, **how):
        asked.append((names, how["height"], how["width"], how["channels"]))
        return {name: splits[name] for name in names}

    sizes = {name: len(split.classes) for name, split in splits.items()}
    dataset = SimpleNamespace(name="photos", labels=("a", "b"), shape=(24, 32, 3), sizes=sizes, load=load)
    for shape, split in (((-1, 12, -1, 1), "test"), ((-1, -1, 40, -1), "all")):
        model = SimpleNamespace(input=SimpleNamespace(shape=shape))
        images, tried = compare.images_for(model, dataset, split, None)
        assert images.sources == (("t0",) if split == "test" else ("a1", "a2", "v3", "v4", "v5", "t0"))
        assert tried.name == "5 validation and training images"
    assert [size for _, *size in asked] == [[12, 32, 1], [24, 40, 3]]
    assert sorted(asked[0][0]) == sorted(asked[1][0]) == ["test", "train", "validation"], "each split once"


def test_two_files_of_one_name_are_told_apart_in_the_report():
    one, other = Path("a/int8.tflite"), Path("b/int8.tflite")
    assert compare.names(one, Path("b/float.onnx")) == ("int8.tflite", "float.onnx")
    assert compare.names(one, other) == ("a/int8.tflite", "b/int8.tflite")


def test_lost_photos_are_shown_before_gained_ones_and_others_last():
    old, new, true = (np.array(row) for row in ([1, 2, 0, 1, 2, 1, 0], [1, 0, 2, 2, 2, 0, 1], [1, 1, 2, 1, 0, 1, 1]))
    assert flips_in_order(old, new, true) == [3, 5, 2, 6, 1]


def test_what_differs_between_two_recipes_is_named_with_its_old_and_new_value():
    before = {"seed": 1, "train": {"epochs": 6, "shift": 0, "flip": "no"}, "qat": {"epochs": 2}}
    after = {"seed": 1, "train": {"epochs": 7, "shift": 0, "cutout": 0}, "qat": {"epochs": 2}, "name": "b"}
    assert changed_keys(before, after) == [
        "name (None, now 'b')", "train.cutout (None, now 0)", "train.epochs (6, now 7)", "train.flip ('no', now None)",
    ]  # fmt: skip
    assert changed_keys(after, after) == []


def test_a_stage_is_done_again_after_a_failure_or_a_change_and_others_stay_done(tmp_path):
    notes, done = [], []
    stages, made = Stages(Run(tmp_path), notes.append), tmp_path / "made"

    def work(text):
        made.write_text(text)
        done.append(text)

    def failing():
        made.write_text("half")
        raise ValueError

    stages.do("first", {"a": 1}, [], lambda: done.append("first"))
    with pytest.raises(ValueError):
        stages.do("second", {"a": 1}, [made], failing)
    assert list(json.loads((tmp_path / STAGES).read_text())) == ["first"]
    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}, {"a": 1}):
        stages.do("second", inputs, [made], lambda: work("whole"))
    made.write_text("other")
    stages.do("second", {"a": 1}, [made], lambda: work("repaired"))
    stages.do("first", {"a": 1}, [], lambda: done.append("first again"))
    assert done == ["first", "whole", "whole", "whole", "repaired"]
    assert [note.startswith("first") for note in notes].count(True) == 2, "once done, once skipped"


def model(name, ms):
    format_, precision = name.split("-")
    return SimpleNamespace(name=name, format=format_, precision=precision, ms_per_image=ms)


def test_the_default_is_int8_for_tflite_and_the_faster_one_for_onnx_of_those_that_passed():
    models = [
        SimpleNamespace(name="float", format="keras", precision="float32", ms_per_image=0.1),
        model("tflite-float32", 1.0), model("tflite-int8", 3.0), model("onnx-int8", 2.0), model("onnx-float32", 1.5),
    ]  # fmt: skip

    def defaults(*failed, precisions=("int8", "float32")):
        held = [SimpleNamespace(candidate=one.name, passed=one.name not in failed) for one in models]
        report = SimpleNamespace(models=models, comparisons=held)
        return [default_model(report, format_, precisions) for format_ in ("tflite", "onnx")]

    assert defaults() == ["models/int8.tflite", "models/float32.onnx"]
    assert defaults("tflite-int8", "onnx-float32") == ["models/float32.tflite", "models/int8.onnx"]
    assert defaults(precisions=("int8",)) == ["models/int8.tflite", "models/int8.onnx"]
    assert defaults("onnx-int8", precisions=("int8",)) == ["models/int8.tflite", None]


def test_a_bundle_has_only_counts_of_its_own_file_temperature_threshold_and_limit(tmp_path):
    (tmp_path / VALIDATION).write_bytes(b"counts")
    stored = SimpleNamespace(model_sha256="a", temperature=2.0, threshold=0.5, limit=None)
    run = SimpleNamespace(
        stored=lambda name, kind: stored, path=tmp_path, file=tmp_path.joinpath, command=Run(tmp_path).command
    )
    own = {"model_sha256": "a", "temperature": 2.0, "threshold": 0.5}

    def taken(strangers=None, **other):
        return verified_scores(run, SimpleNamespace(**own | other), strangers) == b"counts"

    assert taken() and taken(SimpleNamespace(limit=None)), "too few images for a limit"
    zero = SimpleNamespace(limit=SimpleNamespace(limit=0.0))
    for other in ({"model_sha256": "b"}, {"temperature": 1.0}, {"threshold": 0.0}, {"strangers": zero}):
        with pytest.raises(RunError, match="First: edgecnn verify"):
            taken(**other)
    stored.limit = 0.0
    assert taken(zero), "a limit of 0 is a limit"
    for found in (stored, None):
        run.stored = lambda name, kind, found=found: found
        with pytest.raises(RunError, match="First: edgecnn verify"):
            taken()


LETTERS = {"train": "abcg", "validation": "fh", "test": "de"}


def photos_of(rules=None, **changes):
    """Return a dataset with a photo per letter, which is its class too from f on; a to c are a group, d and e another."""
    groups = dict.fromkeys("abc", "first") | dict.fromkeys("de", "second")
    items = {
        split: [Item(split=split, label=int(one > "e"), hash=one, source=f"{one}.png", handle=None) for one in text]
        for split, text in LETTERS.items()
    }
    given = {
        one: SplitGroup(groups.get(one, one), split, "", (rules or {}).get(one, "photo"))
        for split, text in LETTERS.items()
        for one in text
    }
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    return SimpleNamespace(**{
        "items": items, "split_groups": given, "labels": ("cat", "dog"), "shares": shares, "tied": {}, "anew": False,
        "groups_note": "", **changes
    })  # fmt: skip


def test_the_lines_on_splits_count_photos_that_share_one_stayed_or_arrived():
    after = photos_of()

    def numbers(after, known, **listed):
        return [re.findall(r"\d+", line) for line in train.lines(after, train.Listed(known, **listed))]

    def listed(text):
        return {one: after.split_groups[one] for one in text}

    off = ["0", "25", "67", "25"]  # cats in validation, dogs in validation: by more than a photo
    assert numbers(after, {}) == [["5", "8"], off]
    assert numbers(after, listed("abdfg")) == [["5", "3"], ["5", "8"], off]
    (*_, stored) = train.lines(after, train.Listed(listed("abdf"), "/photos/edgecnn-splits.csv"))
    assert "/photos/edgecnn-splits.csv" in stored
    assert len(list(train.lines(after, train.Listed(listed("abcdefgh"), "/photos/edgecnn-splits.csv")))) == 3, (
        "nothing was stored"
    )
    after.tied = {"d": "a", "e": "b", "f": "g", "h": "c"}
    (*_, tied) = train.lines(after, train.Listed(listed("abcdeh")))
    assert " 4 test photos " in tied and tied.endswith("d.png and a.png; e.png and b.png; f.png and g.png; …")


def test_the_lines_on_splits_say_what_groups_make_impossible_and_what_was_divided_anew():
    shares = {"train": 0.2, "validation": 0.1, "test": 0.7}
    after = photos_of(shares=shares, groups_note="folders are ignored")
    before = {one: SplitGroup(one, "test", "", "(.+)_") for one in "abcdefgh"}
    first, *others = train.lines(after, train.Listed(before))
    assert first == "folders are ignored"
    (off,) = (line for line in others if "since photos stay" in line)
    assert off.startswith("test has 0% of class 'dog', not 70%; ") and "of the photos" in off, (
        "a class without a test goes first"
    )
    after.anew = True
    _, anew, *_ = train.lines(after, train.Listed(before, former="/photos/edgecnn-splits-1.csv"))
    assert "6 photos changed their split" in anew and "/photos/edgecnn-splits-1.csv" in anew, "all but d and e"
    after.groups = lambda: GroupInfo(by="(.+)_", splits={"train": 2, "validation": 2, "test": 1})
    after.split_groups["a"] = SplitGroup("first", "train", "", "(.+)_")
    assert any(
        re.findall(r"\d+", line) == ["5", "2", "2", "1", "1", "3"] for line in train.lines(after, train.Listed({}))
    )
