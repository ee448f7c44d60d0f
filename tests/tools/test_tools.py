import importlib
import json
import runpy
import sys

import pytest
from PIL import Image


def load_bench(root, monkeypatch, name, folder="bench"):
    """Import a bench the way benches import each other."""
    monkeypatch.syspath_prepend(root / "tools" / folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def readme(root, monkeypatch):
    """tools/readme.py."""
    monkeypatch.syspath_prepend(root / "tools")
    return importlib.import_module("readme")


def test_the_generated_tables_match_the_benches_and_the_bundles(readme):
    for page in readme.PAGES:
        assert page.read_text() == readme.generated(page), f"{page.name}: python tools/readme.py"


def test_write_images(root, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, of the train extra")
    monkeypatch.setattr(sys, "argv", ["write_images.py", "--data", "digits", "--out", str(tmp_path), "--count", "3"])
    runpy.run_path(root / "tools" / "write_images.py", run_name="__main__")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and all(name[3].isdigit() for name in names)
    with Image.open(tmp_path / names[0]) as image:
        assert image.size == (8, 8) and image.mode == "L"


def test_an_interrupted_bench_resumes_unless_something_else_is_measured(root, tmp_path, monkeypatch):
    harness = load_bench(root, monkeypatch, "harness")
    path, axes = tmp_path / "some.json", {"seed": [1, 2], "network": ["a", "b"]}
    first = harness.Results(path, harness.about("some", n=3))
    cases = list(first.missing(**axes))
    assert cases[:2] == [{"seed": 1, "network": "a"}, {"seed": 1, "network": "b"}]
    first.add(**cases[0], right=7)
    again = harness.Results(path, harness.about("some", n=3))
    assert list(again.missing(**axes)) == cases[1:] and again.rows[0]["right"] == 7
    assert not harness.Results(path, harness.about("some", n=4)).rows


def test_photos_are_divided_into_folds_or_a_number_per_class(root, monkeypatch):
    bench = load_bench(root, monkeypatch, "photos_by_fold")
    photos = [bench.Photo(f"{label}/{index}.jpg", label, "") for label in "ab" for index in range(10)]
    folds = [bench.divided(photos, 0, fold, 1) for fold in range(bench.FOLDS)]
    tested = [name for splits in folds for name, split in splits.items() if split == "test"]
    assert sorted(tested) == sorted(photo.name for photo in photos), "each photo is tested once"
    few = bench.divided(photos, 3, 0, 1)
    assert [list(few.values()).count(split) for split in ("train", "test")] == [6, 14]
    own = [*photos, bench.Photo("test/a/x.jpg", "a", "test"), bench.Photo("test/b/x.jpg", "b", "test")]
    splits = bench.divided(own, 3, 0, 1)
    assert [list(splits.values()).count(split) for split in ("train", "test")] == [6, 2], (
        "an archive's own test split is used as a whole"
    )


def test_speed_of_another_bundle_is_refused(readme, tmp_path, monkeypatch):
    report = json.loads(readme.SPEED.read_text())
    assert "| litert " in readme.speed_table()
    report["bundle"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(report))
    monkeypatch.setattr(readme, "SPEED", tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"python tools/bench/benchmark\.py"):
        readme.speed_table()


def test_a_mutant_runs_the_tests_of_its_modules_name_and_then_those_of_its_room(root, monkeypatch):
    mutants, tests = load_bench(root, monkeypatch, "mutants", "faults"), root / "tests"
    rooms = mutants.modules(root)
    assert {".", "runtime", "device/slots", "recipe"} <= rooms.keys() and not rooms.keys() & {
        "cli",
        "train",
        "networks",
    }
    assert "edgecnn/verify/gate.py" in rooms["verify"] and "edgecnn/verify/layers.py" not in rooms["verify"]

    def run(file):
        return mutants.nearby(file, root)

    def files(folder):
        return sorted(map(str, folder.glob("test_*.py")))

    named = str(tests / "runtime" / "test_decision.py")
    assert run("edgecnn/runtime/decision.py") == [[named], [one for one in files(tests / "runtime") if one != named]]
    assert run("edgecnn/device/slots/disk.py") == [files(tests / "device" / "slots")]
    assert run("edgecnn/device/__init__.py") == [files(tests / "device")], "not those of all rooms inside"
    assert run("edgecnn/recipe/read.py") == [[str(tests / "test_recipe.py")]]
    assert run("edgecnn/pixels.py") == [files(tests)]
