"""The inspection itself, and the question about new things."""

import dataclasses
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.data.items import Item
from edgecnn.data.splits import SplitGroup
from edgecnn.inspect import groups, question
from edgecnn.inspect.inspection import inspect_images
from edgecnn.inspect.look import FILE
from edgecnn.inspect.question import ask, fits, found
from edgecnn.recipe import DataRecipe
from edgecnn.region import WHOLE

ALONE = "by hashes alone"


def opened(path):
    return open_dataset(DataRecipe(source=str(path)), for_training=False)


def inspected(path, **options):
    return inspect_images(opened(path), missing=ALONE, **options)


def named(report):
    return {frozenset(copy.source for copy in group.copies): group for group in report.groups}


def test_every_mistake_is_named_and_nothing_else(tmp_path, fill, planted):
    report = inspected(fill(tmp_path / "pets", planted))
    groups = named(report)
    byte = groups.pop(frozenset({"train/cat/1.jpg", "train/cat/byte copy.jpg"}))
    assert byte.exact and byte.by == "content" and not byte.leak and {copy.same for copy in byte.copies} == {"file"}
    near = groups.pop(frozenset({"train/cat/0.jpg", "train/cat/compressed.jpg", "train/cat/mirrored.jpg"}))
    assert not near.exact and near.by == "hash" and near.mirrored and near.score < 1
    leak = groups.pop(frozenset({"test/dog/2.jpg", "train/dog/leaked.png"}))
    assert leak.exact and leak.leak and {copy.same for copy in leak.copies} == {"pixels"}
    assert [copy.source for copy in leak.copies if copy.keep] == ["test/dog/2.jpg"]
    both = groups.pop(frozenset({"train/cat/3.jpg", "train/dog/also a cat.jpg"}))
    assert both.two_labels and not any(copy.keep for copy in both.copies)
    assert not groups
    assert {item.source for item in report.unreadable} == {"train/dog/cut off.jpg", "train/dog/empty.jpg"}
    assert report.groups[0].leak and report.groups[1].two_labels, "the worst come first"
    texts = {item.kind: item.text for item in report.findings}
    assert re.findall(r"\d+", texts["unreadable"])[:2] == ["2", str(len(planted))]
    severities = {item.kind: item.severity for item in report.findings}
    assert list(severities.values()) == sorted(severities.values(), key=("error", "warning", "note").index)
    assert severities["leak"] == severities["two-labels"] == "error"
    assert severities["unreadable"] == severities["duplicate"] == "warning"
    assert severities["near-duplicate"] == "note"
    assert report.method.missing == ALONE and report.method.features is None and not report.wrong_labels


def test_good_photos_have_no_copies(tmp_path, fill, photos):
    report = inspected(fill(tmp_path / "pets", photos))
    assert not report.groups and not report.unreadable
    assert {item.kind for item in report.findings} == {"few"}
    assert report.splits["test"] == 8 and sum(report.splits.values()) == 32 and report.own_splits == ("train", "test")


def test_digits_look_alike_but_are_not_copies():
    report = inspected("digits")
    false = sum(len(group.copies) for group in report.groups)
    assert report.images == 1797 and false < 0.01 * report.images


def test_a_second_run_computes_nothing(tmp_path, fill, planted):
    folder = fill(tmp_path / "pets", planted)
    first, second = inspected(folder), inspected(folder)
    assert first.computed["hashes"] == len(set(planted.values())) < len(planted), "each different file"
    assert second.computed["hashes"] == 2, "only unreadable files"
    assert dataclasses.replace(second, computed=first.computed, seconds=first.seconds) == first


def test_an_interrupted_runs_results_are_kept(tmp_path, fill, photos, monkeypatch):
    from edgecnn.inspect import look

    folder, done = fill(tmp_path / "pets", photos), []
    monkeypatch.setattr(look, "CHUNK", 4)
    one_look = look.one_look

    def interrupted(item, read):
        done.append(item)
        if len(done) > 9:
            raise KeyboardInterrupt
        return one_look(item, read)

    monkeypatch.setattr(look, "one_look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspected(folder)
    monkeypatch.setattr(look, "one_look", one_look)
    assert inspected(folder).computed["hashes"] <= len(photos) - 8


def test_a_damaged_cache_is_not_trusted_and_not_fatal(tmp_path, fill, photos, own_cache):
    folder, notes = fill(tmp_path / "pets", photos), []
    (own_cache / "edgecnn").mkdir()
    (own_cache / "edgecnn" / FILE).write_bytes(b"not a database" * 1000)
    report = inspected(folder, note=notes.append)
    assert report.images == len(photos) and FILE in notes[0]


def test_of_a_camera_that_never_moves_only_equal_pictures_are_copies(tmp_path, fill, scene, encode):
    import numpy as np

    empty = np.asarray(scene(7)).astype(np.int16)
    files = {}
    for index in range(40):
        frame = empty.copy()
        frame[50:60, 3 * index : 3 * index + 12] -= 60  # something small passes by
        files[f"{('open', 'closed')[index % 2]}/{index}.png"] = encode(
            Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8)), "PNG"
        )
    files["open/again.jpg"] = encode(Image.fromarray(empty.astype(np.uint8)), quality=95)
    files["closed/same.png"] = files["open/0.png"]
    report = inspected(fill(tmp_path / "door", files))
    assert report.method.all_alike and "alike" in {item.kind for item in report.findings}
    assert list(named(report)) == [frozenset({"open/0.png", "closed/same.png"})]


def test_a_mirrored_copy_is_found_among_few_photos_whose_pairs_are_compared_both_ways(tmp_path, fill, scene, encode):
    files = {f"{('cat', 'dog')[seed % 2]}/{seed}.jpg": encode(scene(seed), quality=95) for seed in range(6)}
    files["cat/mirrored.jpg"] = encode(scene(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=85)
    (group,) = inspected(fill(tmp_path / "pets", files)).groups
    assert [copy.source for copy in group.copies] == ["cat/2.jpg", "cat/mirrored.jpg"] and group.mirrored


def test_beyond_a_limit_only_images_of_different_groups_are_compared(
    tmp_path, fill, scene, encode, photos, monkeypatch
):
    copies = {
        f"train/cat/{seed} {q}.jpg": encode(scene(seed), quality=q) for seed in (91, 92) for q in range(60, 84, 2)
    }
    compared = []
    measured = groups.frame_difference
    monkeypatch.setattr(groups, "CHUNK", 8)
    monkeypatch.setattr(groups, "ALL_PAIRS", 8)
    monkeypatch.setattr(groups, "frame_difference", lambda *pair: compared.append(pair) or measured(*pair))
    report = inspected(fill(tmp_path / "pets", photos | copies))
    assert sorted(len(group.copies) for group in report.groups) == [12, 12], "of 66 pairs each"
    assert 22 <= len(compared) < 50


def test_with_a_region_only_the_region_is_compared(tmp_path, fill, scene, encode):
    """Twenty scenes inside the region of a grey picture, and the first scene again with something else around it."""
    region = (0.5, 0.25, 0.25, 0.25)
    files = {}
    for index in range(21):
        frame = Image.new("RGB", (640, 480), (128, 128, 128)) if index < 20 else scene(99, 640, 480)
        frame.paste(scene(index % 20, 160, 120), (320, 120))
        files[f"{('open', 'closed')[index % 2]}/{index}.jpg"] = encode(frame, quality=90)
    source = str(fill(tmp_path / "door", files))

    def groups_of(region):
        dataset = open_dataset(DataRecipe(source=source, region=region), for_training=False)
        return named(inspect_images(dataset, missing=ALONE))

    whole = groups_of((0, 0, 1, 1))
    assert frozenset({"open/0.jpg", "open/20.jpg"}) not in whole
    assert list(groups_of(region)) == [frozenset({"open/0.jpg", "open/20.jpg"})]
    assert groups_of((0, 0, 1, 1)) == whole, "the cache keeps the two apart"


def test_size_and_format_that_reveal_the_class_are_named(tmp_path, fill, scene, encode):
    files = {f"cat/{index}.jpg": encode(scene(index)) for index in range(20)}
    files |= {f"dog/{index}.png": encode(scene(100 + index, 140, 140), "PNG") for index in range(20)}
    (tell,) = [item for item in inspected(fill(tmp_path / "pets", files)).findings if item.kind == "tell"]
    assert "predict the class of 100% of the images" in tell.text


def test_a_blurred_photo_is_named(tmp_path, fill, photos, scene, encode):
    from PIL import ImageFilter

    files = photos | {"train/cat/soft.jpg": encode(scene(99).filter(ImageFilter.GaussianBlur(8)), quality=90)}
    report = inspected(fill(tmp_path / "pets", files))
    assert [item.source for item in report.blurred] == ["train/cat/soft.jpg"]


def piled(count=24, size=10, apart=1.0, seed=1):
    """Return the features, classes and piles of photos: each class has a look of its own in each pile, and little in common elsewhere."""
    random = np.random.default_rng(seed)
    piles = np.repeat(np.arange(count), size)
    classes = random.integers(0, 2, len(piles))
    looks = random.normal(size=(count, 2, 40)) * apart
    features = looks[piles, classes] + random.normal(size=(len(piles), 40)) * 0.3
    features[:, 0] += classes
    return features.astype(np.float32), classes, piles


def items_of(names, classes):
    return [
        Item(split="train", label=int(label), hash=f"{n:064x}", source=f"{label}/{name}.jpg", handle=n, below=name)
        for n, (name, label) in enumerate(zip(names, classes, strict=True))
    ]


def dataset(read=lambda item: np.zeros((1, 1, 3), np.uint8), split_groups=None):
    return SimpleNamespace(read=read, split_groups=split_groups or {}, region=WHOLE)


def asked(names, features, classes, **more):
    notes = []
    sentence = ask(dataset(**more), items_of(names, classes), features, lambda *step: None, notes.append)
    assert not notes
    return sentence


def test_stems_with_counters_that_matter_are_named_with_both_figures_and_the_pattern():
    features, classes, piles = piled()
    names = [f"IMG_{4200 + pile}_{number}" for number, pile in enumerate(piles)]
    sentence = asked(names, features, classes)
    assert "(IMG_4200…, 24 groups)" in sentence and r"--group-by '(.+)_\d+$'" in sentence
    by_photo, by_stem = (int(part.split()[-1]) for part in sentence.split("%")[:2])
    assert by_photo >= by_stem + 3
    listed = {"a": SplitGroup("IMG_4200", "test", rule=r"(.+)_\d+$")}
    assert not asked(names, features, classes, split_groups=listed), "groups are named already"


def test_runs_of_a_hundred_numbers_are_asked_about():
    features, classes, piles = piled()
    sentence = asked([f"{100 * pile + number % 10:04d}" for number, pile in enumerate(piles)], features, classes)
    assert "runs of a hundred numbers" in sentence and r"'^(\d+)\d\d$'" in sentence


def test_times_of_exif_in_clusters_are_asked_about_and_not_repeated():
    features, classes, piles = piled()

    def read(item):
        exif = Image.Exif()
        hour, minute = divmod(int(piles[item.handle]) * 40, 60)
        exif.get_ifd(0x8769)[0x9003] = f"2026:05:17 {hour:02d}:{minute:02d}:{item.handle % 10:02d}"
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif)
        return buffer.getvalue()

    sentence = asked([f"x{number}y" for number in range(len(piles))], features, classes, read=read)
    assert "time in EXIF (breaks of 10 minutes, 24 groups)" in sentence and "folder" in sentence
    assert "2026" not in sentence and ":17" not in sentence


def test_groups_that_mean_nothing_are_not_mentioned():
    features, classes, piles = piled(apart=0.0)
    assert not asked([f"IMG_{pile}_{number}" for number, pile in enumerate(piles)], features, classes)
    features, classes, piles = piled(count=12)
    said = 0
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(piles)
        said += bool(asked([f"IMG_{pile}_{number}" for number, pile in enumerate(shuffled)], features, classes))
    assert said <= 1


@pytest.mark.parametrize(
    "groups, classes, expected",
    [
        (np.repeat(np.arange(12), 5), np.tile([0, 1], 30), True),
        (np.repeat(np.arange(9), 6), np.tile([0, 1], 27), False),  # fewer than ten
        (np.r_[np.zeros(20, int), np.repeat(np.arange(1, 11), 4)], np.tile([0, 1], 30), False),  # one has a third
        (np.repeat(np.arange(12), 5), np.repeat(np.arange(12), 5), False),  # the classes themselves
        (np.arange(60), np.tile([0, 1], 30), False),  # each photo is a group
    ],
)
def test_groups_are_many_none_large_and_not_the_classes(groups, classes, expected):
    assert fits(groups, classes) == expected


def test_the_answer_is_remembered(monkeypatch):
    features, classes, piles = piled(apart=0.0)
    names = [f"IMG_{pile}_{number}" for number, pile in enumerate(piles)]
    assert asked(names, features, classes) == ""
    monkeypatch.setattr(question, "found", None)
    assert asked(names, features, classes) == ""


def test_names_with_counters_and_no_separator_have_stems_too():
    names = [f"board{board}x{number}" for board in range(9) for number in range(3)]
    ((groups, _, example, advice),) = found(dataset(), items_of(names, [0] * 27))
    assert example == "board0x…" and groups.tolist() == np.repeat(range(9), 3).tolist() and r"(.*\D)\d+$" in advice
    assert not list(found(dataset(), items_of(["a", "b", "c_1"], [0] * 3)))
