"""The stage that chooses a network and an input for the photos, and reads a backbone's file.

It sees training and validation images, never test images. Features are kept in the run, so that an interrupted choice can continue.
"""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgecnn.data import Dataset
from edgecnn.data.decoding import class_weights
from edgecnn.data.folds import undivided
from edgecnn.errors import NetworkError, RecipeError
from edgecnn.files import canonical_json, sha256
from edgecnn.labels import plural
from edgecnn.networks.pretrained import MEAN, SHA256, STD, is_backbone
from edgecnn.recipe import INPUT_RANGES, NEVER, Recipe, Settled, to_tables
from edgecnn.report.table import chosen_text
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.runs import CHECKPOINT, CHOICE, FEATURES, RECIPE, Run, write_json
from edgecnn.stages import Reporter, Silent

if TYPE_CHECKING:
    from edgecnn.calibrate.input_range import PixelRange
    from edgecnn.networks.keras import keras
    from edgecnn.train.candidates import Photos


R = TypeVar("R", bound=Recipe)

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


def settled(recipe: Recipe, dataset: Dataset, run: Run | None, reporter: Reporter, kept: Path | None = None) -> Settled:
    """Return the recipe with every open key closed for the images, the network first, and report each choice with its reason.

    Arguments and errors as in `choose_network`; without a run, which would store the choice, the network is the usual one.
    """
    from edgecnn.train.settle import FEWEST_JUDGES, reasons, require_start, settle

    named = choose_network(recipe, dataset, run, reporter, kept) if run else recipe
    chosen = settle(named, dataset)
    if chosen.train.tuning == NEVER != named.train.tuning:
        few = plural(dataset.sizes["validation"], "validation photo")
        reporter.note(
            f"{few} cannot judge whether fine-tuning helps ({FEWEST_JUDGES} can), so the last layer ships. To fine-tune: "
            "--set train.tuning=always"
        )
    if not (run and run.file(CHECKPOINT).exists()):
        require_start(chosen)
    for line in reasons(named, chosen, dataset):
        reporter.detail(line)
    return chosen


def choose_network(recipe: Recipe, dataset: Dataset, run: Run, reporter: Reporter, kept: Path | None = None) -> Recipe:
    """Return the recipe with the network that trains on the images; unchanged if it names one.

    The network whose fitted last layer answers best is chosen, and written to the run's `choice.json`. It is also the one that
    fine-tuning trains if the recipe limits the network. Otherwise that is the usual one, on which an epoch takes less time. Features of
    images are in the folder `kept`, by default in the run.

    Raises:
        RecipeError: if no candidate is within the budget.
        ModuleNotFoundError: if the ImageNet weights are not installed.
    """
    from edgecnn.train.settle import BACKBONE, TUNED_SIDE, is_limited, tuning_for

    if not images_choose(recipe, dataset):
        return recipe
    choosing = Choosing(recipe, dataset, reporter, kept or run.file(FEATURES))
    made = run.stored(CHOICE, NetworkChoice)
    if made is None or made.key != choosing.key:
        reporter.detail("choosing network and input for the images")
        made = choosing.choose()
        write_json(run.file(CHOICE), made)
    chosen = with_chosen(recipe, made)
    if recipe.train.head_only or tuning_for(chosen, dataset) == NEVER or is_limited(recipe.network):
        reporter.note(f"{chosen_text(made)}. --network and --size change it")
        return chosen
    rival = f"Fine-tuning trains {BACKBONE} at {TUNED_SIDE}x{TUNED_SIDE}, and ships if it beats that last layer"
    reporter.note(f"{chosen_text(made)}. {rival}. --network and --size change it")
    return recipe


def with_chosen(recipe: R, made: NetworkChoice) -> R:
    """Return a recipe with a chosen network and its input."""
    network = dataclasses.replace(recipe.network, name=made.network, height=made.height, width=made.width)
    return dataclasses.replace(recipe, network=network)


def of_head(recipe: R, dataset: Dataset, run: Run) -> R:
    """Return the recipe of a run whose head ships, which makes the same model again: of the chosen network if there was a choice, and as
    of --quick, unless the images cannot be divided into folds."""
    made = run.stored(CHOICE, NetworkChoice)
    kept: dict[str, Any] = (
        {"tuning": NEVER} if undivided(dataset, dataset.group_of) else {"head_only": True, "tuning": None}
    )
    train = dataclasses.replace(recipe.train, **kept)
    return dataclasses.replace(with_chosen(recipe, made) if made else recipe, train=train)


def other_head(recipe: Settled, run: Run) -> NetworkChoice | None:
    """Return the choice of a run whose chosen network is not the one that fine-tuning trains."""
    made, network = run.stored(CHOICE, NetworkChoice), recipe.network
    same = made is None or (made.network, made.height, made.width) == (network.name, network.height, network.width)
    return None if same else made


def is_kept(recipe: Recipe, dataset: Dataset, run: Run) -> bool:
    """Return whether a run holds the choice that these images make for this recipe."""
    made = run.stored(CHOICE, NetworkChoice)
    return made is not None and made.key == Choosing(recipe, dataset, Silent(), run.file(FEATURES)).key


def require_budget(recipe: Recipe, dataset: Dataset) -> None:
    """Raise RecipeError if no network that these images could choose is within the recipe's budget, as far as that is known."""
    Choosing(recipe, dataset, Silent(), Path()).inputs()


class Choosing:
    """A choice in progress: its inputs, and where it stores features."""

    def __init__(self, recipe: Recipe, dataset: Dataset, reporter: Reporter, features: Path) -> None:
        from edgecnn.train import candidates as rules

        self.recipe, self.dataset, self.reporter, self.features, self.rules = recipe, dataset, reporter, features, rules
        self.channels = recipe.network.channels or dataset.shape[2]
        limits = {name: value for name, value in vars(rules).items() if name.isupper()}
        hashes = [dataset.hashes[split] for split in ("train", "validation")]
        decisive = {"recipe": to_tables(recipe), "images": hashes, "limits": json.loads(json.dumps(limits))}
        self.key = sha256(canonical_json(decisive).encode())

    def choose(self) -> NetworkChoice:
        started = time.monotonic()
        from edgecnn.train.candidates import Photos

        recipe, rules = self.recipe, self.rules
        splits = [split for split in ("train", "validation") if self.dataset.sizes[split]]
        photos = Photos(self.dataset, splits, self.channels, recipe.seed, rules.MOST, self.reporter.working)
        weights = class_weights(photos.classes, recipe.train.class_weights)
        candidates, answers = self.answered(photos, weights)
        chosen, ranked = self.taken(candidates, answers, photos.classes, weights)
        return NetworkChoice(
            key=self.key,
            images=len(photos.hashes),
            balanced=len(set(weights.tolist())) > 1,
            budget=budget(recipe),
            candidates=tuple(ranked),
            network=chosen.network,
            height=chosen.height,
            width=chosen.width,
            why=why(chosen, next(one for one in ranked if one.fits)),
            seconds=round(time.monotonic() - started, 1),
        )

    def answered(self, photos: "Photos", weights: np.ndarray) -> tuple[list[Candidate], list[np.ndarray]]:
        """Return every candidate that may be within the budget, with its logits for each photo by a layer that did not see it."""
        from edgecnn.train.candidates import Images, frozen_features, held_out

        recipe, rules = self.recipe, self.rules
        reading = recipe.input_scale, recipe.input_zero_point
        inputs = self.inputs()
        folds = rules.folds_of(photos.classes, photos.groups, recipe.seed)
        found, fits = [], []
        with ThreadPoolExecutor(1) as pool:  # layers are fitted while the next features are computed
            for number, (family, size, candidates) in enumerate(inputs, 1):
                if fitting := [one for one in candidates if one.fits]:
                    features_of = frozen_features(family, size, photos, reading, self.features)
                    for one in fitting:
                        images = Images(features_of[one.network], photos.classes, weights, len(self.dataset.labels))
                        fits.append(pool.submit(held_out, images, folds))
                    found += fitting
                self.reporter.working("comparing networks and inputs", number, len(inputs))
            return found, [fit.result()[0] for fit in fits]

    def taken(
        self, candidates: list[Candidate], answers: list[np.ndarray], classes: np.ndarray, weights: np.ndarray
    ) -> tuple[Candidate, list[Candidate]]:
        """Return the chosen candidate and all of them; with a time limit, one whose int8 file is within it here."""
        limit, over = self.recipe.network.max_ms, list[Candidate]()
        while candidates:
            ranked = self.rules.ranked_candidates(candidates, answers, classes, weights)
            chosen = self.rules.cheapest_close(ranked)
            if limit is None or (chosen.ms is not None and chosen.ms <= limit):
                return chosen, ranked + over
            ms = milliseconds_of(chosen, self.recipe, self.channels, len(self.dataset.labels))
            self.reporter.note(f"{chosen.network} at {chosen.width}x{chosen.height}: {ms:.2f} ms per image here")
            candidates = [dataclasses.replace(one, ms=ms) if is_same(one, chosen) else one for one in candidates]
            if ms > limit:  # and so would those that multiply as much or more in as many layers
                slow = [one.whole == chosen.whole and one.macs >= chosen.macs for one in candidates]
                over += [dataclasses.replace(one, fits=False) for one, out in zip(candidates, slow, strict=True) if out]
                answers = [one for one, out in zip(answers, slow, strict=True) if not out]
                candidates = [one for one, out in zip(candidates, slow, strict=True) if not out]
        raise RecipeError(f"no network answers in {limit:g} ms here. Allow more, or name a network with --network.")

    def inputs(self) -> list[tuple[str, tuple[int, int], list[Candidate]]]:
        """Return each family and input's (height, width) with its candidates. RecipeError if none is within the budget."""
        rules = self.rules
        sizes = [(family, size) for family in rules.SIDES for size in rules.sides_of(family, self.recipe.network)]
        found = [(family, size, self.costed(family, size)) for family, size in sizes]
        self.check_budget([one for *_, candidates in found for one in candidates])
        return found

    def costed(self, family: str, size: tuple[int, int]) -> list[Candidate]:
        """Return a family's candidates at an input's (height, width) with their costs, not yet ranked."""
        from edgecnn.networks.blocks import costs, is_whole, rungs_of

        found = []
        for rung in rungs_of(family):
            cost = costs(rung, *size, self.channels, len(self.dataset.labels))
            one = Candidate(
                network=rung,
                height=size[0],
                width=size[1],
                whole=is_whole(rung),
                macs=cost.macs,
                int8_bytes=cost.int8_bytes,
                fits=True,
            )
            found.append(dataclasses.replace(one, fits=self.rules.fits_budget(one, self.recipe.network)))
        return found

    def check_budget(self, candidates: Sequence[Candidate]) -> None:
        """Raise RecipeError if no candidate is within the budget, as far as that is known."""
        if not any(one.fits for one in candidates):
            least = min(candidates, key=lambda one: one.macs)
            raise RecipeError(
                f"no network is within the budget ({budget(self.recipe)}). The smallest, {least.network} at {least.width}x{least.height}, "
                f"takes {least.int8_bytes:,} bytes and {least.macs:,} multiply-accumulates. Allow more, or name a network with --network."
            )


def is_same(one: Candidate, other: Candidate) -> bool:
    return (one.network, one.height, one.width) == (other.network, other.height, other.width)


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


def why(chosen: Candidate, best: Candidate) -> str:
    if is_same(chosen, best):
        return "its log loss on held-out photos is the lowest"
    lost = (chosen.log_loss or 0.0) - (best.log_loss or 0.0)
    points = f"{100 * chosen.behind:.1f} points less accurate" if chosen.behind > 0 else "no less accurate"
    return f"{lost:.3f} nats of log loss behind {best.network} at {best.width}x{best.height}, {points}, and cheaper"


TRIED = 300  # photos on whose features the usual input ranges are compared

RANGE = "input_range"
"""The key of a requested range in a recipe's network.options. A recipe with the SHA-256 has the range itself."""


def with_backbone(recipe: Recipe, dataset: Dataset, reporter: Reporter, run: Run | None = None) -> Recipe:
    """Return a recipe whose network is a FILE.onnx with all that it needs of the file: input, SHA-256 and range; others unchanged.

    A range that is not given is that of the usual ones under which a fitted last layer answers held-out photos best. If a `run` has begun
    with this file, its range is kept.

    Raises:
        NetworkError: if the file is missing, is not the recipe's, or does not end in a dense layer.
        ExportError: if it is not a classifier that edgecnn can read.
        RecipeError: if other keys contradict the file.
    """
    network = recipe.network
    if not is_backbone(network.name):
        return recipe
    from edgecnn.networks.pretrained import body_of, read_backbone

    path, options = Path(network.name), dict(network.options)
    asked = options.pop(RANGE, "auto")
    require_keys(recipe, path.name)
    reporter.note(f"reading {path}")
    backbone = read_backbone(path, options.get(SHA256))
    size = (network.height, network.width) if network.height and network.width else None
    body = body_of(backbone, str(path), size)
    height, width, channels = body.input_shape[1:]
    if network.channels not in (None, channels):
        raise RecipeError(f"{path.name} reads {channels} channels, not {network.channels}. Leave network.channels out.")
    input_range = network.input_range
    if SHA256 not in options:
        options[SHA256] = backbone.sha256
        begun = run.recipe.network if run and run.file(RECIPE).exists() else None
        if begun and asked == "auto" and begun.options.get(SHA256) == backbone.sha256:
            options, input_range = dict(begun.options), begun.input_range
        elif MEAN not in options and network.input_scale is None:
            found = given_range(asked) or best_range(body, recipe, dataset, reporter)
            if found.name in INPUT_RANGES:
                input_range = found.name
            elif found.mean and found.std:
                options |= {MEAN: text_of(found.mean), STD: text_of(found.std)}
    network = dataclasses.replace(
        network, height=height, width=width, channels=channels, input_range=input_range, options=options
    )
    return trainable(dataclasses.replace(recipe, network=network), body, path.name, reporter)


def require_keys(recipe: Recipe, name: str) -> None:
    options = recipe.network.options
    if unknown := sorted(options.keys() - {RANGE, MEAN, STD, SHA256}):
        raise RecipeError(f"network.options has {', '.join(unknown)}, which a backbone does not use. Leave it out.")
    if (MEAN in options) != (STD in options):
        raise RecipeError("a mean and a deviation go together: give --input-mean and --input-std.")
    if (MEAN in options) + (options.get(RANGE) not in (None, "auto")) + (recipe.network.input_scale is not None) > 1:
        raise RecipeError(f"the input range of {name} is given twice. Give --input-range, or a mean, or a scale.")
    if recipe.init.source:
        raise RecipeError(f"{name} brings its own weights to start from. Leave init.source (--init) out.")


def given_range(name: str) -> "PixelRange | None":
    """Return a usual range by its name; None for "auto"."""
    from edgecnn.calibrate.input_range import AUTO, RANGES, stated_range

    if name not in (AUTO, *RANGES):
        raise RecipeError(f"network.options.{RANGE} is {name!r}, expected one of {', '.join((AUTO, *RANGES))}.")
    return stated_range(name)


def best_range(body: "keras.Model", recipe: Recipe, dataset: Dataset, reporter: Reporter) -> "PixelRange":
    """Return the usual range under which last layers, each fitted without a fold, answer that fold's photos best. It sees no test photo."""
    from edgecnn.calibrate.input_range import IMAGENET, USUAL, spelled
    from edgecnn.networks.predict import predictor
    from edgecnn.train.candidates import Images, Photos, folds_of, held_out, log_losses

    _, height, width, channels = body.input_shape
    splits = [split for split in ("train", "validation") if dataset.sizes[split]]
    photos = Photos(dataset, splits, channels, recipe.seed, TRIED, reporter.working)
    pixels = photos.at_size(photos.places, (height, width, channels))
    weights = class_weights(photos.classes, recipe.train.class_weights)
    folds = folds_of(photos.classes, photos.groups, recipe.seed)
    tried = [*USUAL, *([IMAGENET] if channels == 3 else [])]
    losses, rights = [], []
    for number, one in enumerate(tried, 1):
        features = predictor(body, *one.numbers, batch_size=50)(pixels)
        images = Images(features, photos.classes, weights, len(dataset.labels))
        answers = held_out(images, folds)[0]
        losses.append(float(np.mean(weights * log_losses(answers, photos.classes))))
        rights.append(float(np.mean(answers.argmax(axis=1) == photos.classes)))
        reporter.working("trying input ranges", number, len(tried))
    best = tried[int(np.argmin(losses))]
    found = ", ".join(
        f"{one.name} {right:.1%} right (loss {loss:.2f})"
        for one, right, loss in zip(tried, rights, losses, strict=True)
    )
    reporter.note(
        f"the backbone reads pixels as {spelled(best)} ({best.name}): with it, fitted last layers answer {plural(len(pixels), 'photo')} "
        f"best: {found}. --input-range changes it."
    )
    return best


def trainable(recipe: Recipe, body: "keras.Model", name: str, reporter: Reporter) -> Recipe:
    """Return a recipe that quantizes after training if the network has layers that cannot be trained as int8, and name those.

    Raises NetworkError if the recipe needs int8 training.
    """
    from edgecnn.stages.import_ import named_layers, refused_by_training

    refused = {} if recipe.qat.method == "ptq" else refused_by_training(body)
    if not refused:
        return recipe
    text = f"{name}: {named_layers(refused, body)} cannot be trained as int8"
    if recipe.qat.method == "qat" or recipe.train.head_only:
        instead = "qat.method=qat" if recipe.qat.method == "qat" else "--quick"
        raise NetworkError(f"{text}. Leave out {instead}, so that it is quantized after training.")
    reporter.note(f"{text}, so it is quantized after training")
    return dataclasses.replace(recipe, qat=dataclasses.replace(recipe.qat, method="ptq"))


def text_of(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
