"""Run folders that were never trained: their figures come from random logits, through the code that verifies a real run."""

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from edgecnn.data import Split

pytest.importorskip("matplotlib", reason="the workstation side needs the train extra")

from edgecnn.evaluate.answers import Answers
from edgecnn.evaluate.statistics import found_by_class
from edgecnn.files import canonical_json, write_atomic
from edgecnn.recipe import build_recipe
from edgecnn.run_info import DataInfo, InputSize, RunInfo
from edgecnn.runs import HISTORY, LAYERS, PARITY, Run, create_run
from edgecnn.tables import to_json
from edgecnn.verify.layers import LayerError, LayerErrors
from edgecnn.verify.parity import Basis, compared, judged, run_comparisons
from edgecnn.verify.parity_report import Data, Gate
from edgecnn.verify.predictions import write_predictions

HISTORY_LINES = """\
phase,epoch,loss,accuracy,validation_accuracy,learning_rate,images_per_s,seconds,int8_accuracy,int8_agreement
float,1,2.009522,0.289,0.423676,0.0005,413.5,114.5,,
float,2,1.675620,0.461,0.498442,0.0010,372.6,127.0,,
qat,1,7.205900,0.839,0.801000,0.0100,122.0,78.0,0.8006,0.9910
"""


@pytest.fixture
def drawn_run(tmp_path):
    """Make a run of n test images whose int8 model's logits are the float ones with noise."""

    numbers = itertools.count()

    def make(
        labels=("cat", "dog", "fox"),
        n=400,
        sources=None,
        verified=True,
        name="drawn",
        noise=0.3,
        title="Drawn images",
        size=(8, 8),
    ) -> Run:
        random = np.random.default_rng(len(labels) + n)
        classes = random.integers(0, len(labels), n)
        logits = random.normal(0, 1, (n, len(labels))).astype(np.float32)
        logits[np.arange(n), classes] += 2.5
        recipe = build_recipe({"data": {"source": "not-here"}, "name": name, "network": {"name": "article"}})
        run = create_run(recipe, tmp_path / "runs" / str(next(numbers)))
        hashes = dict.fromkeys(("train", "validation", "test"), "a" * 64)
        data = DataInfo(
            name="drawn", title=title, native_shape=(8, 8, 3), labels=tuple(labels), fingerprint="b" * 64,
            split_hashes=hashes, split_sizes=dict.fromkeys(hashes, n), used={"train": n, "validation": n}, duplicates=(), conflicts=(),
        )  # fmt: skip
        run.write_info(
            RunInfo(
                state="trained", data=data, input=InputSize(height=8, width=8, channels=3), parameters=1234, versions={}
            )
        )
        write_atomic(run.file(HISTORY), HISTORY_LINES)
        layer = LayerError(
            layer="conv2d", operator="CONV_2D", sqnr_db=33.1, saturated=0.001, channel_ratio=1.8, hint=""
        )
        write_atomic(run.file(LAYERS), canonical_json(to_json(LayerErrors(images=200, layers=(layer,), unmatched=()))))
        if not verified:
            return run
        common = {"format": "tflite", "engine": "drawn 1", "size_bytes": 1000, "sha256": "c" * 64, "ms_per_image": 0.5}
        noisy = logits + random.normal(0, noise, logits.shape).astype(np.float32)
        float_ = Answers(name="float", precision="float32", values=logits, **common)
        fake = Answers(name="fake-quantized", precision="fake-quantized", values=noisy, **common)
        int8 = Answers(name="tflite-int8", precision="int8", values=noisy, **common)
        sources = sources or [f"test/{labels[c]}/{index}.jpg" for index, c in enumerate(classes)]
        split = Split(images=np.zeros((n, *size, 3), np.uint8), classes=classes, sources=tuple(sources))
        gate = Gate(max_drop=100.0)
        hold = partial(compared, split=split, labels=labels, gate=gate)
        report = judged(
            run.name,
            Data(name="drawn", title=title, split="test", test_images=n, test_sha256="a" * 64),
            gate,
            (float_, fake, int8),
            run_comparisons(float_, [fake], [int8], [], hold),
            Basis(split, labels),
        )
        report = replace(report, found=found_by_class(noisy.argmax(axis=1), classes, labels))
        write_atomic(run.file(PARITY), canonical_json(to_json(report)))
        write_predictions(run, split, split.images.__getitem__, (float_, fake, int8), int8, (int8, 0.8))
        return run

    return make


@pytest.fixture
def figures_of():
    """Return the JSON next to a page, parsed."""
    return lambda page: json.loads(page.with_suffix(".json").read_text())


@pytest.fixture(scope="session")
def counted():
    """A report on 13 images whose answers can be counted by hand, and the classes: the true ones, the float model's and those of int8.

    Of 7 cats, 4 dogs and 2 foxes, the float model gets 6, 4 and 1 right, and int8 gets 6, 1 and 2 right.
    """
    labels = ("cat", "dog", "fox")
    true = np.array([0] * 7 + [1] * 4 + [2] * 2)
    one = np.array([0] * 6 + [2] + [1] * 4 + [2, 0])
    other = np.array([0] * 6 + [2] + [1, 0, 0, 2] + [2, 2])
    common = {"format": "tflite", "engine": "none 1", "size_bytes": 1000, "sha256": "c" * 64, "ms_per_image": 0.5}
    float_, int8 = (
        Answers(name=name, precision=precision, values=4 * np.eye(3, dtype=np.float32)[answers], **common)
        for name, precision, answers in (("float", "float32", one), ("tflite-int8", "int8", other))
    )
    images = np.zeros((13, 8, 8, 3), np.uint8)
    split = Split(images=images, classes=true, sources=tuple(f"{labels[c]}/{n}.jpg" for n, c in enumerate(true)))
    gate = Gate(max_drop=100.0)
    hold = partial(compared, split=split, labels=labels, gate=gate)
    data = Data(name="counted", title="Counted images", split="test", test_images=13, test_sha256="a" * 64)
    return judged(
        None, data, gate, (float_, int8), run_comparisons(float_, [], [int8], [], hold), Basis(split, labels)
    ), (true, one, other)  # fmt: skip
