"""Which model ships: between epochs, methods, and the head that fine-tuning began with."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data.decoding import equal_weights
from edgecnn.networks.keras import keras, tf
from edgecnn.train import best as rules
from edgecnn.train.best import Best, Rival, Score, averaging, better_method, score

N = 1000


def scored(agreed, lost, gained, n=N, divergence=0.01, within=0.01):
    """A score to compare with a float model that classifies four fifths of the images correctly."""
    right = n * 4 // 5 - lost + gained
    return Score(
        n=n, right=right, agreed=agreed, lost=lost, gained=gained, divergence=divergence, within=within,
        credit=right, spread=lost + gained,
    )  # fmt: skip


def better(asked, qat, ptq):
    """Only the method, without the reason for the choice."""
    return better_method(asked, qat, ptq)[0]


def test_a_score_compares_the_answers_of_two_models():
    reference = np.eye(3)[[0, 1, 2, 0, 1]]
    logits = np.eye(3)[[0, 1, 1, 2, 0]]
    found = score(logits, reference, np.array([0, 2, 2, 2, 1]))
    expected = Score(
        n=5, right=2, agreed=2, lost=2, gained=1, divergence=found.divergence, within=found.within, credit=2, spread=3
    )
    assert found == expected
    one = np.e / (np.e + 2)  # the softmax at logit 1
    assert found.divergence == pytest.approx(3 / 5 * (one - 1 / (np.e + 2)))
    assert score(9 * reference, 9 * reference, np.array([0, 2, 2, 2, 1])).divergence == 0
    assert score(4 * reference, 9 * reference, np.array([0, 2, 2, 2, 1])).divergence > 0
    clipped = score(4 * reference, 9 * reference, np.array([0, 2, 2, 2, 1]), (-1, 4))
    assert clipped.within == 0 < clipped.divergence, "values outside the range are not a difference between two epochs"
    assert (found.accuracy, found.agreement) == (0.4, 0.4)
    assert found.standard_error == pytest.approx(np.sqrt(3 - 1 / 5) / 5)
    assert found.standard_error == pytest.approx(np.std([1, 1, -1, 0, 0]) / np.sqrt(5))


def test_with_weights_every_class_counts_the_same():
    """Two int8 models of a float model that is always right: one loses 20 of 180 frequent images, the other all 20 rare ones."""
    classes = np.repeat([0, 1], [180, 20])
    reference = 9 * np.eye(2)[classes]
    frequent, rare = reference.copy(), reference.copy()
    frequent[:20] = frequent[:20, ::-1]
    rare[180:] = rare[180:, ::-1]
    plain = [score(one, reference, classes) for one in (frequent, rare)]
    assert plain[0].lead(plain[1], ("accuracy",))[0] == 0
    equal = [score(one, reference, classes, weights=equal_weights(classes)) for one in (frequent, rare)]
    assert equal[0].better_than(equal[1]) and equal[0].divergence < equal[1].divergence
    assert [one.credit / 200 for one in equal] == pytest.approx([(160 / 180 + 1) / 2, 0.5])
    assert [one.accuracy for one in equal] == [0.9, 0.9], "the figures stay plain"


def test_agreement_decides_if_accuracy_differs_by_chance():
    more_agreement, more_accuracy = scored(990, 5, 3), scored(985, 3, 6)
    assert more_agreement.better_than(more_accuracy) and not more_accuracy.better_than(more_agreement)


def test_with_few_images_the_divergence_decides_because_a_point_of_agreement_is_one_image():
    luckier, closer = scored(120, 0, 0, n=120, within=0.02), scored(118, 1, 1, n=120, within=0.01)
    assert closer.better_than(luckier) and not luckier.better_than(closer)
    more = scored(990, 5, 5, within=0.02)
    assert more.better_than(scored(985, 5, 5, within=0.01)), "with a thousand, agreement is the sharper figure"
    worse = scored(95, 25, 0, n=120, within=0.0)
    assert luckier.better_than(worse), "25 of 120 answers are more than chance"


@pytest.mark.parametrize("n", [120, 2000])
def test_of_two_tied_methods_the_one_that_diverges_less_when_shipped_wins(n):
    clipped, whole = (scored(n, 0, 0, n=n, divergence=far, within=0.01) for far in (6e-3, 3e-5))
    assert better_method("auto", clipped, whole) == ("ptq", "divergence")
    assert better_method("auto", whole, clipped) == ("qat", "divergence")
    assert better_method("auto", whole, whole) == ("qat", None)
    assert better_method("auto", clipped, scored(n, 0, 0, n=n, divergence=1.4e-3)) == ("ptq", "divergence")
    assert better_method("auto", clipped, scored(n, 0, 0, n=n, divergence=1.6e-3)) == ("qat", None), (
        "no clear difference"
    )


def test_one_image_of_a_thousand_decides_between_two_methods_and_one_of_fewer_does_not():
    qat = scored(N - 1, 1, 0, divergence=0.006)
    assert better_method("auto", qat, scored(N, 0, 0, divergence=0.004)) == ("ptq", "agreement")
    assert better_method("auto", qat, scored(N - 1, 0, 1, divergence=0.004)) == ("ptq", "accuracy")
    few = 118
    qat = scored(few - 2, 2, 0, n=few, divergence=0.006)
    for ptq in (scored(few, 0, 0, n=few, divergence=0.004), scored(few - 2, 0, 2, n=few, divergence=0.004)):
        assert better_method("auto", qat, ptq) == ("qat", None), "four of 118 are chance"
    assert better_method("auto", qat, scored(few - 9, 0, 0, n=few, divergence=0.0015)) == ("ptq", "divergence")
    broken = scored(few - 20, 20, 0, n=few, divergence=0.006)
    assert better_method("auto", broken, scored(few, 0, 0, n=few, divergence=0.004)) == ("ptq", "accuracy")


@pytest.mark.parametrize(("changed", "clear"), [(5, False), (6, True)])
def test_chance_is_that_of_an_exact_test_also_with_few_changed_answers(changed, clear):
    worse, same = (scored(120, lost, 0, n=120, within=far) for lost, far in ((changed, 0.01), (0, 0.02)))
    assert same.better_than(worse) is clear, f"{changed} of {changed} by chance: p = {2 * 0.5**changed:.2g}"


def test_accuracy_decides_if_it_differs_by_more():
    less_accurate, more_accurate = scored(980, 20, 0), scored(950, 20, 20)
    assert more_accurate.better_than(less_accurate) and not less_accurate.better_than(more_accurate)


def test_with_equal_agreement_the_more_accurate_wins_and_a_tie_is_not_better():
    assert scored(985, 3, 6).better_than(scored(985, 5, 3))
    assert not scored(985, 5, 3).better_than(scored(985, 5, 3))
    assert scored(N, 0, 0).better_than(scored(N - 1, 0, 0))


def test_the_method_is_chosen_only_on_request():
    qat, ptq = scored(980, 5, 5), scored(985, 5, 5)
    assert better("auto", qat, ptq) == "ptq"
    assert better("auto", ptq, qat) == "qat"
    assert better("auto", qat, qat) == "qat", "a tie keeps the trained one"
    assert better("qat", qat, ptq) == "qat"
    assert better("ptq", None, ptq) == "ptq"
    assert better("auto", qat, None) == "qat"


def test_a_model_that_changes_more_answers_does_not_win_by_its_larger_standard_error():
    qat, ptq = scored(983, 15, 8), scored(960, 25, 20)
    assert better("auto", qat, ptq) == "qat", "two images in a thousand are chance"
    assert better("auto", scored(970, 45, 0), ptq) == "ptq", "forty are not"


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])


def offer(best, epoch, agreed):
    best.model.set_weights([np.full((2, 1), epoch, np.float32)])
    best.offer(epoch, scored(agreed, 5, 5))


def test_the_best_weights_are_kept_and_a_tie_goes_to_the_later_epoch(model):
    best = Best(model)
    assert best.score is None
    for epoch, agreed in enumerate((970, 990, 980, 990, 960)):
        offer(best, epoch, agreed)
    assert best.epoch == 3 and best.score == scored(990, 5, 5)
    assert model.get_weights()[0][0, 0] == 4, "the model trains on from its own weights"
    best.restore()
    assert model.get_weights()[0][0, 0] == 3


def test_of_two_tied_models_in_one_epoch_the_first_is_kept(model):
    best = Best(model)
    offer(best, 0, 970)
    model.set_weights([np.full((2, 1), 7, np.float32)])
    best.offer(0, scored(970, 5, 5))
    best.restore()
    assert model.get_weights()[0][0, 0] == 0


def test_its_variables_are_its_whole_state(model):
    best, other = Best(model), Best(model)
    for epoch, agreed in enumerate((970, 990, 980)):
        offer(best, epoch, agreed)
    for variable, saved in zip(other.variables, best.variables, strict=True):
        variable.assign(saved.numpy())
    assert (other.epoch, other.score) == (1, best.score)
    other.restore()
    assert model.get_weights()[0][0, 0] == 1


def averages(values):
    """Return the average after each step for a weight with these values, shape (n, 2)."""
    weight, mean, steps = tf.Variable(values[0]), tf.Variable([9.0, 9.0]), tf.Variable(0, dtype=tf.int64)

    def step(value):
        weight.assign(value)
        return steps.assign_add(1)

    averaged_step, found = averaging(step, [(mean, weight)], steps), []
    for value in values:
        averaged_step(value)
        found.append(mean.numpy())
    return np.array(found)


def test_the_first_step_is_the_first_average():
    values = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_allclose(averages(values)[0], values[0], atol=1e-6)


def test_late_steps_count_more():
    values = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    number = np.arange(1, 51)
    expected = np.average(values, axis=0, weights=number * (number + 1))
    np.testing.assert_allclose(averages(values)[-1], expected, rtol=1e-4, atol=1e-6)
    last_fifth = np.repeat(np.array([[0, 0], [1, 1]], np.float32), [80, 20], axis=0)
    assert averages(last_fifth)[-1][0] == pytest.approx(0.488, abs=0.01)


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


def test_without_a_difference_between_classes_the_share_of_all_photos_decides_before_the_log_loss():
    """As of photos of which few show a defect: the fine-tuned model finds all four, not two, but calls a third of the others defective."""
    classes = np.repeat([0, 1], [60, 4])
    head = 4 * np.eye(2)[np.repeat([0, 1, 0], [60, 2, 2])].astype(np.float32)
    tuned = np.eye(2)[np.repeat([1, 0, 1], [20, 40, 4])].astype(np.float32)
    found = judged(head, tuned, classes, equal_weights(classes))
    assert (found.ships, found.decided_by) == ("head", "all photos")
    assert found.head_accuracy == 0.75 and found.tuned_accuracy == pytest.approx((40 / 60 + 1) / 2)
    assert found.tuned_log_loss < found.head_log_loss, "which would have chosen it"


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


def test_while_it_improves_it_goes_on_below_the_head_too(monkeypatch):
    """A head that was lucky on few photos is better than every epoch but the last."""
    monkeypatch.setattr(rules, "PATIENCE", 20)
    rival = Rival(CLASSES, np.ones(40), 2, epochs=3, steps=10)
    rival.begin(logits(CLASSES, 36))
    for right in (20, 24, 28, 32, 39):
        rival.examine(logits(CLASSES, right))
        assert not rival.ended()
    assert rival.verdict().ships == "fine-tuned"


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
