"""Intervals and tests against scipy's, an independent likelihood, published tables and exact coverage."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from edgecnn.evaluate.statistics import (
    chance_level,
    clopper_pearson,
    compare,
    confidence_drift,
    folds_interval,
    grouped_interval,
    images_to_clear,
    images_to_refuse,
    lsb_difference,
    mcnemar_exact,
    mean_interval,
    paired_interval,
    per_class_drop,
    wilson,
)

CLASSES = np.array([0, 0, 0, 0, 1, 1])
REFERENCE = np.array([0, 0, 0, 1, 1, 0])
CANDIDATE = np.array([0, 1, 2, 0, 1, 2])


def test_lost_and_gained_images_are_counted_apart():
    with np.errstate(all="raise"):
        figures = compare(REFERENCE, CANDIDATE, CLASSES)
    assert (figures.lost, figures.gained, figures.agreement) == (2, 1, 2 / 6)
    assert figures.drop == pytest.approx(100 * (2 - 1) / len(CLASSES))


def test_a_classs_drop_is_over_its_images_and_none_without_images():
    assert per_class_drop(REFERENCE, CANDIDATE, CLASSES, 3) == [25.0, 0.0, None]


def test_class_drops_weighted_by_images_sum_to_the_drop():
    random = np.random.default_rng(0)
    classes = random.integers(0, 5, 300)
    reference, candidate = (random.integers(0, 5, 300) for _ in range(2))
    drops = per_class_drop(reference, candidate, classes, 5)
    assert np.dot(drops, np.bincount(classes)) / 300 == pytest.approx(compare(reference, candidate, classes).drop)
    figures = compare(reference, candidate, classes)
    assert figures.drop == pytest.approx(100 * (figures.lost - figures.gained) / 300)


def test_drift_follows_the_score_of_the_references_answer():
    reference = np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (100, 1))
    candidate = reference.copy()
    candidate[:10] = [0.2, 0.7, 0.1]  # flipped: the reference's class, not the candidate's, is followed
    assert confidence_drift(reference, candidate) == pytest.approx((0.05, 0.5))
    assert confidence_drift(reference, reference) == (0.0, 0.0)


def test_drift_follows_the_references_class_and_p95_is_its_95th_percentile():
    reference = np.tile(np.array([[0.7, 0.2, 0.1]]), (101, 1))
    candidate = reference.copy()
    candidate[:, 0] -= np.arange(101) / 200  # from the reference's class, to 0.2 in steps of 0.005
    candidate[:, 1] += np.arange(101) / 400  # half to each other class, so that the largest score changes by less
    candidate[:, 2] += np.arange(101) / 400
    assert confidence_drift(reference, candidate) == pytest.approx((0.25, 95 / 200))


def test_half_codes_are_rounded_to_even():
    """As in numpy and IEEE 754: 0.5 and 2.5 become 0 and 2 codes, 1.5 becomes 2."""
    logits = np.array([[0.25, 0.75, 1.25, -0.25, -0.75]], np.float32)
    assert lsb_difference(logits, np.array([[0, 2, 2, 0, -2]], np.int8), 0.5, 0) == (0.0, 0)


def test_saturated_codes_do_not_affect_the_constant_between_two_models():
    """Three of four codes are at the end of the range; the one inside it shows that all logits are 4 codes up."""
    codes = np.array([[127, 127, 127, 5]], np.int8)
    logits = np.array([[300.0, 250.0, 200.0, 9.0]]) * 0.5
    assert lsb_difference(logits, codes, 0.5, 0, up_to_constant=True) == (0.0, 0)
    other = np.array([[-128, -128, -128, 5]], np.int8)
    assert lsb_difference(-logits + 9.0, other, 0.5, 0, up_to_constant=True) == (0.0, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_the_lsb_difference_is_counted_on_the_codes_grid(dtype):
    limits = np.iinfo(dtype)
    zero_point = (limits.min + limits.max + 1) // 2
    codes = np.array([[limits.min, zero_point, limits.max], [zero_point, zero_point + 3, zero_point]], dtype)
    logits = ((codes.astype(np.float64) - zero_point) * 0.25).astype(np.float32)
    assert lsb_difference(logits, codes, 0.25, zero_point) == (0.0, 0)
    moved = logits.copy()
    moved[1, 0] += 0.5
    moved[1, 2] -= 0.25
    moved[0, 2] += 100  # saturated: the code can be no larger
    assert lsb_difference(moved, codes, 0.25, zero_point) == (pytest.approx(0.5), 2)


def test_the_lsb_difference_can_ignore_a_constant_per_image():
    codes = np.array([[10, 20, -30, 5], [127, 0, 3, -128], [127, -128, -128, -128]], np.int8)
    logits = codes * 0.5
    logits += np.array([[7.0], [-3.0], [0.0]])  # 14 codes up, 6 down, and no change
    assert lsb_difference(logits, codes, 0.5, 0)[1] == 14
    assert lsb_difference(logits, codes, 0.5, 0, up_to_constant=True) == (0.0, 0)
    logits[0, 3] += 1.5
    logits[1, 0] += 40  # beyond the end of the range, so there is nothing to compare
    assert lsb_difference(logits, codes, 0.5, 0, up_to_constant=True) == (3 / 12, 3)


def test_the_largest_difference_of_int8_codes_does_not_wrap_around():
    assert lsb_difference(np.array([[100.0]], np.float32), np.array([[-128]], np.int8), 0.5, 0)[1] == 255


def test_the_images_that_a_verdict_needs_are_those_of_the_normal_quantiles():
    """At the number returned, and not one image earlier, the limit is so many standard errors away."""
    one, two = norm.ppf(0.95), norm.ppf(0.975)
    for rate, worse, limit in ((0.05, 3.0, 1.5), (0.02, 2.5, 1.0)):
        error = 100 * np.sqrt(rate / images_to_clear(rate, limit))
        before = 100 * np.sqrt(rate / (images_to_clear(rate, limit) - 1))
        assert (one + two) * error <= limit < (one + two) * before
        n, d = images_to_refuse(rate, worse, limit), worse / 100
        spread = 100 * np.sqrt(rate + d - d**2)
        assert worse - one * spread / np.sqrt(n) >= limit > worse - one * spread / np.sqrt(n - 1)
    assert images_to_clear(0.0, 1.5) == 1


def test_an_answer_of_a_fold_counts_less_than_half():
    """Its limits are z standard errors of 45 images away, if there were 100."""
    low, high = folds_interval(90, 100)
    for end in (low, high):
        assert abs(0.9 - end) == pytest.approx(norm.ppf(0.975) * math.sqrt(end * (1 - end) / 45))
    assert low < 0.9 < high and folds_interval(100, 100).high == 1


def test_chance_is_the_share_of_the_most_frequent_class():
    assert chance_level(np.array([2, 0, 2, 1, 2])) == (2, 0.6)
    assert chance_level(np.array([1, 0])) == (0, 0.5)


def test_an_interval_is_of_95_percent_unless_it_says_otherwise():
    for one, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        assert one(9, 13) == pytest.approx(tuple(binomtest(9, 13).proportion_ci(0.95, method)))
    assert paired_interval(7, 3, 50) == paired_interval(7, 3, 50, 0.95) != paired_interval(7, 3, 50, 0.9)


@pytest.mark.parametrize(
    ("b", "c", "n", "expected"),
    [
        (1, 7, 21, (-51.7, -2.6)),  # Bentur et al. 2009 in Fagerland, Lydersen and Laake 2014
        (0, 0, 1, (-79.345, 79.345)),  # b = c = 0: z² / (n + z²)
        (0, 0, 10_000, (-0.0384, 0.0384)),
        (5, 0, 5, (13.1035, 100)),
        (0, 5, 5, (-100, -13.1035)),
    ],
)
def test_paired_interval_of_known_tables(b, c, n, expected):
    assert paired_interval(b, c, n) == pytest.approx(expected, abs=0.05 if n == 21 else 1e-3)


def test_clopper_pearson_without_an_error_is_the_rule_of_three():
    assert clopper_pearson(0, 1000, 0.95, "upper").high == pytest.approx(1 - 0.05 ** (1 / 1000))


def test_mcnemar_of_a_worse_candidate_is_small_on_one_side_only():
    assert mcnemar_exact(40, 10, "greater") < 1e-4
    assert mcnemar_exact(10, 40, "greater") > 1 - 1e-4
    assert mcnemar_exact(10, 40) == mcnemar_exact(40, 10)


def test_paired_interval_narrows_with_confidence_and_with_images():
    assert paired_interval(30, 20, 1000, 0.9).low > paired_interval(30, 20, 1000, 0.95).low
    assert paired_interval(30, 20, 1000).high > paired_interval(300, 200, 10_000).high


CONFIDENCES = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.9995])


@st.composite
def trials(draw):
    n = draw(st.integers(1, 20_000))
    return draw(st.integers(0, n)), n


@st.composite
def tables(draw, largest=20_000):
    n = draw(st.integers(1, largest))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@settings(deadline=None)
@given(trials(), CONFIDENCES)
@example((0, 1), 0.95)
@example((1, 1), 0.95)
@example((0, 10_000), 0.95)
@example((10_000, 10_000), 0.95)
def test_wilsons_limits_are_z_standard_errors_away(trial, confidence):
    """The definition: |successes / n - p| = z sqrt(p (1 - p) / n) at both limits, except for a limit at 0 or 1."""
    successes, n = trial
    z = norm.ppf((1 + confidence) / 2)
    low, high = wilson(*trial, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    for end, exact in ((low, 0 if successes == 0 else None), (high, 1 if successes == n else None)):
        if exact is not None:
            assert end == exact
        else:
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(trials(), CONFIDENCES)
@example((0, 1), 0.95)
@example((1, 1), 0.95)
@example((0, 10_000), 0.95)
@example((10_000, 10_000), 0.95)
def test_clopper_pearsons_limits_leave_the_required_tails(trial, confidence):
    """The definition: P(X >= successes | low) = P(X <= successes | high) = (1 - confidence) / 2; one-sided, high leaves the whole tail."""
    successes, n = trial
    low, high = clopper_pearson(*trial, confidence)
    assert low == 0 if successes == 0 else binom.sf(successes - 1, n, low) == pytest.approx((1 - confidence) / 2, 1e-6)
    assert high == 1 if successes == n else binom.cdf(successes, n, high) == pytest.approx((1 - confidence) / 2, 1e-6)
    low, high = clopper_pearson(*trial, confidence, "upper")
    assert low == 0
    assert high == 1 if successes == n else binom.cdf(successes, n, high) == pytest.approx(1 - confidence, 1e-6)


def in_whole_numbers(b, c, alternative):
    """McNemar's exact one-tailed p, rounded only at the end."""
    tail, sides = (c, 1) if alternative == "greater" else (min(b, c), 2)
    return float(Fraction(sides * sum(math.comb(b + c, k) for k in range(tail + 1)), 2 ** (b + c)))


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000))
@example(0, 0)
@example(0, 1)
@example(7, 7)
@example(5000, 0)
@example(10, 1065)
@example(1065, 10)
def test_mcnemar_equals_the_binomial_test(b, c):
    for alternative in ("two-sided", "greater"):
        expected = binomtest(b, b + c, 0.5, alternative=alternative).pvalue if b + c else 1.0
        expected = expected or in_whole_numbers(b, c, alternative)  # scipy gives 0 from about 4e-300 down
        assert mcnemar_exact(b, c, alternative) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def score(b: int, c: int, n: int, d: float) -> float:
    """Tango's statistic from its definition: the likelihood under p12 - p21 = d is maximised numerically."""
    same = n - b - c

    def loss(q):
        pairs = ((b, q + d), (c, q), (same, 1 - 2 * q - d))
        return -sum(count * np.log(max(share, 1e-300)) for count, share in pairs if count)

    found = minimize_scalar(loss, bounds=(max(0.0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-13})
    return (b - c - n * d) / np.sqrt(n * (2 * found.x + d * (1 - d)))


@settings(max_examples=60, deadline=None)
@given(tables(largest=500), st.sampled_from([0.8, 0.95, 0.99]))
@example((0, 0, 30), 0.95)
@example((3, 0, 30), 0.95)
@example((15, 0, 30), 0.95)
@example((0, 30, 30), 0.95)
@example((15, 15, 30), 0.95)
def test_paired_interval_ends_where_the_score_is_the_quantile(table, confidence):
    b, c, n = table
    low, high = paired_interval(b, c, n, confidence)
    z = norm.ppf((1 + confidence) / 2)
    assert -100 <= low <= 100 * (b - c) / n <= high <= 100
    if c < n:
        assert score(*table, low / 100) == pytest.approx(z, abs=1e-3)
    if b < n:
        assert score(*table, high / 100) == pytest.approx(-z, abs=1e-3)


@settings(deadline=None)
@given(tables(), CONFIDENCES)
def test_swapping_the_models_mirrors_the_paired_interval(table, confidence):
    b, c, n = table
    low, high = paired_interval(b, c, n, confidence)
    assert paired_interval(c, b, n, confidence) == pytest.approx((-high, -low), abs=1e-12)


@settings(deadline=None)
@given(tables())
def test_paired_interval_excludes_zero_when_mcnemars_statistic_is_large(table):
    b, c, n = table
    statistic = abs(b - c) / np.sqrt(b + c) if b + c else 0.0
    z = norm.ppf(0.975)
    if abs(statistic - z) > 1e-9:
        low, high = paired_interval(b, c, n)
        assert (low > 0 or high < 0) == (statistic > z)


def test_paired_interval_covers_the_truth_exactly_as_often_as_stated():
    """No simulation: every table of 60 images, weighted by its probability under 200 random truths."""
    n = 60
    cells = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    lost, gained = np.array(cells).T
    ends = np.array([paired_interval(b, c, n) for b, c in cells]) / 100
    random = np.random.default_rng(4)
    coverage = []
    for _ in range(200):
        p12, p21 = random.uniform(0.02, 0.45, 2)
        chance = binom.pmf(lost + gained, n, p12 + p21) * binom.pmf(lost, lost + gained, p12 / (p12 + p21))
        assert chance.sum() == pytest.approx(1)
        coverage.append(chance[(ends[:, 0] <= p12 - p21) & (p12 - p21 <= ends[:, 1])].sum())
    assert 0.945 < np.mean(coverage) < 0.96
    assert np.min(coverage) > 0.93
    assert np.max(coverage) < 0.99


def test_paired_interval_covers_the_truth_on_simulated_test_splits():
    """10,000 images, like a test split, of which only a few are lost or gained, like in quantization."""
    random = np.random.default_rng(11)
    covered = []
    for _ in range(3000):
        p12, p21 = random.uniform(0.0005, 0.02, 2)
        b, c, _ = random.multinomial(10_000, [p12, p21, 1 - p12 - p21])
        low, high = paired_interval(int(b), int(c), 10_000)
        covered.append(low <= 100 * (p12 - p21) <= high)
    assert 0.93 < np.mean(covered) < 0.975


def test_the_interval_over_groups_contains_the_accuracy_on_other_groups():
    """Groups of 20 photos whose accuracies differ: 0.6 or 1.0. Wilson's interval takes each photo for new, and misses 0.8 too often."""
    random = np.random.default_rng(1)
    held = dict.fromkeys((6, 12, 40), 0)
    wilsons = 0
    for count in held:
        for _ in range(300):
            chances = random.choice([0.6, 1.0], count).repeat(20)
            right = random.random(len(chances)) < chances
            low, high = grouped_interval(right, np.arange(count).repeat(20))
            held[count] += low <= 0.8 <= high
            low, high = wilson(int(right.sum()), len(right))
            wilsons += low <= 0.8 <= high
    assert min(held.values()) >= 0.9 * 300 and wilsons < 0.8 * 900


def test_the_interval_of_a_mean_adds_the_squares_of_each_side():
    low, high = mean_interval([0.5, 0.9], [(0.2, 0.58), (0.5, 0.96)])
    assert (low, high) == pytest.approx((0.7 - math.hypot(0.3, 0.4) / 2, 0.7 + math.hypot(0.08, 0.06) / 2))


def test_the_interval_over_groups_is_wilsons_for_many_single_photos_and_everything_for_one_group():
    right = np.arange(2000) % 5 > 0
    single = grouped_interval(right, np.arange(2000))
    assert single == pytest.approx(wilson(1600, 2000), abs=2e-4)
    assert grouped_interval(right, np.zeros(2000, int)) == (0.0, 1.0)
    low, high = grouped_interval(np.ones(300, bool), np.arange(300) // 100)
    assert high == 1.0 and low < 0.3, "three groups are three, however many photos they have"
    worth = grouped_interval(right, np.arange(2000), 0.5)
    assert worth[0] < single[0] < single[1] < worth[1]
