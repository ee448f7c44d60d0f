"""The parity report and its gate."""

import dataclasses
import functools
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

import jsonschema
from scipy.stats import binom

from edgecnn.bundle.file import read_bundle
from edgecnn.data import Split
from edgecnn.errors import EmulatorError, ParityError
from edgecnn.evaluate.answers import Answers
from edgecnn.evaluate.statistics import WORTH, paired_interval
from edgecnn.report.sections import comparisons_table, conversion_lines, flip_lines, gate_line, warning_lines
from edgecnn.tables import build, to_json
from edgecnn.verify.parity import Basis, compared, judged
from edgecnn.verify.parity_report import (
    BoardRow,
    Chance,
    Data,
    Gate,
    LabelledFlip,
    Report,
    chance_warning,
    require_boards,
    require_parity,
)

LABELS = ("ant", "bee", "cat")
N = 400


def answers(name, top, **fields):
    """Return answers with the top-1 classes `top`, as logits of 4 and 0."""
    values = np.zeros((len(top), len(LABELS)), np.float32)
    values[np.arange(len(top)), top] = 4
    return Answers(
        name=name, format="tflite", precision="int8", engine="", size_bytes=1, sha256="0" * 64, values=values, **fields
    )


def of_classes(classes):
    n = len(classes)
    return Split(images=np.zeros((n, 1, 1, 1), np.uint8), classes=classes, sources=tuple(f"{i}.png" for i in range(n)))


@pytest.fixture
def split():
    return of_classes(np.arange(N) % 3)


def with_lost(split, lost, gained=0):
    """Return a reference and a candidate that differ on `lost` + `gained` images."""
    reference, candidate = split.classes.copy(), split.classes.copy()
    candidate[:lost] = (candidate[:lost] + 1) % 3
    reference[lost : lost + gained] = (reference[lost : lost + gained] + 1) % 3
    return answers("float", reference), answers("int8", candidate)


def data_of(split):
    return Data(name="a", title="A", split="test", test_images=len(split.classes), test_sha256="0" * 64)


def report_of(*comparisons):
    """Return a report of comparisons, without a model."""
    return judged(
        "run",
        data_of(of_classes(np.zeros(1, np.int64))),
        Gate(),
        [],
        comparisons,
        Basis(of_classes(np.zeros(1, np.int64)), LABELS),
    )


def failed(split, gate, lost, gained=0):
    return compared("quantization", *with_lost(split, lost, gained), split, LABELS, gate).failed


def test_the_gate_uses_the_point_estimate_by_default(split):
    assert failed(split, Gate(max_drop=1.0), 4) == ()  # 1.00 points, the limit itself
    assert failed(split, Gate(max_drop=1.0), 5) == ("drop",)
    assert failed(split, Gate(max_drop=1.0, confident=True), 4) == ("drop_interval",)
    assert failed(split, Gate(max_drop=1.0, confident=True), 0) == ()
    assert failed(split, Gate(max_drop=1.0, confident=True), 9) == ("drop", "drop_interval")


@pytest.mark.parametrize(("n", "lost", "beyond"), [(20, 0, True), (400, 0, False), (400, 4, True)])
def test_the_verdict_states_which_drop_the_images_do_not_exclude(n, lost, beyond):
    split = of_classes(np.arange(n) % 3)
    report = report_of(compared("quantization", *with_lost(split, lost), split, LABELS, Gate()))
    (item,) = report.comparisons
    assert item.drop < item.drop_upper < item.drop_interval[1]
    text = f"These {n} images do not rule out a drop of up to {item.drop_upper:.2f} points (one-sided 95 % upper bound, int8)."
    assert text in gate_line(report) and report.passed
    assert ("more test images would narrow it" in gate_line(report)) == beyond


def test_agreement_sees_what_accuracies_hide(split):
    assert failed(split, Gate(), 10, 10) == ()
    assert failed(split, Gate(min_agreement=0.96), 10, 10) == ("agreement",)
    assert failed(split, Gate(min_agreement=0.95), 10, 10) == ()


def test_every_figure_is_in_the_comparison(split):
    item = compared("quantization", *with_lost(split, 6, 2), split, LABELS, Gate())
    assert (item.lost, item.gained, item.n) == (6, 2, N)
    assert item.drop == pytest.approx(1.0)
    assert item.drop_interval[0] < 1.0 < item.drop_interval[1]
    assert item.mcnemar_p == pytest.approx(2 * sum((1, 8, 28)) / 2**8)
    assert item.agreement == pytest.approx(1 - 8 / N)
    per_class = {one.label: one for one in item.per_class}
    assert sum(one.images for one in item.per_class) == N
    # images 0 to 5 are lost, two of each class; 6 (ant) and 7 (bee) are gained
    assert per_class["ant"].drop == pytest.approx(100 / per_class["ant"].images)
    assert per_class["cat"].drop == pytest.approx(200 / per_class["cat"].images)
    assert item.flips[0] == LabelledFlip(source="0.png", true="ant", reference="ant", candidate="bee")
    assert len(item.flips) == 8
    line, *_ = flip_lines(report_of(item))
    assert line.startswith("int8 changes 8 of 400 answers of float: 0.png (label ant): ant, now bee; ")
    assert item.largest_lsb is None


def test_lsb_use_the_candidates_grid(split):
    reference, candidate = with_lost(split, 0)
    codes = np.rint(candidate.values / 0.5).astype(np.int8) + 3
    codes[7, 1] += 2
    codes[9] += 4
    quantized = answers("int8", split.classes, codes=codes, scale=0.5, zero_point=3)
    item = compared("conversion", reference, quantized, split, LABELS, Gate())
    assert (item.largest_lsb, item.mean_lsb) == (4, pytest.approx((2 + 3 * 4) / (3 * N)))
    assert item.passed, "agreement is complete"
    item = compared("quantization", reference, quantized, split, LABELS, Gate())
    assert (item.largest_lsb, item.mean_lsb) == (2, pytest.approx(2 / (3 * N))), "softmax ignores a constant"


@pytest.mark.parametrize(
    ("kind", "gate", "limit"),
    [
        ("quantization", Gate(), "drop of at most 1.00 points"),
        ("models", Gate(max_drop=2.5, confident=True), "drop of at most 2.50 points with its whole 95 % interval"),
        ("program", Gate(min_agreement=0.985), "drop of at most 1.00 points, agreement of at least 98.50%"),
        ("conversion", Gate(max_drop=9), "at most 1 LSB, or no evidence of agreement below 98%"),
        ("seen", Gate(), "at most 1 LSB, or no evidence of agreement below 98%"),
        ("alternative", Gate(), "none, does not ship"),
    ],
)
def test_the_limit_in_words(split, kind, gate, limit):
    item = compared(kind, *with_lost(split, 0), split, LABELS, gate)
    assert (item.limit, item.passed) == (limit, True)


def test_a_conversion_has_its_own_limit(split):
    item = compared("conversion", *with_lost(split, 20), split, LABELS, Gate(max_drop=100.0))
    assert item.failed == ("agreement",) and not item.passed and not item.accepted


@pytest.mark.parametrize(("n", "allowed"), [(20, 2), (50, 3), (172, 7), (400, 13), (1000, 28), (10_000, 223)])
def test_a_conversion_fails_only_on_evidence_of_less_agreement_than_98_percent(n, allowed):
    """`allowed` of n answers may differ: if one answer in fifty differs, more would occur less than one time in twenty."""
    assert binom.sf(allowed, n, 0.02) < 0.05 <= binom.sf(allowed - 1, n, 0.02)
    split = of_classes(np.arange(n) % 3)
    for differ, failed in ((0, ()), (allowed, ()), (allowed + 1, ("agreement",))):
        item = compared("conversion", *with_lost(split, differ), split, LABELS, Gate())
        assert item.failed == failed, (differ, item.agreement_upper)


def test_two_of_172_images_are_not_evidence_but_a_users_own_limit_applies_directly():
    split = of_classes(np.arange(172) % 3)
    models = with_lost(split, 2)
    assert compared("conversion", *models, split, LABELS, Gate(min_agreement=0.99)).passed
    item = compared("quantization", *models, split, LABELS, Gate(max_drop=100, min_agreement=0.99))
    assert item.failed == ("agreement",)
    exact = compared("quantization", *models, split, LABELS, Gate(max_drop=100, min_agreement=170 / 172))
    assert exact.passed, "a share at the limit passes"


def test_the_advice_on_a_conversion_names_an_override_that_is_recorded(split):
    models = with_lost(split, 20)
    refused = compared("conversion", *models, split, LABELS, Gate())
    with pytest.raises(ParityError, match=r"95\.00% of 400 images \(at most 96\.\d\d% with 95 % confidence\)") as error:
        require_parity(report_of(refused))
    assert "--accept-conversion" in str(error.value)
    accepted = compared("conversion", *models, split, LABELS, Gate(accept_conversion=True))
    assert (accepted.passed, accepted.accepted, accepted.failed) == (True, True, ("agreement",))
    require_parity(report_of(accepted))
    assert "ACCEPTED by --accept-conversion" in conversion_lines(report_of(accepted))[0]
    (warning,) = warning_lines(report_of(accepted))
    assert "the conversion of int8 was accepted: it agrees on 95.00%" in warning
    good = compared("conversion", *with_lost(split, 0), split, LABELS, Gate(accept_conversion=True))
    assert good.passed and not good.accepted, "nothing had to be accepted"
    drop = compared("quantization", *models, split, LABELS, Gate(accept_conversion=True))
    assert not drop.passed, "only --max-drop accepts a drop"


@pytest.mark.parametrize(("off", "failed"), [(0, ()), (1, ()), (2, ("largest_lsb", "agreement"))])
def test_one_code_is_allowed_everywhere_and_two_are_not(off, failed):
    """Half of the answers differ, because two classes are almost equal: by nothing but the rounding, or by one code or two."""
    split = of_classes(np.zeros(N, np.int64))
    codes = np.tile(np.array([[10, 10, 0]], np.int8), (N, 1))
    values = np.tile(np.array([[10.0, 10.0, 0.0]], np.float32), (N, 1))
    if off:
        codes[: N // 2, 1] += off
    else:
        values[: N // 2, 1] += 0.25
    reference = replace(answers("fake", split.classes), values=values)
    candidate = replace(
        answers("int8", split.classes), values=codes.astype(np.float32), codes=codes, scale=1.0, zero_point=0
    )
    item = compared("conversion", reference, candidate, split, LABELS, Gate())
    assert (item.agreement, item.largest_lsb, item.failed) == (0.5, off, failed)
    if failed:
        with pytest.raises(ParityError, match=r"differs by 2 LSB and agrees on 50\.00% of 400 images \(at most 54\."):
            require_parity(report_of(item))


def test_confident_has_no_slack():
    """The limit is the interval's upper end, exact to the last bit."""
    split = of_classes(np.arange(N) % 3)
    models = with_lost(split, 3, 1)
    high = paired_interval(3, 1, N).high
    assert high > 100 * 2 / N
    at, below = Gate(max_drop=high, confident=True), Gate(max_drop=np.nextafter(high, 0), confident=True)
    assert compared("quantization", *models, split, LABELS, at).failed == ()
    assert compared("quantization", *models, split, LABELS, below).failed == ("drop_interval",)


def at_chance(classes, right, worth=1.0, **gate):
    """A report on two models that classify the first `right` images of these classes correctly."""
    split = of_classes(classes)
    top = split.classes.copy()
    top[right:] = (top[right:] + 1) % 3
    models = answers("float", top), answers("int8", top)
    models = [replace(model, ms_per_image=1.0) for model in models]
    item = compared("quantization", *models, split, LABELS, Gate(**gate))
    return judged("run", data_of(split), Gate(**gate), models, [item], Basis(split, LABELS, worth=worth))


def test_a_model_at_chance_level_gets_a_warning():
    two = np.array([0, 1] * 45 + [1] * 10)
    report = at_chance(two, 60)  # 60 of 100 correct, 50 to 69; always answering 1 would get 55
    assert report.chance == Chance(label="bee", accuracy=0.55, balanced=None, not_better=("float", "int8"))
    assert report.passed, "the gate requires only parity"
    require_parity(report)
    (warning,) = warning_lines(report)
    assert warning.startswith("WARNING: not shown to be better than chance: float 60.00% (50% to 69%)")
    assert "Always answering 'bee' is right for 55.00% of these 100 images" in warning
    assert comparisons_table(report).rows[0][-1].startswith("AT CHANCE LEVEL: ")
    strict = at_chance(two, 60, confident=True, max_drop=5.0)
    assert not strict.passed
    with pytest.raises(ParityError, match="not shown to be better than chance"):
        require_parity(strict)


def test_chance_is_judged_by_the_interval_that_the_report_shows():
    """28 of 60 right, chance 33 %: Wilson's interval is above it, and that of folds, where an answer counts as less than half, is not."""
    even = np.arange(60) % 3
    for worth, low, below in ((1.0, 0.346, ()), (WORTH, 0.295, ("float", "int8"))):
        report = at_chance(even, 28, worth, confident=True, max_drop=9.0)
        assert report.models[0].accuracy_interval[0] == pytest.approx(low, abs=5e-4)
        assert report.chance.not_better == below and report.passed == (not below)


def test_a_model_above_chance_raises_no_alarm():
    two = np.array([0, 1] * 45 + [1] * 10)
    report = at_chance(two, 80, confident=True, max_drop=5.0)
    assert report.chance.not_better == () and report.passed
    assert warning_lines(report) == []
    assert comparisons_table(report).rows[0][-1].startswith("passed: ")
    require_parity(report)


def test_chance_is_the_share_of_the_most_frequent_class():
    mostly = np.array([0] * 90 + [1] * 10)
    assert at_chance(mostly, 90).chance.not_better == ("float", "int8"), "90 % is chance if 90 % belong to one class"


@pytest.mark.parametrize(
    "gate, lost, words",
    [
        (Gate(), 8, "it drops 2.00 points"),
        (Gate(confident=True), 3, "it may drop by as much as 2"),
        (Gate(max_drop=50, min_agreement=0.99), 8, r"it agrees on 98\.00% \(limit"),
    ],
)
def test_the_message_names_the_figure_that_failed(split, gate, lost, words):
    item = compared("quantization", *with_lost(split, lost), split, LABELS, gate)
    with pytest.raises(ParityError, match=words) as error:
        require_parity(report_of(item))
    assert "1 of 1 comparisons failed" in str(error.value)


def test_the_first_failure_is_named_and_all_are_counted(split):
    good, worse, worst = (
        replace(compared("quantization", *with_lost(split, lost), split, LABELS, Gate()), candidate=f"lost {lost}")
        for lost in (0, 8, 9)
    )
    with pytest.raises(ParityError, match=r"^lost 8 .*\b2\b.*\b3\b.* Train longer"):
        require_parity(report_of(good, worse, worst))
    alternative = compared("alternative", *with_lost(split, 200), split, LABELS, Gate())
    assert alternative.passed, "it does not ship"
    line = gate_line(report_of(good, worst, worse, alternative))
    assert f" {worst.drop_upper:.2f} points" in line and "lost 9" in line


@pytest.mark.parametrize(("names", "more"), [("f", 0), ("fi", 0), ("fia", 1), ("fiabc", 3)])
def test_models_at_chance_level_are_counted(names, more):
    report = at_chance(np.array([0, 1] * 45 + [1] * 10), 60)
    named = tuple({"f": "float", "i": "int8"}.get(name, name) for name in names)
    report = replace(report, chance=replace(report.chance, not_better=named))
    warning = chance_warning(report)
    figures = ", ".join(f"{name} 60.00% (50% to 69%)" for name in named[:2])
    assert f": {figures} and {more} more. " in warning if more else f": {figures}. " in warning
    assert chance_warning(replace(report, chance=replace(report.chance, not_better=()))) is None


def board(target, **changes):
    row = {
        "target": target, "cpu": "cortex-a53", "release": "trixie", "engine": "litert 2.1.0", "model": "int8.tflite",
        "against": "litert 2.1.0 on x86-64", "selftest": True, "images": 100, "split": "test", "accuracy": 0.9,
        "accuracy_here": 0.9, "agreement": 1.0, "rows_that_differ": 0, "largest_difference": 0.0, "unit": "LSB",
        "limit": 1.0, "error": None, "versions": {}, "qemu": "10", "failed": (), "passed": True,
    }  # fmt: skip
    return BoardRow(**row | changes)


def test_boards_that_fail_are_named_and_counted():
    good, crashed = board("pi-zero"), board("pi-1", error="illegal instruction", passed=False)
    apart = board("pi-3", failed=("largest_difference",), largest_difference=3.0, passed=False)
    broken = board("pi-4", selftest_error="1 code", failed=("selftest",), passed=False)
    require_boards([])
    require_boards([good, good])
    with pytest.raises(
        EmulatorError, match=r"^litert 2\.1\.0 on pi-1: illegal instruction \(2 of 3 failed\)\. This build"
    ):
        require_boards([apart, good, crashed])
    with pytest.raises(EmulatorError, match=r"pi-1: illegal instruction\. "):
        require_boards([crashed])
    with pytest.raises(
        ParityError, match=r"^litert 2\.1\.0 on pi-3 \(cortex-a53\): its answers differ from litert 2\.1\.0 on"
    ):
        require_boards([good, apart, broken])
    with pytest.raises(ParityError, match=r"here by 3 LSB \(1 allowed\)\. Try"):
        require_boards([apart])
    with pytest.raises(ParityError, match=r"pi-4 .*: the self-test failed: 1 code \(2 of 2 failed\)"):
        require_boards([broken, apart])
    report = report_of()
    require_parity(replace(report, boards=(good,)))
    with pytest.raises(EmulatorError):
        require_parity(replace(report, boards=(crashed,)))


@functools.cache
def shipped(root):
    paths = sorted(root.glob("models/*/*.edgecnn"))
    assert paths
    return {path.stem: json.loads(read_bundle(path).files["parity.json"]) for path in paths}


@pytest.mark.parametrize("name", ["result", "explanation", "parity", "stress", "report", "inspection", "against"])
def test_every_schema_is_valid(schema_of, name):
    jsonschema.Draft202012Validator.check_schema(schema_of(name))


def test_reports_in_bundles_are_read_and_written_again(root, schema_of):
    validator = jsonschema.Draft202012Validator(schema_of("parity"))
    for name, written in shipped(root).items():
        validator.validate(written)
        assert to_json(build(Report, written, ValueError)) == written, name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"passed": 1}, "passed"),
        ({"extra": 1}, "extra"),
        ({"models": [{}]}, r"models\[0\]\.name"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy"),
        ({"schema": "edgecnn.parity/2"}, "edgecnn.parity/1"),
        ({"max_drop": True}, "max_drop"),
    ],
)
def test_a_deviation_from_the_form_is_named(root, change, named):
    written = shipped(root)["digits"]
    with pytest.raises(ValueError, match=named):
        build(Report, written | change, ValueError)
    with pytest.raises(ValueError, match="passed"):
        build(Report, {key: value for key, value in written.items() if key != "passed"}, ValueError)


def test_a_missing_key_is_read_as_its_default(root):
    report = build(Report, shipped(root)["digits"], ValueError)
    assert "input_ranges" not in to_json(report) and "images" not in to_json(report)["data"]
    assert "images" in to_json(dataclasses.replace(report.data, images=5))
