"""Which network and input suit some photos: what is tried, how it is ranked, which are tuned, and which of these is taken.

Every limit of the choice stands here. The ranking is that of frozen features by logistic regression, which misleads about what tuning
gains: the shortlist therefore keeps networks that differ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgecnn.data.folds import stratified
from edgecnn.recipe import NetworkRecipe
from edgecnn.run_info import Candidate
from edgecnn.train.regression import regression

SIDES = {"efficientnet_lite0": (96, 128, 160, 192, 224), "efficientnet_lite2": (160, 224, 260)}
"""Rows and columns of the input that are tried, for each family of rungs."""

SAMPLE = 1_000  # photos that choose, at most, the same number of each class

FOLDS = 5
"""Stratified folds: of the regression that ranks, and of which the first one judges the shortlist."""

STRENGTHS = (
    0.01,
    0.1,
    1.0,
)  # inverse strengths of the regression's regularisation (scikit-learn's C); the likeliest counts
MOST_ITERATIONS = 200

SHORTLIST = 3

RANKED_ERRORS = 2.0
"""Standard errors of a frozen accuracy by which candidates differ by chance: of those the cheapest is tuned, as tuning a large input takes
minutes."""

MUCH_CHEAPER = 1 / 3
"""Share of the best candidate's multiplications that the best of the much cheaper ones may take."""

BRIEF = 1 / 3
"""The share of the float phase, its first, for which the shortlist is tuned."""

CLOSE_ERRORS, CLOSE_SHARE = 1.0, 0.01
"""Limits of how far behind the best of the shortlist a candidate may be, in standard errors of the paired difference and as a share of the
photos: the cheapest within both is taken."""

ROOM = 1.04
"""The expected bytes are within 4 % of the real ones: a candidate takes at most this many times them."""


def sides_of(family: str, network: NetworkRecipe) -> tuple[tuple[int, int], ...]:
    """Return the (height, width) that are tried: the recipe's if it has one of them, else SIDES."""
    if network.height or network.width:
        height, width = network.height or network.width, network.width or network.height
        return ((height, width),)
    return tuple((side, side) for side in SIDES[family])


def within(candidate: Candidate, network: NetworkRecipe) -> bool:
    """Return whether a candidate keeps the recipe's budget, as far as that is known without running it."""
    bytes_fit = network.max_kb is None or ROOM * candidate.int8_bytes <= 1_000 * network.max_kb
    return bytes_fit and (network.max_macs is None or candidate.macs <= network.max_macs)


def folds_of(classes: np.ndarray, groups: Sequence[str], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of each stratified fold's other images, and of its own; images of one group share a fold."""
    for held in stratified(classes, groups, FOLDS, seed):
        yield np.setdiff1d(np.arange(len(classes)), held), held


def frozen_accuracy(features: np.ndarray, classes: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """Return the accuracy of logistic regressions on features (n, length), each asked about the fold that it was not fitted on."""
    from threadpoolctl import threadpool_limits

    scores = np.zeros((len(STRENGTHS), len(classes), int(classes.max()) + 1))
    with threadpool_limits(1):  # small matrices: threads would wait for each other
        for kept, held in folds_of(classes, groups, seed):
            if len(np.unique(classes[kept])) < 2:
                continue
            mean = features[kept].mean(axis=0)
            scale = max(float((features[kept] - mean).std()), 1e-12)  # one for all features, as for a network's head
            fit, asked = (features[kept] - mean) / scale, (features[held] - mean) / scale
            for number, strength in enumerate(STRENGTHS):
                fitted = regression(strength, MOST_ITERATIONS).fit(fit, classes[kept])
                scores[number][np.ix_(held, fitted.classes_)] = fitted.predict_proba(asked)
    own = np.clip(scores[:, np.arange(len(classes)), classes], 1e-9, None)
    likeliest = scores[int(np.argmax(np.log(own).mean(axis=1)))]
    return float(np.mean(likeliest.argmax(axis=1) == classes))


def by_cost(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.ms or 0.0, candidate.macs, candidate.int8_bytes


def best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates by their frozen accuracy, the cheaper first of equals."""
    return sorted(candidates, key=lambda one: (-one.frozen, *by_cost(one)))


def shortlist(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return at most SHORTLIST candidates that differ: a best one, a much cheaper one, a whole network, then others.

    Each is the cheapest of its kind that is within RANKED_ERRORS standard errors, for `count` photos, of the best of its kind. If the best
    is whole itself, a cut network stands for the third; others are of networks that are not in the list yet.
    """
    ranked = best_first(candidates)
    if not ranked:
        return []
    best = as_good(ranked, count)
    cheaper = [one for one in ranked if one.macs <= MUCH_CHEAPER * best.macs]
    other = [one for one in ranked if one.whole != best.whole]
    found = list(dict.fromkeys([best, *(as_good(kind, count) for kind in (cheaper, other) if kind)]))
    for one in ranked:
        if len(found) < SHORTLIST and one.network not in {item.network for item in found}:
            found.append(one)
    return found[:SHORTLIST]


def as_good(ranked: Sequence[Candidate], count: int) -> Candidate:
    """Return the cheapest of ranked candidates whose frozen accuracy is within RANKED_ERRORS of the first one's."""
    error = RANKED_ERRORS * math.sqrt(ranked[0].frozen * (1 - ranked[0].frozen) / count)
    return min((one for one in ranked if one.frozen >= ranked[0].frozen - error), key=by_cost)


def compared(candidates: Sequence[Candidate], right: Sequence[np.ndarray]) -> list[Candidate]:
    """Return tuned candidates with their accuracy and how far they are behind the best; `right` is each one's, bool (n,), same images."""
    accuracies = [float(item.mean()) for item in right]
    order = sorted(range(len(candidates)), key=lambda index: (-accuracies[index], *by_cost(candidates[index])))
    best, count = right[order[0]], len(right[0])
    tuned = []
    for candidate, mine, accuracy in zip(candidates, right, accuracies, strict=True):
        lost, gained = int(np.sum(best & ~mine)), int(np.sum(mine & ~best))
        error = math.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
        tuned.append(replace(candidate, tuned=accuracy, behind=(lost - gained) / count, behind_error=error))
    return tuned


def taken(tuned: Sequence[Candidate]) -> Candidate:
    """Return the cheapest of the tuned candidates that are not clearly behind the best."""
    close = [one for one in tuned if one.behind is not None and one.behind_error is not None and is_close(one)]
    return min(close, key=by_cost)


def is_close(one: Candidate) -> bool:
    assert one.behind is not None and one.behind_error is not None
    return one.behind <= min(CLOSE_ERRORS * one.behind_error, CLOSE_SHARE)
