"""The rules that select a network and an input for a set of photos by the answers of fitted last layers to held-out photos."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgecnn.data.folds import stratified
from edgecnn.recipe import NetworkRecipe
from edgecnn.run_info import Candidate
from edgecnn.train.last_layer import log_losses

SIDES = {"efficientnet_lite0": (96, 128, 160, 192, 224), "efficientnet_lite2": (160, 224, 260)}
"""Candidate input sides, in pixels, for each family of networks, if the recipe limits the network."""

USUAL = {"efficientnet_lite0": (160, 224), "efficientnet_lite2": (260,)}
"""The same without a limit: each side takes a pass over the photos."""

MOST = 2_000  # photos that choose, at most; balanced by class

FOLDS = 5  # stratified folds; photos of a group share one

CLOSE_ERRORS, CLOSE_SHARE, CLOSE_LOSS = 1.0, 0.01, 0.02
"""How far behind the best a candidate may be: in standard errors of the paired difference, and as a share of photos. In log loss, which
tells more when there are few photos, it may be behind by CLOSE_ERRORS or by CLOSE_LOSS nats. The cheapest within all limits is chosen."""

ROOM = 1.04
"""Safety factor on the predicted size of the int8 file, which is within 4 % of the real one."""


def sides_of(family: str, network: NetworkRecipe) -> tuple[tuple[int, int], ...]:
    """Return the candidate (height, width) pairs: the recipe's if it sets either side, else those of SIDES or USUAL."""
    if network.height or network.width:
        height, width = network.height or network.width, network.width or network.height
        return ((height, width),)
    limited = network.max_kb or network.max_macs or network.max_ms
    return tuple((side, side) for side in (SIDES if limited else USUAL)[family])


def within(candidate: Candidate, network: NetworkRecipe) -> bool:
    """Return whether a candidate is within the recipe's budget, as far as that is known without running it."""
    bytes_fit = network.max_kb is None or ROOM * candidate.int8_bytes <= 1_000 * network.max_kb
    return bytes_fit and (network.max_macs is None or candidate.macs <= network.max_macs)


def folds_of(classes: np.ndarray, groups: Sequence[str], seed: int) -> np.ndarray:
    """Return the fold of each photo, int (n,): stratified by class; photos of one group share a fold."""
    folds = np.zeros(len(classes), int)
    for number, held in enumerate(stratified(classes, groups, FOLDS, seed)):
        folds[held] = number
    return folds


def by_cost(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.ms or 0.0, candidate.macs, candidate.int8_bytes


def compared(
    candidates: Sequence[Candidate], answers: Sequence[np.ndarray], classes: np.ndarray, weights: np.ndarray
) -> list[Candidate]:
    """Return candidates, best first, with their accuracy and distance from the best.

    `answers` holds each candidate's logits for the same held-out photos (n, num_classes) of `classes`, (n,). `weights`, (n,), average 1:
    they make all classes count the same if a set is unbalanced.
    """
    right = [weights * (logits.argmax(axis=1) == classes) for logits in answers]
    losses = [weights * log_losses(logits, classes) for logits in answers]
    accuracies = [float(item.mean()) for item in right]
    means = [float(item.mean()) for item in losses]
    order = sorted(
        range(len(candidates)), key=lambda one: (-round(accuracies[one], 9), means[one], *by_cost(candidates[one]))
    )
    found = []
    for index in order:
        behind, error = paired(right[order[0]] - right[index])
        worse, loss_error = paired(losses[index] - losses[order[0]])
        close = behind <= min(CLOSE_ERRORS * error, CLOSE_SHARE) and worse <= max(CLOSE_ERRORS * loss_error, CLOSE_LOSS)
        found.append(
            replace(
                candidates[index],
                accuracy=min(accuracies[index], 1.0),
                log_loss=means[index],
                behind=behind,
                behind_error=error,
                close=close,
            )
        )
    return found


def paired(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences (n,) and its standard error."""
    return float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))


def taken(ranked: Sequence[Candidate]) -> Candidate:
    """Return the cheapest of compared candidates that are not clearly behind the best."""
    return min((one for one in ranked if one.close), key=by_cost)
