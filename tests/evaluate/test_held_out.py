"""Answers to held-out images, and the record of images that taught a model: each value stays with its own photo."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgecnn.data.splits import FILE, Side, sides_text
from edgecnn.evaluate import answers
from edgecnn.evaluate.answers import (
    CHUNK,
    Answers,
    HeldOut,
    answers_csv,
    contract_of,
    in_chunks,
    joined,
    read_held_out,
    timed,
    write_held_out,
)
from edgecnn.recipe import build_recipe
from edgecnn.run_info import DataInfo, GroupInfo, InputSize, RunInfo
from edgecnn.runs import IMAGES, LEFT_OUT, Run, create_run


def held(hashes, classes, fold, float_, int8):
    eye = 2 * np.eye(3, dtype=np.float32)
    return HeldOut(
        hashes=np.array(hashes), sources=np.array([f"{one}.jpg" for one in hashes]), classes=np.array(classes),
        fold=np.full(len(hashes), fold), float=2 * eye[float_], int8=eye[int8], similarity=np.linspace(0.2, 0.4, len(hashes)),
    )  # fmt: skip


PARTS = (held(["c", "a"], [1, 2], 1, [2, 1], [0, 0]), held(["b"], [0], 2, [1], [2]))


def test_a_bundles_answers_are_sorted_by_hash_and_name_the_class_then_float_then_int8():
    rows = answers_csv(joined(PARTS), ("cat", "dog", "fox")).decode().splitlines()
    score = np.exp(2) / (np.exp(2) + 2)
    assert rows == [
        "sha256,class,fold,float,int8,score",
        f"a,fox,1,dog,cat,{score:.4f}",
        f"b,cat,2,dog,fox,{score:.4f}",
        f"c,dog,1,fox,cat,{score:.4f}",
    ]


def test_damaged_answers_of_folds_are_not_used(tmp_path):
    run, made = Run(tmp_path), joined(PARTS)
    assert read_held_out(run) is None
    write_held_out(run, made)
    assert read_held_out(run).sha256 == made.sha256 != joined(PARTS[:1]).sha256
    write_held_out(run, replace(made, fold=made.fold[:2]))
    assert read_held_out(run) is None, "one photo lacks its fold"


def recorded(folder):
    """Make a run folder that records no images."""
    run = create_run(build_recipe({"data": {"source": "not-here"}}), folder / "run")
    hashes = dict.fromkeys(("train", "validation", "test"), "a" * 64)
    data = DataInfo(
        name="d", title="D", native_shape=(8, 8, 3), labels=("cat", "dog"), fingerprint="b" * 64, split_hashes=hashes,
        split_sizes=dict.fromkeys(hashes, 9), used={"train": 9, "validation": 9}, duplicates=(), conflicts=(),
    )  # fmt: skip
    size = InputSize(height=8, width=8, channels=3)
    run.write_info(RunInfo(state="trained", data=data, input=size, parameters=1234, versions={}))
    return run


def test_the_images_that_taught_a_model_include_those_in_two_splits_and_mark_test_images_like_them(
    tmp_path, monkeypatch
):
    run = recorded(tmp_path)
    assert answers.taught_images(run) is None and answers.images_csv(run) is None, "a named dataset"
    rows = ("train,cat,aa,1", "test,cat,bb,2", "validation,cat,cc,3", "test,cat,aa,4", "test,dog,dd,5")
    run.file(IMAGES).write_text("\n".join(["split,class,sha256,file", *rows, ""]))
    known = {"aa": "train", "bb": "test", "cc": "validation", "dd": "test"}
    assert answers.taught_images(run) == known, "aa was trained on"
    run.file(LEFT_OUT).write_text("sha256,with\ndd,bb\naa,bb\n")
    assert answers.taught_images(run) == known | {"dd": answers.TIED}
    monkeypatch.setattr(answers, "MOST", 4)
    assert answers.images_csv(run).decode().splitlines() == [
        "sha256,split",
        "aa,train",
        "bb,test",
        "cc,validation",
        "dd,tied",
    ]
    info = run.info
    groups = GroupInfo(by="(.+)_", splits={"test": 2})
    run.write_info(replace(info, data=replace(info.data, groups=groups)))
    names = {"aa": "pile B", "bb": "pile A", "cc": "pile B", "dd": "pile C"}
    run.file(FILE).write_text(
        sides_text({64 * one[0]: Side(text, "train", "", "(.+)_") for one, text in names.items()})
    )
    monkeypatch.setattr(answers, "taught_images", lambda run: {64 * one[0]: split for one, split in known.items()})
    assert [line[62:] for line in answers.images_csv(run).decode().splitlines()[1:]] == [
        "aa,train,1", "bb,test,2", "cc,validation,1", "dd,test,3",
    ], "numbers, no names"  # fmt: skip
    monkeypatch.setattr(answers, "MOST", 3)
    assert answers.images_csv(run) is None


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_every_image_is_run_once_in_order_and_progress_ends_with_all(count):
    images, seen, progress = np.arange(count)[:, None], [], []
    outputs = in_chunks(
        lambda batch: seen.append(len(batch)) or 2 * batch, images, "m", lambda *done: progress.append(done)
    )
    assert np.array_equal(outputs, 2 * images) and sum(seen) == count and max(seen) <= CHUNK
    assert progress == [("m", min(end, count), count) for end in range(CHUNK, count + CHUNK, CHUNK)]


def test_only_models_without_a_time_are_timed(monkeypatch):
    common = {
        "format": "onnx",
        "precision": "float32",
        "engine": "none",
        "size_bytes": 1,
        "sha256": "",
        "values": np.zeros((1, 2)),
    }
    models = [
        Answers(name=name, ms_per_image=ms, call=len, **common) for name, ms in (("a", 0.0), ("b", None), ("c", 2.5))
    ]
    monkeypatch.setattr(
        "edgecnn.evaluate.answers.measure_interleaved",
        lambda calls, **options: {name: SimpleNamespace(p50_ms=7.12345, p90_ms=9.0) for name in calls},
    )
    assert [(item.name, item.ms_per_image) for item in timed(models, np.zeros(3))] == [
        ("a", 0.0),
        ("b", 7.1235),
        ("c", 2.5),
    ]


def test_an_input_that_is_not_square_keeps_its_sides():
    contract = contract_of(build_recipe({"data": {"source": "d"}}), (20, 48, 3))
    assert (contract.height, contract.width, contract.channels) == (20, 48, 3)
