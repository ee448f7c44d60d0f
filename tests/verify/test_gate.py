import numpy as np
import pytest

from edgecnn.data import Split
from edgecnn.errors import ParityError
from edgecnn.report.table import flip_lines
from edgecnn.verify.answers import Answers
from edgecnn.verify.gate import Gate, require_parity
from edgecnn.verify.parity import compared

LABELS = ("ant", "bee", "cat")
N = 400


def answers(name, top, **fields):
    """Return answers whose top-1 classes are `top`, as logits of 4 and 0."""
    values = np.zeros((len(top), len(LABELS)), np.float32)
    values[np.arange(len(top)), top] = 4
    return Answers(
        name=name, format="tflite", precision="int8", engine="", size_bytes=1, sha256="0" * 64, values=values, **fields
    )


@pytest.fixture
def split():
    classes = np.arange(N) % 3
    return Split(images=np.zeros((N, 1, 1, 1), np.uint8), classes=classes, sources=tuple(f"{i}.png" for i in range(N)))


def with_lost(split, lost, gained=0):
    """Return a reference and a candidate that differ on `lost` + `gained` images."""
    reference, candidate = split.classes.copy(), split.classes.copy()
    candidate[:lost] = (candidate[:lost] + 1) % 3
    reference[lost : lost + gained] = (reference[lost : lost + gained] + 1) % 3
    return answers("float", reference), answers("int8", candidate)


def failed(split, gate, lost, gained=0):
    return compared("quantization", *with_lost(split, lost, gained), split, LABELS, gate)["failed"]


def test_the_gate_is_on_the_point_estimate_unless_asked(split):
    assert failed(split, Gate(max_drop=1.0), 4) == []  # 1.00 points, the limit itself
    assert failed(split, Gate(max_drop=1.0), 5) == ["drop"]
    assert failed(split, Gate(max_drop=1.0, confident=True), 4) == ["drop_interval"]
    assert failed(split, Gate(max_drop=1.0, confident=True), 0) == []
    assert failed(split, Gate(max_drop=1.0, confident=True), 9) == ["drop", "drop_interval"]


def test_agreement_sees_what_accuracies_hide(split):
    assert failed(split, Gate(), 10, 10) == []
    assert failed(split, Gate(min_agreement=0.96), 10, 10) == ["agreement"]
    assert failed(split, Gate(min_agreement=0.95), 10, 10) == []


def test_every_figure_stands_in_the_comparison(split):
    item = compared("quantization", *with_lost(split, 6, 2), split, LABELS, Gate())
    assert (item["lost"], item["gained"], item["n"]) == (6, 2, N)
    assert item["drop"] == pytest.approx(1.0)
    assert item["drop_interval"][0] < 1.0 < item["drop_interval"][1]
    assert item["mcnemar_p"] == pytest.approx(2 * sum((1, 8, 28)) / 2**8)
    assert item["agreement"] == pytest.approx(1 - 8 / N)
    per_class = {one["label"]: one for one in item["per_class"]}
    assert sum(one["images"] for one in item["per_class"]) == N
    # images 0 to 5 are lost, two of each class; 6 (ant) and 7 (bee) are gained
    assert per_class["ant"]["drop"] == pytest.approx(100 / per_class["ant"]["images"])
    assert per_class["cat"]["drop"] == pytest.approx(200 / per_class["cat"]["images"])
    assert item["flips"][0] == {"source": "0.png", "true": "ant", "reference": "ant", "candidate": "bee"}
    assert len(item["flips"]) == 8
    line, *_ = flip_lines({"comparisons": [item]})
    assert "0.png (label ant): ant, now bee" in line
    assert item["largest_lsb"] is None


def test_lsb_are_on_the_candidates_grid(split):
    reference, candidate = with_lost(split, 0)
    codes = np.rint(candidate.values / 0.5).astype(np.int8) + 3
    codes[7, 1] += 2
    quantized = answers("int8", split.classes, codes=codes, scale=0.5, zero_point=3)
    item = compared("conversion", reference, quantized, split, LABELS, Gate())
    assert item["largest_lsb"] == 2
    assert item["mean_lsb"] == pytest.approx(2 / (3 * N))
    assert item["passed"], "agreement is whole"


def test_a_conversion_has_its_own_limit(split):
    item = compared("conversion", *with_lost(split, 5), split, LABELS, Gate(max_drop=100.0))
    assert item["failed"] == ["agreement"]


@pytest.mark.parametrize(
    "gate, lost, words",
    [
        (Gate(), 8, "it drops 2.00 points"),
        (Gate(confident=True), 3, "it may drop by as much as 2"),
        (Gate(max_drop=50, min_agreement=0.99), 8, "it agrees on 98.00%"),
    ],
)
def test_the_message_names_the_figure_that_failed(split, gate, lost, words):
    item = compared("quantization", *with_lost(split, lost), split, LABELS, gate)
    with pytest.raises(ParityError, match=words) as error:
        require_parity({"comparisons": [item]})
    assert "1 of 1 comparisons failed" in str(error.value)
