"""Rules that choose a network, and the last layers that they see."""

import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression

from edgecnn.data import open_dataset
from edgecnn.data.decoding import class_weights
from edgecnn.errors import RecipeError
from edgecnn.recipe import NetworkRecipe, build_recipe
from edgecnn.report.table import choice_section, chosen_text, judged_line
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.runs import CHOICE, FEATURES, FLOAT_MODEL, create_run
from edgecnn.stages import network_choice
from edgecnn.stages.network_choice import choose_network
from edgecnn.train import candidates
from edgecnn.train import candidates as rules
from edgecnn.train.candidates import Images, fit, held_out, log_losses, nearest_layer, quantize

EVEN = np.ones(400)


@pytest.mark.parametrize("classes", [2, 5])
def test_few_photos_get_the_layer_that_all_dimensions_give(monkeypatch, classes):
    monkeypatch.setattr(
        candidates, "regression", lambda strength, most: LogisticRegression(C=strength, tol=1e-8, max_iter=5_000)
    )
    random = np.random.default_rng(1)
    features = (random.normal(size=(40, 9)) @ random.normal(size=(9, 80)) + 3).astype(np.float32)
    # a copy and a constant: the photos span fewer dimensions than there are photos
    features[5], features[:, 7] = features[4], 2.0
    images = Images(features, np.arange(40) % classes, random.uniform(0.5, 1.5, 40), classes)
    fitted = fit(images, 0.1)
    values = (features - features.mean(axis=0)).astype(np.float64)
    coordinates, basis = candidates.spanned(values)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
    np.testing.assert_allclose(coordinates @ basis.T, values, atol=1e-4)
    monkeypatch.setattr(candidates, "spanned", lambda values: (values, np.eye(80)))
    expected = fit(images, 0.1)
    np.testing.assert_allclose(fitted.weights, expected.weights, atol=1e-3 * np.abs(expected.weights).max())
    np.testing.assert_allclose(fitted.bias, expected.bias, atol=1e-3 * np.abs(expected.bias).max())


def candidate(network, side=160, *, macs=100, whole=False):
    return Candidate(network=network, height=side, width=side, whole=whole, macs=macs, int8_bytes=macs, fits=True)


def answers(wrong, classes, sure=3.0):
    """Return logits that are right but for the photos `wrong`, by a margin `sure`."""
    logits = np.zeros((len(classes), int(classes.max()) + 1), np.float32)
    chosen = np.where(np.isin(np.arange(len(classes)), wrong), (classes + 1) % logits.shape[1], classes)
    logits[np.arange(len(classes)), chosen] = sure
    return logits


def test_the_cheapest_of_nearly_equal_candidates_wins():
    classes = np.arange(400) % 2
    few = [candidate("small", macs=100), candidate("large", macs=300), candidate("middle", macs=200)]

    def ranked(*wrong):
        return rules.ranked_candidates(few, [answers(list(one), classes, 0.3) for one in wrong], classes, EVEN)

    # Of the middle's 10 errors 6 are its own, and 4 of the large one's.
    found = ranked(range(30), range(8), range(4, 14))
    assert [one.network for one in found] == ["large", "middle", "small"]
    assert [one.behind for one in found] == pytest.approx([0, 0.005, 0.055])
    assert found[1].behind_error == pytest.approx(np.sqrt(10 - 4 / 400) / 400)
    assert [one.close for one in found] == [True, True, False]
    assert rules.cheapest_close(found).network == "middle"
    assert rules.cheapest_close(ranked(range(30), range(8), range(8, 20))).network == "middle", "one point behind"
    assert rules.cheapest_close(ranked(range(30), range(8), range(8, 21))).network == "large", "more than one point"
    found = rules.ranked_candidates(few, [answers(range(8), classes, sure) for sure in (2.8, 3.0, 2.9)], classes, EVEN)
    assert [one.network for one in found] == ["large", "middle", "small"] and not found[2].close
    assert 0 < found[1].log_loss - found[0].log_loss < 0.005 < found[2].log_loss - found[0].log_loss
    assert rules.cheapest_close(found).network == "middle"


def test_the_lower_log_loss_wins_over_a_few_more_right_answers():
    classes = np.arange(40) % 2
    few = [candidate("rash", macs=100), candidate("careful", macs=300)]
    found = rules.ranked_candidates(
        few, [answers([0, 1], classes, 8.0), answers([0, 1, 2], classes, 2.0)], classes, np.ones(40)
    )
    assert [one.network for one in found] == ["careful", "rash"] and found[1].behind == pytest.approx(-1 / 40)
    assert rules.cheapest_close(found).network == "careful"


def test_a_candidate_with_as_many_right_answers_but_unsure_ones_is_not_as_good():
    classes = np.arange(20) % 2
    few = [candidate("small", macs=100), candidate("large", macs=300)]
    unsure = [answers([], classes, 0.1), answers([], classes)]
    assert rules.cheapest_close(rules.ranked_candidates(few, unsure, classes, np.ones(20))).network == "large"
    sure = [answers([], classes), answers([], classes)]
    assert rules.cheapest_close(rules.ranked_candidates(few, sure, classes, np.ones(20))).network == "small", (
        "all else equal, the cheaper"
    )


def test_rare_classes_count_as_much_as_common_ones():
    from edgecnn.data.decoding import class_weights

    classes = np.repeat([0, 1], [360, 40])
    blind = answers(np.arange(360, 400), classes)  # never finds the rare class: 90 % right
    finds = answers(np.arange(60), classes)  # finds all of it, and is wrong on a sixth of the others: 85 % right
    few = [candidate("blind"), candidate("finds", macs=900)]
    by_photo = rules.ranked_candidates(few, [blind, finds], classes, EVEN)
    by_class = rules.ranked_candidates(few, [blind, finds], classes, class_weights(classes))
    assert [one.network for one in by_photo] == ["blind", "finds"]
    assert [one.network for one in by_class] == ["finds", "blind"]
    assert by_class[0].accuracy == pytest.approx((5 / 6 + 1) / 2) and by_class[1].accuracy == pytest.approx(0.5)
    balanced = class_weights(np.repeat([0, 1], [239, 80]))
    assert balanced.tolist() == [1.0] * 319, "less than three to one"


def test_one_side_in_the_recipe_stands_for_both():
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(height=96)) == ((96, 96),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(width=64)) == ((64, 64),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(height=96, width=64)) == ((96, 64),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(max_ms=5.0)) == ((160, 160), (224, 224), (260, 260))
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe()) == ((260, 260),)


def test_the_reason_for_a_choice_and_its_budget_in_words():
    best = dataclasses.replace(candidate("large", macs=300), width=224, log_loss=0.25)
    small = dataclasses.replace(candidate("small", 96), behind=0.005, log_loss=0.262)
    assert network_choice.why(best, best) == "its log loss on held-out photos is the lowest"
    behind = "0.012 nats of log loss behind large at 224x160, {}, and cheaper"
    assert network_choice.why(small, best) == behind.format("0.5 points less accurate")
    assert network_choice.why(dataclasses.replace(small, behind=-0.01), best) == behind.format("no less accurate")
    recipe = build_recipe({"network": {"max_kb": 1_500.5, "max_macs": 2e7, "max_ms": 7.5}})
    budget = network_choice.budget(recipe)
    assert budget == "1,500.5 kB, 20,000,000 multiply-accumulates, 7.5 ms here"
    assert network_choice.budget(build_recipe({})) == ""
    made = NetworkChoice(
        key="0" * 64, images=1_234, balanced=False, budget=budget, candidates=(), network="small", height=96, width=128,
        why="the most accurate", seconds=3.0,
    )  # fmt: skip
    assert (
        chosen_text(made)
        == f"small at 128x96 was chosen for a last layer fitted to 1,234 images, within {budget}: the most accurate"
    )
    assert "1,234 images: the most" in chosen_text(dataclasses.replace(made, budget=""))


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Crops of a temple and of a flower: two classes of photos."""
    folder, random = tmp_path_factory.mktemp("crops"), np.random.default_rng(1)
    for label, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / label).mkdir()
        for index in range(30):
            top, left = (int(random.integers(0, size - 120)) for size in photo.shape[:2])
            Image.fromarray(photo[top : top + 120, left : left + 120]).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rules, "SIDES", {"efficientnet_lite0": (32,)})
    monkeypatch.setattr(rules, "USUAL", {"efficientnet_lite0": (32,)})


@pytest.mark.guard
@pytest.mark.usefixtures("small")
def test_an_interrupted_choice_resumes_and_respects_the_budget(crops, tmp_path, reporter, monkeypatch):
    recipe = build_recipe({"data": {"source": str(crops)}, "network": {"height": 32, "width": 32, "max_macs": 6e6}})
    dataset, run = open_dataset(recipe.data), create_run(recipe, tmp_path / "run")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):

        def interrupted(*arguments):
            raise KeyboardInterrupt

        killed.setattr(rules, "ranked_candidates", interrupted)
        choose_network(recipe, dataset, run, reporter)
    (features,) = run.file(FEATURES).iterdir()
    count = dataset.sizes["train"] + dataset.sizes["validation"]
    assert len(candidates.read_features(features)[0]) == count

    monkeypatch.setattr(candidates, "computed", None)
    chosen = choose_network(recipe, dataset, run, reporter)
    made = run.stored(CHOICE, NetworkChoice)
    assert (chosen.network.name, chosen.network.height) == (made.network, 32)
    taken = next(one for one in made.candidates if one.network == made.network)
    assert taken.macs <= 6e6 and taken.close and taken.accuracy > 0.9
    assert made.images == count
    rows = choice_section(made).table.rows
    assert len(rows) < 4 and [row[-1] for row in rows].count("chosen") == 1, "the largest is over the budget"
    assert made.network in judged_line(made)

    monkeypatch.setattr(network_choice.Choosing, "choose", None)
    assert choose_network(recipe, dataset, run, reporter) == chosen, "the choice is not made again"


@pytest.mark.usefixtures("small")
def test_an_impossible_budget_reports_what_the_smallest_takes(crops, tmp_path, reporter, monkeypatch, edgecnn):
    recipe = build_recipe({"data": {"source": str(crops)}, "network": {"height": 32, "width": 32, "max_kb": 10.0}})
    monkeypatch.setattr(candidates, "computed", None)  # the answer comes before the long part of a choice
    with pytest.raises(
        RecipeError, match=r"no network is within the budget \(10 kB\)\. The smallest, efficientnet_lite0_150kb"
    ):
        choose_network(recipe, open_dataset(recipe.data), create_run(recipe, tmp_path / "run"), reporter)
    former = tmp_path / "run" / FLOAT_MODEL
    former.write_bytes(b"a model")
    (tmp_path / "open.toml").write_text("")
    for command in (("train",), ("run", "open.toml")):
        refused = edgecnn(*command, "--data", crops, "--max-kb", 10, "--out", tmp_path / "run", "--force")
        assert refused.code == RecipeError.exit_code and former.exists(), refused.err


def test_a_time_budget_is_measured_for_few_and_applies_to_all(crops, tmp_path, reporter, monkeypatch):
    recipe = build_recipe({"data": {"source": str(crops)}, "network": {"max_ms": 15.0}})
    choosing = network_choice.Choosing(recipe, open_dataset(recipe.data), reporter, tmp_path)
    timed = []

    def milliseconds(one, *others):
        timed.append(one.network)
        return one.macs / 10

    monkeypatch.setattr(network_choice, "milliseconds_of", milliseconds)
    listed = [candidate(f"network{index}", macs=400 - 50 * index, whole=index < 2) for index in range(8)]
    classes = np.arange(400) % 2
    given = [answers(list(range(10 * index)), classes) for index in range(8)]
    chosen, ranked = choosing.taken(listed, given, classes, EVEN)
    assert chosen.network == "network5" and chosen.ms == 15.0, "the most accurate of 15 ms"
    assert [one.fits for one in ranked if one.macs > 150] == [False] * 5
    assert timed == [f"network{index}" for index in range(6)]
    with pytest.raises(RecipeError, match="no network answers in 15 ms"):
        choosing.taken(listed[:2], given[:2], classes, EVEN)


def made(features, classes, weights=None):
    return Images(features, classes, np.ones(len(classes)) if weights is None else weights, int(classes.max()) + 1)


def test_no_photo_is_answered_by_a_layer_that_saw_it():
    random = np.random.default_rng(1)
    classes, folds = np.repeat([0, 1], 50), np.arange(100) % 5
    noise = random.normal(size=(100, 400)).astype(np.float32)
    logits, *_ = held_out(made(noise, classes), folds)
    assert 0.3 < np.mean(logits.argmax(axis=1) == classes) < 0.7, (
        "more features than photos: fitted ones would be right"
    )
    noise[:, 0] += 20 * classes
    logits, *_ = held_out(made(noise, classes), folds)
    assert np.mean(logits.argmax(axis=1) == classes) > 0.95
    twins = made(np.tile(noise[:, 1:], (2, 1)), np.tile(classes, 2))
    apart, together = np.concatenate([folds, (folds + 1) % 5]), np.tile(folds, 2)
    right = [np.mean(held_out(twins, one)[0].argmax(axis=1) == twins.classes) for one in (apart, together)]
    assert right[0] > 0.9 and right[1] < 0.7, "a copy in another fold gives the answer away"


def test_a_class_without_photos_is_never_the_answer():
    features = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    features[:30, 0] += 9
    for classes in (np.repeat([0, 2], 30), np.repeat([2, 2], 30)):
        layer = fit(Images(features, classes, np.ones(60), 4), 0.1)
        assert set(layer.logits(features).argmax(axis=1).tolist()) == set(classes.tolist())
        assert np.isfinite(log_losses(layer.logits(features), np.full(60, 1))).all()


def test_a_layer_that_stops_before_it_has_converged_prints_no_warning(monkeypatch):
    features = np.random.default_rng(1).normal(size=(60, 20)).astype(np.float32)
    images = Images(features, np.arange(60) % 3, np.ones(60), 3)
    converged = fit(images, 1.0)
    monkeypatch.setattr(candidates, "MOST_ITERATIONS", 1)
    with warnings.catch_warnings(record=True) as printed:
        warnings.simplefilter("always")
        stopped = fit(images, 1.0)
    assert not printed and not np.allclose(stopped.weights, converged.weights)


def test_weights_find_more_of_a_rare_class():
    random = np.random.default_rng(1)
    classes = np.repeat([0, 1], [380, 20])
    features = random.normal(size=(400, 6)).astype(np.float32)
    features[:, 0] += 1.5 * classes
    folds = random.permutation(400) % 5
    plain, weighed = (
        held_out(made(features, classes, weights), folds)[0].argmax(axis=1)
        for weights in (None, class_weights(classes))
    )
    found = [int(np.sum(answer[classes == 1])) for answer in (plain, weighed)]
    assert found[0] <= 5 and found[1] >= 12


def test_a_moved_layer_gives_its_answers_on_changed_features_of_photos_that_it_did_not_see():
    random = np.random.default_rng(1)
    features = random.normal(size=(600, 40)).astype(np.float32)
    classes = (features[:, :3] + 0.5 * random.normal(size=(600, 3))).argmax(axis=1)
    changed = features * random.uniform(0.7, 1.1, 40) + random.normal(size=40) + 0.1 * random.normal(size=(600, 40))
    seen, new = np.split(np.arange(600), [300])
    images = made(features, classes)
    layer = fit(images.some(seen), 0.1)
    expected = layer.logits(features[new]).argmax(axis=1)
    refitted = fit(images._replace(features=changed).some(seen), 0.1)
    agreement = [
        float(np.mean(one.logits(changed[new]).argmax(axis=1) == expected))
        for one in (layer, refitted, nearest_layer(layer, features[seen], changed[seen]))
    ]
    assert agreement[0] < 0.85 and agreement[2] > max(agreement[1], 0.93)
    same = nearest_layer(layer, features[seen], features[seen])
    assert np.allclose(same.weights, layer.weights) and np.allclose(same.bias, layer.bias)


def test_int8_weights_lie_on_codes_and_the_answers_stay():
    random = np.random.default_rng(1)
    features = np.rint(random.gamma(1, 8, (300, 64))).clip(0, 255).astype(np.float32) * np.float32(0.02)
    classes = (features[:, :3].argmax(axis=1)).astype(np.int64)
    layer = fit(made(features, classes), 1.0)
    int8 = quantize(layer, features)
    codes = int8.layer.weights / int8.step
    assert np.abs(codes - np.rint(codes)).max() < 1e-6 and np.abs(codes).max() <= 127
    logits = int8.logits(features)
    steps = logits / ((int8.ends[1] - int8.ends[0]) / 255)
    assert np.abs(steps - np.rint(steps)).max() < 1e-3, "logits lie on 256 codes"
    assert np.mean(logits.argmax(axis=1) == layer.logits(features).argmax(axis=1)) > 0.97
