"""The rules that select a network and input size for a set of photos: candidates, ranking, shortlist and final choice.

Every limit of the selection is defined here. Candidates are ranked by logistic regression on frozen features. That ranking does not predict
what fine-tuning gains, so the shortlist holds networks that differ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgecnn.data.folds import stratified
from edgecnn.recipe import NetworkRecipe
from edgecnn.run_info import Candidate
from edgecnn.train.regression import regression
from edgecnn.train.settle import BACKBONE_SIDE

SIDES = {"efficientnet_lite0": (96, 128, 160, 192, 224), "efficientnet_lite2": (160, 224, 260)}
"""Candidate input sides, in pixels, for each family of networks."""

SAMPLE, RANKED = 1_000, 500
"""Maximum number of photos for the selection, and of those for the ranking, which computes features at every size; balanced by class."""

FOLDS = 5
"""Stratified folds for ranking. The first one also evaluates the shortlist."""

STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse regularization strengths (scikit-learn's C). The one with the highest held-out likelihood is used."""

MOST_ITERATIONS = 200

SHORTLIST = 3

FEWEST_TUNED = 310
"""The fewest photos with which the shortlist is tuned. A fifth of them judges: with 300, chance decided; with 320, it did not."""

FEW_NETWORK = "efficientnet_lite0_4000kb"
"""The network for fewer than FEWEST_TUNED photos, at BACKBONE_SIDE, unless frozen features show another to be better."""

RANKED_ERRORS = 2.0
"""Candidates within this many standard errors of the best frozen accuracy count as equally good. The cheapest of them is tuned, since
tuning at a large input size takes minutes."""

MUCH_CHEAPER = 1 / 3
"""The largest fraction of the best candidate's multiplications at which another candidate counts as much cheaper."""

BRIEF = 1 / 6
"""The fraction of the float phase for which the shortlist is tuned."""

CLOSE_ERRORS, CLOSE_SHARE = 1.0, 0.01
"""How far behind the best of the shortlist a candidate may be: in standard errors of the paired difference, and as a share of photos.
The cheapest candidate within both limits is chosen."""

ROOM = 1.04
"""Safety factor on the predicted size of the int8 file, which is within 4 % of the real one."""


def sides_of(family: str, network: NetworkRecipe) -> tuple[tuple[int, int], ...]:
    """Return the candidate (height, width) pairs: the recipe's if it sets either side, else those of SIDES."""
    if network.height or network.width:
        height, width = network.height or network.width, network.width or network.height
        return ((height, width),)
    return tuple((side, side) for side in SIDES[family])


def within(candidate: Candidate, network: NetworkRecipe) -> bool:
    """Return whether a candidate is within the recipe's budget, as far as that is known without running it."""
    bytes_fit = network.max_kb is None or ROOM * candidate.int8_bytes <= 1_000 * network.max_kb
    return bytes_fit and (network.max_macs is None or candidate.macs <= network.max_macs)


def folds_of(classes: np.ndarray, groups: Sequence[str], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training indices, held-out indices) for each stratified fold. Images of one group share a fold."""
    for held in stratified(classes, groups, FOLDS, seed):
        yield np.setdiff1d(np.arange(len(classes)), held), held


def frozen_accuracy(features: np.ndarray, classes: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """Return the cross-validated accuracy of logistic regression on features (n, length)."""
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
    """Sort candidates by frozen accuracy, best first; ties by cost."""
    return sorted(candidates, key=lambda one: (-one.frozen, *by_cost(one)))


def shortlist(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return at most SHORTLIST candidates that differ: a best one, a much cheaper one, an uncut network, then others.

    Each is the cheapest candidate within RANKED_ERRORS standard errors, for `count` photos, of the best of its kind. If the best one is
    uncut, the third is a cut network. The others are networks that are not yet in the list. With fewer than FEWEST_TUNED photos there is
    only one (`for_few`).
    """
    ranked = best_first(candidates)
    if not ranked:
        return []
    if count < FEWEST_TUNED:
        return [for_few(ranked, count)]
    best = as_good(ranked, count)
    cheaper = [one for one in ranked if one.macs <= MUCH_CHEAPER * best.macs]
    other = [one for one in ranked if one.whole != best.whole]
    found = list(dict.fromkeys([best, *(as_good(kind, count) for kind in (cheaper, other) if kind)]))
    while others := [one for one in ranked if one.network not in {item.network for item in found}]:
        found.append(as_good(others, count))
    return found[:SHORTLIST]


def as_good(ranked: Sequence[Candidate], count: int) -> Candidate:
    """Return the cheapest of ranked candidates whose frozen accuracy is within RANKED_ERRORS of the first one's."""
    least = ranked[0].frozen - chance(ranked[0], count)
    return min((one for one in ranked if one.frozen >= least), key=by_cost)


def for_few(ranked: Sequence[Candidate], count: int) -> Candidate:
    """Return FEW_NETWORK at the side closest to BACKBONE_SIDE, unless the best candidate is better by more than RANKED_ERRORS."""
    same = [one for one in ranked if one.network == FEW_NETWORK]
    closest = min(same, key=lambda one: abs(one.height * one.width - BACKBONE_SIDE**2), default=None)
    if closest and closest.frozen >= ranked[0].frozen - chance(closest, count):
        return closest
    return as_good(ranked, count)


def chance(one: Candidate, count: int) -> float:
    """Return RANKED_ERRORS standard errors of a candidate's frozen accuracy on `count` photos."""
    return RANKED_ERRORS * math.sqrt(one.frozen * (1 - one.frozen) / count)


def compared(candidates: Sequence[Candidate], right: Sequence[np.ndarray]) -> list[Candidate]:
    """Return tuned candidates with their accuracy and distance from the best.

    `right` holds, for each candidate, which of the same n images it classified correctly: bool (n,).
    """
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
    """Return the cheapest tuned candidate that is not clearly behind the best."""
    close = [one for one in tuned if one.behind is not None and one.behind_error is not None and is_close(one)]
    return min(close, key=by_cost)


def is_close(one: Candidate) -> bool:
    assert one.behind is not None and one.behind_error is not None
    return one.behind <= min(CLOSE_ERRORS * one.behind_error, CLOSE_SHARE)
