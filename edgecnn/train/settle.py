"""Values that a recipe leaves open, chosen to suit the images: network, input size, augmentation, batches, epochs, rate and smoothing."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from edgecnn.data import Dataset
from edgecnn.errors import RecipeError
from edgecnn.labels import STRANGER
from edgecnn.networks.pretrained import Source, locate, source_of
from edgecnn.recipe import ALWAYS, IF_BETTER, NEVER, RANDOM, NetworkRecipe, Recipe, Settled, to_tables

WARM_UP = 0.2  # fraction of the one-cycle schedule in which the rate rises

AVERAGED_WARM_UP = 1 / 3
"""Fraction of the averaged schedule in which the rate rises. Adam's first steps are as large as any; at the full rate they would undo
much of what the trained weights have learned."""


def one_cycle(done: float) -> float:
    """Rise linearly over the first fraction WARM_UP, then fall linearly to zero.

    Source: Smith and Topin 2018, "Super-Convergence" (arXiv:1708.07120), without its momentum cycle.
    """
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def cosine(done: float) -> float:
    """Fall from one to zero along half a cosine. Source: Loshchilov and Hutter 2017 (arXiv:1608.03983)."""
    return (1 + math.cos(math.pi * done)) / 2


ONE_CYCLE, AVERAGED = "one-cycle", "averaged"
"""The defaults; the second is for ImageNet weights. With it the rate rises and then stays constant, and the network is the average of the
weights over the steps (`edgecnn.train.best`)."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    ONE_CYCLE: one_cycle,
    "cosine": cosine,
    "constant": lambda done: 1.0,
    AVERAGED: lambda done: min(1.0, done / AVERAGED_WARM_UP),
}


def learning_rates(name: str, peak: float) -> Callable[[float], float]:
    """Return a function from the fraction of a phase done, in [0, 1), to the learning rate."""
    schedule = SCHEDULES[name]
    return lambda done: peak * schedule(done)


BACKBONE = "efficientnet_lite0_1200kb"  # the network that fine-tuning trains on a user's own photos

PLAIN = "article"  # the network for named datasets

BACKBONE_SIDE, TUNED_SIDE = 160, 128
"""Input rows and columns of a named network that starts from ImageNet, and of the one that fine-tuning trains if none is named."""

PHOTO_SIDE = 64  # rows or columns from which images get photo augmentation: crops of smaller ones are too blurred

SMALL_IMAGES = 48
MANY_SMALL_IMAGES = 5_000
"""With at least MANY_SMALL_IMAGES images of at most SMALL_IMAGES rows and columns, training from scratch beats ImageNet weights, at a
fraction of the device's time."""

FROM_NOTHING = "resnet_100kb"  # the network for such images

BATCHES = ((2_000, 32), (10_000, 64))
LARGEST_BATCH = 128
"""Training images below which each batch size applies: an epoch over few images still needs enough steps."""

STEPS, FINE_TUNING_STEPS, WHOLE_TUNING_STEPS = 3_000, 300, 600
"""Approximate steps of the float phase: from random weights, from trained ones, and when all of a few trained layers have to learn."""

EPOCHS, FINE_TUNING_EPOCHS = (10, 100), (3, 100)
"""Minimum and maximum epochs of the float phase: from random weights, and from trained ones."""

FEWEST_JUDGES = 30
"""Validation photos without which the head ships and nothing is fine-tuned. Five to ten of them chose the worse model in three of five
draws, by 8 to 17 points (docs/decisions.md)."""

QAT_STEPS, QAT_EPOCHS = 80, (2, 8)  # quantization-aware phase: approximate steps, and minimum and maximum epochs

TUNED_QAT_EPOCHS = (1, 3)
"""The same from trained weights. Each epoch ends with an int8 file being made and evaluated, which takes as long as 20 steps."""

ROBUST_EPOCHS = 1.25
"""Factor for the float phase's epochs with train.robust: a third of the images are harder, and the network learns the rest later."""

SMOOTHING, TUNED_SMOOTHING = 0.05, 0.1
"""Label smoothing from random weights, and from ImageNet, where a network soon overfits few photos."""

STRANGER_RATE = 0.05
"""Fraction of in-distribution photos that may be refused as strangers. It applies to training from ImageNet, where it was measured."""

RATE, FINE_TUNING_RATE, WHOLE_TUNING_RATE = 0.003, 0.0005, 0.001
"""Peak learning rates: from random weights, from trained ones, and from trained ones that are only part of a jointly trained network."""


def own_weights(recipe: Recipe) -> Source | None:
    """Return the ImageNet weights that training starts from; None if it starts from a run's or from random ones."""
    return None if recipe.init.source else source_of(recipe.network.name)


def starts_trained(recipe: Recipe) -> bool:
    """Return whether training starts from trained weights: a run's, or the network's ImageNet weights."""
    return recipe.init.source not in (None, RANDOM) or own_weights(recipe) is not None


def settle(recipe: Recipe, dataset: Dataset) -> Settled:
    """Return a complete recipe: every key left out is filled with a value that suits the images.

    Named datasets get the article's network, ten epochs and batches of 128, unless they start from trained weights. Raises RecipeError if
    a class has the name of the stranger decision.
    """
    network = settled_network(recipe, dataset)
    recipe = dataclasses.replace(recipe, network=network)
    source, trained = own_weights(recipe), starts_trained(recipe)
    train, count = recipe.train, dataset.sizes["train"]
    steps, limits, rate = (
        (FINE_TUNING_STEPS, FINE_TUNING_EPOCHS, FINE_TUNING_RATE) if trained else (STEPS, EPOCHS, RATE)
    )
    if source and network.name in source.tuned_whole:
        steps, rate = WHOLE_TUNING_STEPS, WHOLE_TUNING_RATE
    tuning = tuning_for(recipe, dataset)
    suitable = next((size for below, size in BATCHES if count < below), LARGEST_BATCH)
    if not dataset.own and not trained:
        steps, suitable = 0, LARGEST_BATCH
    batch_size = train.batch_size or suitable
    photo = dataset.own and min(network.height, network.width) >= PHOTO_SIDE
    epochs = epochs_for(steps, count, batch_size, limits)
    train = dataclasses.replace(
        train,
        batch_size=batch_size,
        epochs=train.epochs or (math.ceil(epochs * ROBUST_EPOCHS) if train.robust else epochs),
        learning_rate=train.learning_rate or rate,
        schedule=train.schedule or (AVERAGED if source else ONE_CYCLE),
        label_smoothing=(TUNED_SMOOTHING if source else SMOOTHING)
        if train.label_smoothing is None
        else train.label_smoothing,
        flip=train.flip or ("yes" if dataset.mirror else "no"),
        augment=train.augment or ("photo" if photo else "shift"),
        tuning=tuning,
    )
    if train.head_may_ship and (source is None or recipe.folds):
        raise RecipeError(
            f"train.tuning is {train.tuning}: it needs a network from ImageNet, and no folds, which compare head and fine-tuning anyway. "
            f"Name such a network and leave out folds, leave out train.tuning, or use {ALWAYS}."
        )
    qat = dataclasses.replace(recipe.qat, batch_size=recipe.qat.batch_size or suitable)
    if qat.epochs is None:
        qat_limits = TUNED_QAT_EPOCHS if trained else QAT_EPOCHS
        qat_steps = (QAT_STEPS // 4 if tuning == IF_BETTER else QAT_STEPS) if steps else 0
        qat = dataclasses.replace(qat, epochs=epochs_for(qat_steps, count, qat.batch_size, qat_limits))
    if recipe.qat.keep is not None and recipe.qat.keep > qat.epochs:
        raise RecipeError(f"qat.keep is {recipe.qat.keep}, expected at most {qat.epochs}, the value of qat.epochs.")
    stranger, taken = recipe.stranger, STRANGER in dataset.labels
    if stranger.decide is None:
        stranger = dataclasses.replace(stranger, decide=bool(stranger.rate))
    if stranger.rate is None:
        suits = dataset.own and source and not taken
        stranger = dataclasses.replace(stranger, rate=STRANGER_RATE if suits else 0.0)
    elif stranger.rate and taken:
        raise RecipeError(
            f"stranger.rate is {stranger.rate:g}, but a class is named {STRANGER!r}, the name of that decision. Rename the class's "
            "folder, or set stranger.rate to 0."
        )
    return cast(Settled, dataclasses.replace(recipe, network=network, train=train, qat=qat, stranger=stranger))


BY_NUMBER = (
    ("train", "batch_size"), ("train", "epochs"), ("train", "learning_rate"), ("train", "schedule"), ("train", "label_smoothing"),
    ("qat", "batch_size"), ("qat", "epochs"), ("stranger", "decide"),
)  # fmt: skip
"""Keys that the number of images settles if a recipe leaves them open."""


def reopened(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return a settled recipe without the values of BY_NUMBER that these images give: those that differ were set by a user."""
    opened, tables = with_values(recipe, dict.fromkeys(BY_NUMBER)), to_tables(recipe)
    given = to_tables(settle(opened, dataset))
    values = {(table, key): tables.get(table, {}).get(key) for table, key in BY_NUMBER}
    kept = {(table, key): value for (table, key), value in values.items() if value not in (None, given[table].get(key))}
    return with_values(opened, kept)


def with_values(recipe: Recipe, values: Mapping[tuple[str, str], Any]) -> Recipe:
    for (table, key), value in values.items():
        recipe = dataclasses.replace(recipe, **{table: dataclasses.replace(getattr(recipe, table), **{key: value})})
    return recipe


def settled_network(recipe: Recipe, dataset: Dataset) -> NetworkRecipe:
    """Return the network of a complete recipe: its name, or the usual one, and its input."""
    network = dataclasses.replace(recipe.network, name=recipe.network.name or usual_network(recipe, dataset))
    pretrained = own_weights(dataclasses.replace(recipe, network=network))
    side = BACKBONE_SIDE if recipe.network.name else TUNED_SIDE
    height, width = (side, side) if pretrained else dataset.shape[:2]
    return dataclasses.replace(
        network,
        height=network.height or height,
        width=network.width or width,
        channels=network.channels or dataset.shape[2],
    )


def has_rival(recipe: Recipe, dataset: Dataset) -> bool:
    """Return whether a fitted last layer may be as good as fine-tuning: on a user's photos, and with a network from ImageNet. With
    train.robust or a given int8 method, all of the training is what the user requested."""
    return own_weights(recipe) is not None and dataset.own and not (recipe.train.robust or recipe.qat.method)


def may_lose(recipe: Recipe, dataset: Dataset) -> bool:
    """Return whether the head ships by default unless fine-tuning wins on validation photos. With folds, all photos judge instead."""
    return has_rival(recipe, dataset) and dataset.sizes["validation"] > 0 and not recipe.folds


def tuning_for(recipe: Recipe, dataset: Dataset) -> str | None:
    """Return the recipe's `train.tuning`, or if it is open that which suits the images."""
    if recipe.train.tuning or not may_lose(recipe, dataset):
        return recipe.train.tuning
    return NEVER if dataset.sizes["validation"] < FEWEST_JUDGES else IF_BETTER


def require_start(recipe: Settled) -> None:
    """Raise ModuleNotFoundError if a settled recipe needs ImageNet weights that are not installed. The command line names the extra."""
    if source := own_weights(recipe):
        locate(source)


def images_choose(recipe: Recipe, dataset: Dataset) -> bool:
    """Return whether the network is chosen by last layers fitted to the images (`train.candidates`): for a user's own photos, if the recipe
    sets none, and limits it or may ship such a last layer. Otherwise fine-tuning trains the usual network."""
    network, train = recipe.network, recipe.train
    if network.name is not None or usual_network(recipe, dataset) != BACKBONE:
        return False
    named = dataclasses.replace(recipe, network=dataclasses.replace(network, name=BACKBONE))
    compared = train.head_may_ship or (train.tuning is None and may_lose(named, dataset))
    return is_limited(network) or train.head_only or compared


def is_limited(network: NetworkRecipe) -> bool:
    """Return whether a recipe limits the network that may be chosen, by its costs or by the sides of its input."""
    return any((network.height, network.width, network.max_kb, network.max_macs, network.max_ms))


def usual_network(recipe: Recipe, dataset: Dataset) -> str:
    if not dataset.own or recipe.init.source:
        return PLAIN
    small = max(dataset.shape[:2]) <= SMALL_IMAGES and dataset.sizes["train"] >= MANY_SMALL_IMAGES
    return FROM_NOTHING if small else BACKBONE


def epochs_for(steps: int, count: int, batch_size: int, limits: tuple[int, int]) -> int:
    least, most = limits
    return min(max(math.ceil(steps / max(1, count // batch_size)), least), most)


def reasons(before: Recipe, after: Recipe, dataset: Dataset) -> list[str]:
    """Return lines that report and explain the choices of `settle`."""
    lines, network = [], after.network
    count, size = dataset.sizes["train"], f"{network.width}x{network.height}"
    if before.network.name is None:
        why = {
            BACKBONE: f"it starts from ImageNet, which suits {count:,} photos",
            FROM_NOTHING: f"{count:,} images of {size} pixels are enough to train from scratch",
            PLAIN: "the default for named datasets and with --init",
        }[network.name]
        lines.append(f"network: {network.name} ({why}). Set network.name to change it.")
    if not (before.network.width and before.network.height):
        lines.append(
            f"input size: {size} pixels (width x height), chosen from the network and the images. "
            "Set network.width and network.height to change it."
        )
    fits_head = after.train.head_only or after.train.tuning == NEVER
    if not ((before.train.epochs and before.train.batch_size) or fits_head):
        most = "at most " if after.train.tuning == IF_BETTER else ""
        lines.append(
            f"training: {most}{after.train.epochs} epochs in batches of {after.train.batch_size}, chosen for {count:,} images"
        )
    return lines
