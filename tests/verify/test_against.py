"""The gate of old against new: what it refuses, what it passes, and how many photos it needs."""

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from edgecnn.errors import NotShownError, WorseError
from edgecnn.evaluate.statistics import images_to_clear, images_to_refuse, mean_interval, paired_interval
from edgecnn.verify.against import Against, Model, Part, against_lines, judge, part, require_no_harm
from edgecnn.verify.parity_report import ClassDrop


@pytest.mark.parametrize(
    ("lost", "gained", "n", "verdict"),
    [
        (20, 20, 2_000, "passed"),
        (20, 60, 2_000, "passed"),
        (52, 20, 2_000, "refused"),  # 1.6 points
        (29, 10, 2_000, "refused"),  # 0.95 points, which is not chance
        (5, 5, 300, "not shown"),
        (0, 0, 100, "not shown"),
        (0, 0, 0, "not shown"),
        (120, 6, 300, "refused"),  # few photos, but enough proof
    ],
)
def test_a_strict_verdict_follows_the_estimate_the_interval_and_the_number_of_photos(lost, gained, n, verdict):
    made = judge(lost, gained, n, "strict")
    assert made.verdict == verdict
    assert (made.needed > n) == (verdict == "not shown") or verdict == "refused"


@pytest.mark.parametrize(
    ("lost", "gained", "n", "verdict"),
    [
        (0, 0, 15, "passed"),
        (1, 0, 15, "passed"),  # 6.67 points, but one photo
        (2, 1, 15, "passed"),
        (2, 0, 15, "refused"),
        (4, 2, 48, "refused"),  # two photos net, 4.2 points
        (3, 1, 133, "refused"),  # 1.504 points
        (3, 1, 134, "passed"),  # 1.49 points
        (30, 27, 200, "passed"),  # 1.5 points exactly
        (31, 27, 200, "refused"),
        (20, 20, 2_000, "passed"),
        (29, 10, 2_000, "refused"),  # 0.95 points, which is not chance
        (25, 12, 2_000, "refused"),  # 0.65 points, just not chance
        (25, 13, 2_000, "passed"),
        (2, 9, 15, "passed"),
        (0, 0, 0, "not shown"),
    ],
)
def test_usually_a_model_passes_unless_it_loses_more_than_a_photo_and_the_margin_or_is_shown_to_be_worse(
    lost, gained, n, verdict
):
    made = judge(lost, gained, n)
    assert made.verdict == verdict
    if verdict == "passed":
        high = paired_interval(lost, gained, n).high
        assert ("do not exclude" in made.why) == (high > 1.5)
        assert high <= 1.5 or f"do not exclude a drop of {high:.1f} points" in made.why


@pytest.mark.parametrize(
    ("by_class", "plain", "balanced"),
    [
        ([(0, 8, 300), (4, 0, 12)], "passed", "refused"),
        ([(9, 0, 300), (0, 0, 12)], "refused", "passed"),
        ([(0, 8, 300), (1, 0, 12)], "passed", "passed"),
        ([(5, 9, 300), (1, 0, 12), (1, 0, 12)], "passed", "refused"),
        ([(0, 0, 300), (3, 3, 12), (0, 0, 0)], "passed", "passed"),
    ],
)
def test_if_every_class_counts_the_same_a_rare_class_is_not_outweighed_by_a_common_one(by_class, plain, balanced):
    lost, gained, n = np.sum(by_class, axis=0).tolist()
    assert judge(lost, gained, n).verdict == plain
    made = judge(lost, gained, n, by_class=by_class)
    assert made.verdict == balanced and made.why.startswith("its balanced accuracy ")
    drop = np.mean([100 * (one - other) / count for one, other, count in by_class if count])
    assert f"{abs(drop):.2f} points (" in made.why


def test_classes_with_equal_counts_give_about_the_interval_of_all_photos():
    whole = mean_interval([1.0, 1.0], [paired_interval(20, 10, 1_000)] * 2)
    assert np.allclose(whole, paired_interval(40, 20, 2_000), atol=0.05)
    assert np.allclose(mean_interval([1.0], [paired_interval(20, 10, 1_000)]), paired_interval(20, 10, 1_000))


def test_usually_folds_need_a_larger_excess_to_show_a_worse_model_but_the_same_net_photos():
    assert [judge(40, 20, 4_000, "usual", worth).verdict for worth in (1.0, 0.5)] == ["refused", "passed"]
    assert [judge(2, 0, 15, "usual", worth).verdict for worth in (1.0, 0.5)] == ["refused", "refused"]


def test_answers_from_folds_count_half():
    """Twice as many photos are needed, and the interval is wider: 60 lost and 38 gained in 5,000 may then be chance."""
    assert judge(20, 20, 1_200, "strict").verdict == "passed"
    half = judge(20, 20, 1_200, "strict", worth=0.5)
    assert half.verdict == "not shown" and half.needed >= 2 * judge(20, 20, 1_200, "strict").needed
    assert [judge(60, 38, 5_000, "strict", worth).verdict for worth in (1.0, 0.5)] == ["refused", "passed"]


def test_confident_requires_an_interval_below_the_margin():
    assert judge(20, 20, 2_000, "confident").verdict == "passed"
    doubtful = judge(40, 25, 2_000, "confident")
    assert doubtful.verdict == "not shown" and doubtful.needed > 2_000
    assert judge(40, 25, 2_000, "strict").verdict == "passed"


@pytest.mark.parametrize("rate", [0.02, pytest.param(0.05, marks=pytest.mark.slow), 0.10])
def test_with_the_stated_number_of_photos_a_worse_model_is_refused_and_an_equal_one_is_not(rate):
    """1,000 of the draws of which tools/bench/gate_draws.py makes 4,000."""
    random, share = np.random.default_rng(7), {}
    for worse in (0.0, 0.03):
        shares = [rate / 2 + worse, rate / 2, 1 - rate - worse]
        found = []
        for counts in random.multinomial(300, shares, 1_000):
            made = judge(*counts.tolist()[:2], 300, "strict")
            if made.verdict == "not shown":
                counts = counts + random.multinomial(made.needed - 300, shares)
                made = judge(*counts.tolist()[:2], made.needed, "strict")
            found.append(made.verdict)
        share[worse] = found.count("refused") / len(found)
    assert share[0.03] >= 0.95 and share[0.0] <= 0.10


def test_the_photos_needed_follow_the_formula_with_the_drawn_share():
    n = images_to_refuse(0.05, 3.0, 1.5)
    drops = np.random.default_rng(3).multinomial(n, [0.055, 0.025, 0.92], 20_000) @ [1, -1, 0] * 100 / n
    assert np.mean(drops > 1.5) == pytest.approx(0.95, abs=0.01)
    n = images_to_clear(0.05, 1.5)
    drops = np.random.default_rng(3).multinomial(n, [0.025, 0.025, 0.95], 20_000) @ [1, -1, 0] * 100 / n
    assert np.mean(drops + 1.96 * 100 * np.sqrt(0.05 / n) < 1.5) == pytest.approx(0.95, abs=0.01)


def test_a_drop_at_the_margin_and_a_number_that_is_just_enough_pass():
    assert [judge(lost, 120, 2_000, "strict").verdict for lost in (150, 151)] == ["passed", "refused"], (
        "1.5 points, and more"
    )
    enough = judge(0, 0, 10_000, "strict").needed
    assert [judge(0, 0, n, "strict").verdict for n in (enough, enough - 1)] == ["passed", "not shown"]
    assert [judge(6, 0, n, "strict").verdict for n in (enough, enough - 1)] == ["refused", "not shown"]


DROPS = (("cat", 0.0), ("dog", 2.5), ("elk", None), ("fox", 40.0), ("gnu", -10.0), ("hen", 7.25), ("owl", 1.0))

MODEL = Model(name="door", serial=3, sha256="abcdef012345" + "9" * 52, model_sha256="b" * 64, taught_by="list")

WHOLE = Part(
    photos="all", reference="door", candidate="gate", n=1300, accuracy_reference=0.925, accuracy_candidate=0.875, drop=5.0,
    drop_interval=(2.25, 7.75), drop_upper=7.0, lost=1090, gained=25, agreement=0.9, mcnemar_p=0.0312,
    per_class=tuple(ClassDrop(label=label, images=1200 + n, drop=drop) for n, (label, drop) in enumerate(DROPS)),
)  # fmt: skip

AGAINST = Against(
    verdict="refused", why="it is", needed=500, old=MODEL, new=replace(MODEL, name="gate", serial=0, sha256=None), rule="usual", earlier=(),
    margin=1.5,
    balanced=False, parts=(WHOLE, replace(WHOLE, photos="new", n=41, drop=-2.5, drop_interval=(-9.5, 4.25), lost=1, gained=2)),
    added=("lynx", "newt"), gone=("cow",), renamed={}, not_counted={"were trained on": 2100}, unknown=("who knows?",), flips=(), looks=1,
)  # fmt: skip


def test_old_against_new_in_words_gives_the_old_accuracy_first_and_the_worst_classes():
    verdict, new, whole, added, gone, hint, not_counted, unknown = against_lines(AGAINST)
    assert verdict == "gate against door serial 3 abcdef012345: REFUSED: it is"
    assert re.findall(r"-?\d[\d.,]*\d%?|\d", new) == ["92.50%", "87.50%", "41", "2.50", "-9.50", "4.25", "1", "2"]
    assert "gains 2.50" in new and "1 lost, 2 gained" in new
    assert whole.startswith("all photos: 92.50%, now 87.50%; 1,090 lost, 25 gained; McNemar's p 0.0312")
    worst = re.findall(r"(\w+) ([\d.]+) points of ([\d,]+\d)", whole)
    assert worst == [("fox", "40.0", "1,203"), ("hen", "7.2", "1,205"), ("dog", "2.5", "1,201")]
    assert added.endswith(": lynx, newt") and gone.endswith(": cow") and "'cow=lynx'" in hint
    assert "2,100" in not_counted and unknown == "who knows?"


def test_a_comparison_without_photos_has_no_figures_and_repeated_looks_are_counted():
    bare = replace(AGAINST, verdict="passed", parts=(), added=(), gone=(), not_counted={}, unknown=())
    (line,) = against_lines(bare)
    assert ": passed: " in line
    assert re.findall(r"\d+", against_lines(replace(bare, looks=2))[1]) == ["2"]
    kept = replace(
        WHOLE, per_class=(ClassDrop(label="cat", images=7, drop=0.0), ClassDrop(label="dog", images=3, drop=-5.0))
    )
    assert "cat" not in against_lines(replace(bare, parts=(kept,)))[1], "no class lost anything"


@pytest.mark.parametrize(
    ("verdict", "error"), [("refused", WorseError), ("not shown", NotShownError), ("passed", None)]
)
def test_only_a_model_that_passed_may_be_put_in_use_without_accept(verdict, error):
    made = replace(AGAINST, verdict=verdict)
    with pytest.raises(error) if error else nullcontext():
        require_no_harm(made, "gate.edgecnn")


def test_a_part_counts_its_classes_and_widens_its_interval_for_answers_of_folds():
    true = np.array([0] * 7 + [1] * 4 + [3] * 2)
    one, other = true.copy(), true.copy()
    one[0], other[[7, 8, 12]] = 1, 0
    made, half = (
        part("old", ("door", "gate"), (one, other, true), ("cat", "dog", "elk", "fox"), worth) for worth in (1.0, 0.5)
    )
    assert (made.photos, made.reference, made.candidate, made.lost, made.gained, made.n) == (
        "old",
        "door",
        "gate",
        3,
        1,
        13,
    )
    classes = [(item.label, item.images, round(item.drop, 2)) for item in made.per_class]
    assert classes == [("cat", 7, -14.29), ("dog", 4, 50.0), ("fox", 2, 50.0)], "elk has no photos"
    assert made.mcnemar_p == half.mcnemar_p == pytest.approx(0.625) and half.drop == made.drop
    assert (
        half.drop_interval[0]
        < made.drop_interval[0]
        < made.drop
        < made.drop_upper
        < made.drop_interval[1]
        < half.drop_interval[1]
    )
