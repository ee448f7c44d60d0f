"""Whether fine-tuning goes on and wins, on arrays of answers."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data.decoding import equal_weights
from edgecnn.train import best as rules
from edgecnn.train.best import Rival


def logits(classes, right, margin=3.0):
    """Answers to photos of two classes: `right` of the first ones are classified correctly, all with the same margin."""
    answers = np.where(np.arange(len(classes)) < right, classes, 1 - classes)
    return (margin * np.eye(2)[answers]).astype(np.float32)


def judged(head, tuned, classes, weights=None):
    rival = Rival(classes, np.ones(len(classes)) if weights is None else weights, 2, 6, 100)
    rival.begin(head)
    rival.examine(tuned)
    return rival.verdict()


CLASSES = np.arange(40) % 2


def test_more_right_answers_win():
    found = judged(logits(CLASSES, 30), logits(CLASSES, 36), CLASSES)
    assert (found.ships, found.decided_by) == ("fine-tuned", "accuracy")
    assert (found.n, found.head_accuracy, found.tuned_accuracy) == (40, 0.75, 0.9)
    assert judged(logits(CLASSES, 36), logits(CLASSES, 30), CLASSES).ships == "head"


def test_one_photo_is_noise_and_two_are_not():
    assert judged(logits(CLASSES, 36), logits(CLASSES, 37), CLASSES).decided_by != "accuracy"
    assert judged(logits(CLASSES, 36), logits(CLASSES, 38), CLASSES).decided_by == "accuracy"


def test_log_loss_decides_among_equals_whatever_the_scale_of_the_scores():
    sure = logits(CLASSES, 40)
    unsure = sure * np.linspace(0.2, 3, 40)[:, None].astype(np.float32)
    unsure[:4] = -sure[:4] / 10
    better = sure.copy()
    better[:4] = -sure[:4] / 30
    for scale in (0.5, 1.0):
        found = judged(unsure, better * np.float32(scale), CLASSES)
        assert found.head_accuracy == found.tuned_accuracy == 0.9
        assert (found.ships, found.decided_by) == ("fine-tuned", "log loss")
    assert judged(better, unsure, CLASSES).ships == "head"


def test_in_a_tie_the_head_ships():
    one = logits(CLASSES, 30)
    found = judged(one, one * 2, CLASSES)
    assert (found.ships, found.decided_by) == ("head", None)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    classes = np.repeat([0, 1], [36, 4])
    frequent, rare = logits(classes, 36), logits(classes, 36)
    rare[:4] = rare[:4, ::-1]  # four of 36 wrong, and all of the rare class right
    rare[36:] = 3 * np.eye(2)[1]
    assert judged(frequent, rare, classes).ships == "head", "four photos each, and no difference in log loss"
    found = judged(frequent, rare, classes, equal_weights(classes))
    assert found.ships == "fine-tuned" and found.balanced
    assert found.head_accuracy == 0.5 and found.tuned_accuracy == pytest.approx((32 / 36 + 1) / 2)


def test_it_ends_when_the_log_loss_no_longer_improves(monkeypatch):
    monkeypatch.setattr(rules, "PATIENCE", 30)
    rival = Rival(CLASSES, np.ones(40), 2, epochs=3, steps=10)
    rival.begin(logits(CLASSES, 20))
    ended = []
    for right in (24, 28, 32, 32, 32, 32, 32):
        rival.examine(logits(CLASSES, right))
        ended.append(rival.ended())
    assert ended == [False, False, False, False, False, True, True], "three epochs of ten steps without an improvement"
    assert rival.verdict().epochs == 7


def test_the_epochs_in_which_the_rate_rises_do_not_count(monkeypatch):
    monkeypatch.setattr(rules, "PATIENCE", 20)
    rival = Rival(CLASSES, np.ones(40), 2, epochs=12, steps=10)
    rival.begin(logits(CLASSES, 30))
    ended = []
    for _ in range(6):
        rival.examine(logits(CLASSES, 25))
        ended.append(rival.ended())
    assert ended == [False] * 5 + [True], "four epochs of twelve, then two"


def test_a_head_without_mistakes_cannot_be_beaten():
    rival = Rival(CLASSES, np.ones(40), 2, epochs=6, steps=10)
    rival.begin(logits(CLASSES, 40))
    assert rival.ended() and rival.verdict().ships == "head"
    rival.begin(logits(CLASSES, 39))
    assert not rival.ended()


def test_a_single_validation_photo_decides_nothing():
    one = np.zeros(1, int)
    assert judged(logits(one, 0), logits(one, 1), one).ships == "head"
