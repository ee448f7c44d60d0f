"""The stage that chooses a network and input for the images: it ranks candidates, tunes a shortlist briefly, and stores the results.

It sees training and validation images, never test images. Its results are kept in the run, so that an interrupted choice can continue.
"""

import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecnn.data import Dataset
from edgecnn.errors import RecipeError
from edgecnn.files import canonical_json, sha256, write_atomic
from edgecnn.recipe import Recipe, to_tables
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.runs import CHOICE, FEATURES, Run, write_json
from edgecnn.stages.reporter import Reporter, Silent
from edgecnn.tables import build
from edgecnn.verify.golden import npy

if TYPE_CHECKING:
    from edgecnn.train.frozen import Photos

TIMED_IMAGES = 4  # noise images to calibrate the timed int8 files, whose answers do not matter


def images_choose(recipe: Recipe, dataset: Dataset) -> bool:
    """Return whether the network is chosen for the images; ModuleNotFoundError if so and the ImageNet weights are not installed."""
    from edgecnn.networks.pretrained import SOURCES, locate
    from edgecnn.train import settle

    choose = settle.images_choose(recipe, dataset)
    for source in SOURCES if choose else ():
        locate(source)
    return choose


@contextlib.contextmanager
def unkept() -> Iterator[Run]:
    """Yield a temporary run for a choice that is only shown."""
    with tempfile.TemporaryDirectory() as folder:
        yield Run(Path(folder))


def choose_network(recipe: Recipe, dataset: Dataset, run: Run, reporter: Reporter, kept: Path | None = None) -> Recipe:
    """Return the recipe with the network and input chosen for the images; unchanged if it names a network.

    The choice is written to the run's `choice.json`. Features of images are in the folder `kept`, by default in the run.

    Raises:
        RecipeError: if no candidate is within the budget.
        ModuleNotFoundError: if the ImageNet weights are not installed.
    """
    if not images_choose(recipe, dataset):
        return recipe
    choosing = Choosing(recipe, dataset, reporter, kept or run.file(FEATURES))
    made = run.stored(CHOICE, NetworkChoice)
    if made is None or made.key != choosing.key:
        reporter.note("choosing network and input for the images")
        made = choosing.choose()
        write_json(run.file(CHOICE), made)
    for line in choice_lines(made):
        reporter.note(line)
    network = dataclasses.replace(recipe.network, name=made.network, height=made.height, width=made.width)
    return dataclasses.replace(recipe, network=network)


def is_kept(recipe: Recipe, dataset: Dataset, run: Run) -> bool:
    """Return whether a run holds the choice that these images make for this recipe."""
    made = run.stored(CHOICE, NetworkChoice)
    return made is not None and made.key == Choosing(recipe, dataset, Silent(), run.file(FEATURES)).key


class Choosing:
    """A choice in progress: its inputs, and where it stores its results."""

    def __init__(self, recipe: Recipe, dataset: Dataset, reporter: Reporter, features: Path) -> None:
        from edgecnn.train import candidates as rules

        self.recipe, self.dataset, self.reporter, self.features, self.rules = recipe, dataset, reporter, features, rules
        self.channels = recipe.network.channels or dataset.shape[2]
        limits = {name: value for name, value in vars(rules).items() if name.isupper()}
        hashes = [dataset.hashes[split] for split in ("train", "validation")]
        decisive = {"recipe": to_tables(recipe), "images": hashes, "limits": json.loads(json.dumps(limits))}
        self.key = sha256(canonical_json(decisive).encode())
        self.ranking = features / f"ranked-{self.key[:12]}.json"

    def choose(self) -> NetworkChoice:
        started = time.monotonic()
        from edgecnn.train.frozen import Photos

        recipe, rules, working = self.recipe, self.rules, self.reporter.working
        photos = Photos(self.dataset, ("train", "validation"), self.channels, recipe.seed, rules.SAMPLE, working)
        to_rank = photos.some(rules.RANKED, recipe.seed)
        candidates = self.known_ranking() or self.ranked(to_rank)
        listed = self.shortlisted([one for one in candidates if one.fits], len(to_rank.hashes))
        tuned, judged_by = self.compared(listed, photos) if len(listed) > 1 else (listed, 0)
        chosen = rules.taken(tuned) if judged_by else tuned[0]
        measured = {(one.network, one.height, one.width): one for one in tuned}
        return NetworkChoice(
            key=self.key,
            images=len(photos.hashes),
            judged_by=judged_by,
            budget=budget(recipe),
            candidates=tuple(measured.get((one.network, one.height, one.width), one) for one in candidates),
            network=chosen.network,
            height=chosen.height,
            width=chosen.width,
            why=why(chosen, tuned),
            seconds=round(time.monotonic() - started, 1),
        )

    def compared(self, shortlist: Sequence[Candidate], photos: "Photos") -> tuple[list[Candidate], int]:
        """Tune a shortlist briefly; return it with its accuracies and distances from the best, and the number of photos that judged it."""
        answers = np.stack([self.tuned(one, photos) for one in shortlist])
        right = (answers[:, (answers >= 0).all(axis=0)] == 1).astype(bool)
        return self.rules.compared(shortlist, right), right.shape[1]

    def known_ranking(self) -> list[Candidate]:
        """Return the ranking of an interrupted choice; empty if there was none, or its list cannot be used."""
        with contextlib.suppress(OSError, ValueError):
            ranking = json.loads(self.ranking.read_text(encoding="utf-8"))
            return [build(Candidate, item, ValueError) for item in ranking]
        return []

    def ranked(self, photos: "Photos") -> list[Candidate]:
        """Return every candidate with its cost and the accuracy on frozen features, best first, and store the list."""
        from edgecnn.train.frozen import frozen_features

        recipe, rules = self.recipe, self.rules
        reading = recipe.input_scale, recipe.input_zero_point
        inputs = [(family, size) for family in rules.SIDES for size in rules.sides_of(family, recipe.network)]
        costed = [self.costed(family, size) for family, size in inputs]
        self.check_budget([one for candidates in costed for one in candidates])
        found = []
        for number, ((family, size), candidates) in enumerate(zip(inputs, costed, strict=True), 1):
            features_of = frozen_features(family, size, photos, reading, self.features)
            self.reporter.working("ranking networks and inputs", number, len(inputs))
            for one in candidates:
                features = features_of[one.network]
                frozen = rules.frozen_accuracy(features, photos.classes, photos.groups, recipe.seed)
                found.append(dataclasses.replace(one, frozen=frozen))
        ranking = rules.best_first(found)
        write_json(self.ranking, tuple(ranking))
        return ranking

    def costed(self, family: str, size: tuple[int, int]) -> list[Candidate]:
        """Return a family's candidates at an input's (height, width) with their costs, not yet ranked."""
        from edgecnn.networks.efficientnet_lite import costs, is_whole

        found = []
        for rung, cost in costs(family, *size, self.channels, len(self.dataset.labels)).items():
            one = Candidate(
                network=rung,
                height=size[0],
                width=size[1],
                whole=is_whole(rung),
                macs=cost.macs,
                int8_bytes=cost.int8_bytes,
                frozen=0.0,
                fits=True,
            )
            found.append(dataclasses.replace(one, fits=self.rules.within(one, self.recipe.network)))
        return found

    def check_budget(self, candidates: Sequence[Candidate]) -> None:
        """Raise RecipeError if no candidate is within the budget, as far as that is known."""
        if not any(one.fits for one in candidates):
            least = min(candidates, key=lambda one: one.macs)
            raise RecipeError(
                f"no network is within the budget ({budget(self.recipe)}). The smallest, {least.network} at {least.width}x{least.height}, "
                f"takes {least.int8_bytes:,} bytes and {least.macs:,} multiply-accumulates. Allow more, or name a network with --network."
            )

    def shortlisted(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """Return the shortlist for `count` photos; with a time limit, of those whose int8 file is within it here."""
        limit, left, measured = self.recipe.network.max_ms, list(candidates), {}
        while limit is not None and left:
            unknown = [one for one in self.rules.shortlist(left, count) if one not in measured]
            if not unknown:
                break
            one = unknown[0]
            measured[one] = milliseconds_of(one, self.recipe, self.channels, len(self.dataset.labels))
            self.reporter.note(f"{one.network} at {one.width}x{one.height}: {measured[one]:.2f} ms per image here")
            if measured[one] > limit:  # and so would those that multiply as much or more in as many layers
                left = [other for other in left if other.whole != one.whole or other.macs < one.macs]
        if not left:
            raise RecipeError(f"no network answers in {limit:g} ms here. Allow more, or name a network with --network.")
        return [dataclasses.replace(one, ms=measured.get(one)) for one in self.rules.shortlist(left, count)]

    def tuned(self, candidate: Candidate, photos: "Photos") -> np.ndarray:
        """Tune a candidate briefly on all folds but the first; return int8 (n,): 1 for each photo of that fold that is right, else 0.

        A photo has -1 if it is left out at this size, since it is then the same as another one.
        """
        from edgecnn.train.settle import settle
        from edgecnn.train.train import Training

        name = f"{candidate.network}-{candidate.width}x{candidate.height}"
        path = self.features / f"tuned-{self.key[:12]}-{name}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        self.reporter.note(f"tuning {candidate.network} at {candidate.width}x{candidate.height} briefly")
        kept, held = next(self.rules.folds_of(photos.classes, photos.groups, self.recipe.seed))
        places = {photos.hashes[index]: "train" for index in kept} | {photos.hashes[i]: "validation" for i in held}
        part = self.dataset.redivided(places)
        network = dataclasses.replace(
            self.recipe.network, name=candidate.network, height=candidate.height, width=candidate.width
        )
        recipe = settle(dataclasses.replace(self.recipe, network=network), part)
        training = Training(recipe, part, None, self.reporter.training, self.reporter.working, None)
        last = max(1, math.ceil(self.rules.BRIEF * recipe.train.epochs))
        training.phase = dataclasses.replace(training.phase, last=last)
        training.train_float()
        judged = training.splits["validation"]
        right = training.float_answers().argmax(axis=1) == judged.classes
        by_place = dict(zip(judged.sources, right.tolist(), strict=True))
        found = np.array([by_place.get(photos.places[index][1], -1) for index in held], np.int8)
        write_atomic(path, npy(found))
        return found


def milliseconds_of(candidate: Candidate, recipe: Recipe, channels: int, classes: int) -> float:
    """Return the median milliseconds of a candidate's int8 file for one image, on one thread of this machine."""
    from edgecnn.evaluate.answers import contract_of, device_model, milliseconds
    from edgecnn.export import tflite
    from edgecnn.networks import build_network

    shape = (candidate.height, candidate.width, channels)
    images = np.random.default_rng(recipe.seed).integers(0, 256, (TIMED_IMAGES, *shape), np.uint8)
    drawn = tflite.RepresentativeDataset(images, recipe.input_scale, recipe.input_zero_point)
    data = tflite.int8_post_training(build_network(candidate.network, *shape, classes), drawn, signature=False)
    model = device_model(data, "tflite", contract_of(recipe, shape))
    return milliseconds({"int8": model.logits}, images[:1])["int8"]


def budget(recipe: Recipe) -> str:
    """Return the limits of a recipe's network as text; "" without a limit."""
    network = recipe.network
    limits = [
        f"{network.max_kb:,g} kB" if network.max_kb else "",
        f"{network.max_macs:,.0f} multiply-accumulates" if network.max_macs else "",
        f"{network.max_ms:g} ms here" if network.max_ms else "",
    ]
    return ", ".join(filter(None, limits))


def why(chosen: Candidate, tuned: Sequence[Candidate]) -> str:
    if chosen.behind is None:
        return "no other is better on frozen features by more than chance"
    best = max(tuned, key=lambda one: one.tuned or 0.0)
    assert chosen.behind_error is not None
    if chosen == best or not chosen.behind:
        return "the best of the shortlist" if chosen == best else "as good as the best of the shortlist, and cheaper"
    return (
        f"{100 * chosen.behind:.1f} points behind {best.network} at {best.width}x{best.height}, less than the standard error of "
        f"{100 * chosen.behind_error:.1f}, and cheaper"
    )


def choice_lines(choice: NetworkChoice) -> list[str]:
    limit = f" within {choice.budget}" if choice.budget else ""
    return [
        f"network: {choice.network} at {choice.width}x{choice.height}, chosen by {choice.images:,} images{limit}: {choice.why}; "
        "--network and --size change it"
    ]
