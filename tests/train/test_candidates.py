"""Which candidates are tuned and which one wins: rules on figures, and a choice on real photos that continues after a kill."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.errors import RecipeError
from edgecnn.recipe import NetworkRecipe, build_recipe
from edgecnn.report.choice import choice_rows, judged_line
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.runs import CHOICE, FEATURES, create_run
from edgecnn.stages import network_choice
from edgecnn.stages.network_choice import choose_network
from edgecnn.train import candidates as rules
from edgecnn.train import frozen


def candidate(network, side=160, *, frozen=0.9, macs=100, whole=False):
    return Candidate(
        network=network, height=side, width=side, whole=whole, macs=macs, int8_bytes=macs, frozen=frozen, fits=True
    )


def test_the_shortlist_keeps_networks_that_differ():
    best = candidate("cut", 224, frozen=0.95, macs=300)
    sibling = candidate("cut", 192, frozen=0.945, macs=250)
    cheap = candidate("small", 96, frozen=0.8, macs=20)
    cheaper = candidate("small", 64, frozen=0.7, macs=10)
    whole = candidate("whole", 224, frozen=0.9, macs=400, whole=True)
    many = 10_000  # photos: a standard error of 0.2 points
    assert rules.shortlist([sibling, cheaper, whole, cheap, best], many) == [best, cheap, whole]
    assert rules.shortlist([sibling, best], many) == [best], "the same network at another size teaches little"
    assert rules.shortlist([whole, cheap], many) == [whole, cheap]
    assert rules.shortlist([], many) == []
    few = 1_600  # photos: two standard errors of 1.1 points
    assert rules.shortlist([sibling, whole, best], few) == [sibling, whole], (
        "smaller, and as good as far as can be known"
    )
    large, costly = candidate("other", 160, frozen=0.945, macs=280), candidate("other", 260, frozen=0.947, macs=900)
    assert rules.shortlist([sibling, best, costly, large], few) == [sibling, large], "so is the rest of the list"


def test_the_cheapest_of_equally_good_candidates_wins():
    few = [candidate("large", macs=300), candidate("middle", macs=200), candidate("small", macs=100)]
    right = np.ones((3, 200), bool)
    right[0, :10] = False
    right[1, 8:20] = False  # 2 more errors in 200: one point, within the standard error of 18 images that differ
    right[2, :30] = False
    tuned = rules.compared(few, list(right))
    assert [one.behind for one in tuned] == pytest.approx([0, 0.01, 0.1])
    assert tuned[1].behind_error == pytest.approx(np.sqrt(22 - 4 / 200) / 200, rel=0.2)
    assert rules.taken(tuned).network == "middle"
    right[1, 20:22] = False  # two points behind, more than one
    assert rules.taken(rules.compared(few, list(right))).network == "large"
    right[2] = right[0]
    assert rules.taken(rules.compared(few, list(right))).network == "small"


def test_a_candidate_may_be_as_good_as_its_limits():
    one = dataclasses.replace(candidate("a", macs=1_000), int8_bytes=96_150)  # 99,996 bytes with 4 % more
    for limits, fits in (
        ({"max_kb": 100.0}, True),
        ({"max_kb": 99.9}, False),
        ({"max_macs": 1_000.0}, True),
        ({"max_macs": 999.0}, False),
        ({"max_macs": 999.0, "max_kb": 100.0}, False),
        ({"max_macs": 1_000.0, "max_kb": 99.0}, False),
        ({}, True),
    ):
        assert rules.within(one, NetworkRecipe(**limits)) == fits, limits
    third, more = candidate("third", frozen=0.8, macs=100), candidate("more", frozen=0.7, macs=101)
    best = candidate("best", frozen=0.95, macs=300)
    other = candidate("other", frozen=0.9, macs=200)
    assert rules.shortlist([best, third], 10_000) == [best, third]
    assert rules.shortlist([best, other, more, third], 10_000) == [best, third, other], "much cheaper is a third"
    assert rules.best_first([candidate("b", macs=7), candidate("c", frozen=0.5, macs=1), candidate("a", macs=6)])[
        0
    ].network == ("a"), "of equally good ones the cheaper"


def test_one_side_in_the_recipe_stands_for_both():
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(height=96)) == ((96, 96),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(width=64)) == ((64, 64),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe(height=96, width=64)) == ((96, 64),)
    assert rules.sides_of("efficientnet_lite2", NetworkRecipe()) == ((160, 160), (224, 224), (260, 260))


def test_the_reason_for_a_choice_and_its_budget_in_words():
    large, small = dataclasses.replace(candidate("large", macs=300), width=224), candidate("small", 96)
    right = np.ones((2, 400), bool)
    right[0, :8] = False
    right[1, 4:14] = False
    tuned = rules.compared([large, small], list(right))
    assert network_choice.why(tuned[0], tuned) == "the best of the shortlist"
    # 6 lost and 4 gained of 400: 0.5 points, and sqrt(10 - 4 / 400) / 400
    assert network_choice.why(rules.taken(tuned), tuned) == (
        "0.5 points behind large at 224x160, less than the standard error of 0.8, and cheaper"
    )
    right[1] = np.roll(right[0], 30)
    tied = rules.compared([large, small], list(right))
    assert network_choice.why(tied[1], tied) == "as good as the best of the shortlist, and cheaper"
    recipe = build_recipe({"network": {"max_kb": 1_500.5, "max_macs": 2e7, "max_ms": 7.5}})
    budget = network_choice.budget(recipe)
    assert budget == "1,500.5 kB, 20,000,000 multiply-accumulates, 7.5 ms here"
    assert network_choice.budget(build_recipe({})) == ""
    made = NetworkChoice(
        key="0" * 64, images=1_234, judged_by=247, budget=budget, candidates=(), network="small", height=96, width=128,
        why="the best of the shortlist", seconds=3.0,
    )  # fmt: skip
    (line,) = network_choice.choice_lines(made)
    assert line.startswith(
        f"network: small at 128x96, chosen by 1,234 images within {budget}: the best of the shortlist"
    )
    assert "1,234 images: the best" in network_choice.choice_lines(dataclasses.replace(made, budget=""))[0]


def test_regression_is_tested_on_held_out_images():
    random = np.random.default_rng(1)
    classes = np.repeat([0, 1], 50)
    noise = random.normal(size=(100, 400)).astype(np.float32)
    groups = [str(index) for index in range(100)]
    assert 0.3 < rules.frozen_accuracy(noise, classes, groups, 1) < 0.7, (
        "more features than images: fitted ones would be right"
    )
    noise[:, 0] += 20 * classes
    assert rules.frozen_accuracy(noise, classes, groups, 1) > 0.95
    twins = np.concatenate([noise[:, 1:], noise[:, 1:]])
    apart = rules.frozen_accuracy(twins, np.tile(classes, 2), [*groups, *(f"{one}b" for one in groups)], 1)
    together = rules.frozen_accuracy(twins, np.tile(classes, 2), groups * 2, 1)
    assert apart > 0.9 and together < 0.7, "copies share a fold, so that no fold knows its own"


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


def test_an_interrupted_choice_resumes_and_respects_the_budget(crops, tmp_path, reporter, monkeypatch):
    recipe = build_recipe(
        {
            "data": {"source": str(crops)},
            "network": {"height": 32, "width": 32, "max_macs": 2e7},
            "train": {"epochs": 1, "batch_size": 16, "schedule": "cosine"},
        }
    )
    monkeypatch.setattr(rules, "SIDES", {"efficientnet_lite0": (32,)})
    monkeypatch.setattr(rules, "RANKED", 20)
    monkeypatch.setattr(rules, "FEWEST_TUNED", 20)
    dataset, run = open_dataset(recipe.data), create_run(recipe, tmp_path / "run")
    tuned = network_choice.Choosing.tuned
    first = []

    def killed_at_the_second(self, candidate, photos):
        if first:
            raise KeyboardInterrupt
        first.append(candidate.network)
        return tuned(self, candidate, photos)

    def worse_than_the_first(self, candidate, photos):
        answers = tuned(self, dataclasses.replace(candidate, network=first[0]), photos)
        return answers if candidate.network == first[0] else np.minimum(answers, 0)

    monkeypatch.setattr(network_choice.Choosing, "tuned", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        choose_network(recipe, dataset, run, reporter)
    before = {path: path.read_bytes() for path in run.file(FEATURES).iterdir()}
    assert len(before) == 3, "the features, the ranking, and the photos that the first candidate classifies correctly"
    (features,) = run.file(FEATURES).glob("*.npz")
    assert len(frozen.read_features(features)[0]) == 20, "fewer photos are enough to rank by"

    monkeypatch.setattr(network_choice.Choosing, "tuned", worse_than_the_first)
    monkeypatch.setattr(import_module("edgecnn.train.train"), "Training", None)
    monkeypatch.setattr(frozen, "computed", None)
    monkeypatch.setattr(network_choice.Choosing, "ranked", None)
    chosen = choose_network(recipe, dataset, run, reporter)
    assert {path: path.read_bytes() for path in before} == before
    made = run.stored(CHOICE, NetworkChoice)
    assert (chosen.network.name, chosen.network.height) == (made.network, 32) == (first[0], 32)
    taken = next(one for one in made.candidates if one.network == made.network)
    assert taken.macs <= 2e7 and taken.tuned > 0 and taken.behind == 0
    assert made.images == dataset.sizes["train"] + dataset.sizes["validation"]
    rows = choice_rows(made)
    assert len(rows) == 4 and [row[-1] for row in rows].count("chosen") == 1
    assert made.network in judged_line(made)

    monkeypatch.setattr(network_choice.Choosing, "choose", None)
    assert choose_network(recipe, dataset, run, reporter) == chosen, "the choice is not made again"


def test_few_photos_choose_without_tuning(crops, tmp_path, reporter, monkeypatch):
    recipe = build_recipe({"data": {"source": str(crops)}, "network": {"height": 32, "width": 32}})
    monkeypatch.setattr(rules, "SIDES", {"efficientnet_lite0": (32,)})
    monkeypatch.setattr(network_choice.Choosing, "tuned", None)
    dataset, run = open_dataset(recipe.data), create_run(recipe, tmp_path / "run")
    chosen = choose_network(recipe, dataset, run, reporter)
    made = run.stored(CHOICE, NetworkChoice)
    assert chosen.network.name == made.network == rules.for_few(made.candidates, made.images).network
    assert made.judged_by == 0 and all(one.tuned is None for one in made.candidates)
    assert made.why == "no other is better on frozen features by more than chance"
    line = judged_line(made)
    assert "ranked the networks. It took" in line and "tuned" not in line


def test_few_photos_get_one_network_unless_another_is_better():
    name = "efficientnet_lite0_4000kb"
    small, usual, large = (candidate(name, side, frozen=0.88, macs=side, whole=True) for side in (96, 160, 224))
    best, cheap = candidate("best", frozen=0.9, macs=800), candidate("cheap", frozen=0.88, macs=50)
    assert rules.shortlist([cheap, small, large, usual, best], 309) == [usual]
    assert rules.shortlist([cheap, large, best], 309) == [large], "the closest in size, such as the recipe's"
    assert rules.shortlist([cheap, best], 309) == [cheap], "without it, the cheapest that is equally good"
    # two standard errors of 0.88 are 3.7 points with 309 photos, and 2.8 of 0.935
    better, good = candidate("better", frozen=0.935, macs=900), candidate("good", frozen=0.91, macs=100)
    assert rules.shortlist([cheap, usual, better, good], 309) == [good]
    right = candidate("right", frozen=1.0, macs=20)
    assert rules.shortlist([usual, right], 25) == [usual], "three of 25 photos may be chance"
    assert len(rules.shortlist([cheap, usual, best], 310)) == 3, "a fold of 62 judges these"


def test_an_impossible_budget_reports_what_the_smallest_takes(crops, tmp_path, reporter, monkeypatch):
    tables = {"data": {"source": str(crops)}, "network": {"height": 32, "width": 32}}
    recipe = build_recipe(tables)
    recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, max_kb=10.0))
    monkeypatch.setattr(rules, "SIDES", {"efficientnet_lite0": (32,)})
    monkeypatch.setattr(frozen, "computed", None)  # the answer comes before the long part of a choice
    with pytest.raises(
        RecipeError, match=r"no network is within the budget \(10 kB\)\. The smallest, efficientnet_lite0_150kb"
    ):
        choose_network(recipe, open_dataset(recipe.data), create_run(recipe, tmp_path / "run"), reporter)


def test_a_time_budget_is_measured_for_few_and_applies_to_all(crops, tmp_path, reporter, monkeypatch):
    recipe = build_recipe({"data": {"source": str(crops)}, "network": {"max_ms": 15.0}})
    choosing = network_choice.Choosing(recipe, open_dataset(recipe.data), reporter, tmp_path)
    timed = []

    def milliseconds(one, *others):
        timed.append(one.network)
        return one.macs / 10

    monkeypatch.setattr(network_choice, "milliseconds_of", milliseconds)
    listed = [
        candidate(f"network{index}", frozen=0.9 - index / 100, macs=400 - 50 * index, whole=index < 2)
        for index in range(8)
    ]
    chosen = choosing.shortlisted(listed, 10_000)
    assert [one.macs for one in chosen] and all(one.macs <= 150 and one.ms == one.macs / 10 for one in chosen)
    assert len(set(timed)) == len(timed) < len(listed) + 1
    monkeypatch.setattr(network_choice, "milliseconds_of", lambda one, *others: 99.0)
    with pytest.raises(RecipeError, match="no network answers in 15 ms here"):
        choosing.shortlisted(listed, 10_000)
