"""Replacing a model: the recipe of the one to replace, and the comparison with it on photos that neither learnt from.

Each model reads a photo as it would on a device: with its own input, fit, region and range. For photos that it was trained on, a
model with folds gives its held-out answers; for others, it answers itself.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.evidence import AGAINST, verdict_of
from edgecnn.bundle.file import Bundle, read_bundle
from edgecnn.bundle.manifest import InputContract
from edgecnn.data import DATASETS, Dataset, Progress, open_dataset
from edgecnn.data.decoding import Decoder
from edgecnn.data.items import Item, Meter
from edgecnn.data.splits import position_of, texts_by
from edgecnn.errors import BundleError, UnknownNameError, nearest
from edgecnn.evaluate.answers import (
    TIED,
    device_model,
    input_contract,
    read_answers,
    read_taught,
    require_held_out,
    taught_images,
)
from edgecnn.evaluate.statistics import WORTH
from edgecnn.export import export_path
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe, Recipe, build_recipe, to_tables
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import ASKED, CHOICE, Run, without_folders, write_json
from edgecnn.stages import Reporter
from edgecnn.stages.verify import existing_exports
from edgecnn.tables import Struct
from edgecnn.train.settle import BY_NUMBER, reopened, settle, with_values
from edgecnn.verify.against import MAX_LOSS, Against, Counts, Model, Rule, judge, part, read_against
from edgecnn.verify.parity_report import LabelledFlip
from edgecnn.verify.predictions import GALLERY, thumbnail, write_pictures

ASKED_FOR = "asked"
"""Provenance key of a bundle: the recipe before the network was chosen, or folds voted."""


def asked_for(run: Run) -> dict[str, Any]:
    """Return the tables of the recipe that a run began with, for a bundle; empty if that is still the run's own recipe."""
    recipe = run.recipe
    if run.file(ASKED).exists():
        from edgecnn.stages.folds import asked_recipe

        recipe = asked_recipe(run)
    if choice := run.stored(CHOICE, NetworkChoice):
        sizes = {(one.height, one.width) for one in choice.candidates}
        free = ("name",) if len(sizes) == 1 else ("name", "height", "width")  # one size was requested
        recipe = with_values(recipe, {("network", key): None for key in free})
    return to_tables(without_folders(recipe)) if recipe is not run.recipe else {}


def former_tables(bundle: Bundle, key: str = ASKED_FOR) -> dict[str, Any]:
    """Return a bundle's recipe tables, as requested if it records that, else as trained; BundleError if it records neither."""
    provenance = bundle.manifest.provenance
    try:
        return dict(provenance.get(key) or provenance["recipe"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BundleError(f"{bundle.path} does not record its recipe. Name a recipe file.") from None


def by_these_images(recipe: Recipe, bundle: Bundle, dataset: Dataset) -> tuple[Recipe, list[str]]:
    """Reopen the keys that were set for a bundle's number of images; return its recipe, and lines on what is set differently for these.

    A value counts as set this way if it is what the bundle's number of images gives.
    """
    before = copy.copy(dataset)
    sizes: Mapping[str, Any] = dict(bundle.manifest.provenance.get("data", {}).get("split_sizes", {}))
    before.labels, before.sizes = bundle.manifest.labels, {split: int(sizes.get(split, 0)) for split in dataset.sizes}
    counts = f"{sum(dataset.sizes.values()):,} images, not {sum(before.sizes.values()):,}"
    opened = reopened(recipe, before)
    was, now = to_tables(recipe), to_tables(settle(opened, dataset))
    changed = ((table, key, was.get(table, {}).get(key), now[table].get(key)) for table, key in BY_NUMBER)
    return opened, [
        f"{table}.{key}: {value}, was {former}: {counts}"
        for table, key, former, value in changed
        if former not in (None, value)
    ]


def other_network(bundle: Bundle, run: Run) -> list[str]:
    """Return a line if photos have chosen a network or input for a run that differs from a bundle's, or an empty list."""
    old, new = bundle.manifest.input, run.info.input
    former = former_tables(bundle, "recipe").get("network", {}).get("name")
    was, now = f"{former} at {old.width}x{old.height}", f"{run.public_recipe.network.name} at {new.width}x{new.height}"
    return [] if was == now else [f"for these photos, {now} was chosen; {bundle.manifest.name} has {was}"]


ALIKE = "showing the same thing as a training photo of the {} model"


class Side(Struct):
    """One of the two models: its int8 `file`, its `recipe`, and what else its bundle or run records about it.

    `taught` is the split of each photo that it had, by hash, None without a list; `held` its folds' answers, by hash; `passed` the bundles
    that it may itself replace; `rule` is that of the groups that a user named for it, "" for none.
    """

    name: str
    serial: int = 0
    sha256: str | None = None
    file: bytes
    format: str
    labels: tuple[str, ...]
    contract: InputContract
    recipe: Recipe
    taught: Mapping[str, str] | None
    held: Mapping[str, str]
    earlier: Against | None
    passed: tuple[str, ...] = ()
    rule: str = ""

    @property
    def about(self) -> Model:
        return Model(
            name=self.name,
            serial=self.serial,
            sha256=self.sha256,
            model_sha256=sha256(self.file),
            taught_by="folds" if self.held else "content" if self.taught is None else "list",
        )

    def had(self, item: Item) -> bool:
        return item.hash in self.held or item.hash in (self.taught or {})

    def why_not(self, item: Item, given: frozenset[str]) -> str:
        """Return what the model learnt of a photo; "" if nothing. `given` are the splits that the source itself has."""
        if item.hash in self.held:
            return ""
        if self.taught is None and not self.held:
            by_content = position_of(item.hash) < self.recipe.data.test_fraction
            tested = item.split == "test" if "test" in given else by_content
            return "" if tested else "possibly in the training data of the {} model"
        split = (self.taught or {}).get(item.hash, "test")
        return {"test": "", TIED: ALIKE}.get(split, "in the training or validation data of the {} model")

    def left_out(self, items: Sequence[Item], dataset: Dataset) -> dict[str, str]:
        """Return why photos cannot count for the model, by hash: it learnt from them, or they are new to it and share a group, in the list
        or by its own rule, with one that it learnt from."""
        texts = texts_by(self.rule, items) if self.rule else {}

        def groups(item: Item) -> set[tuple[str, str]]:
            own = {(self.rule, texts[item.hash])} if item.hash in texts else set()
            return {("", dataset.group_of(item))} | own

        reasons = {item.hash: why for item in items if (why := self.why_not(item, dataset.given))}
        taught = {one for item in items if item.hash in self.held or item.hash in reasons for one in groups(item)}
        alike = {item.hash: ALIKE for item in items if not self.had(item) and groups(item) & taught}
        return alike | reasons


def bundle_side(bundle: Bundle) -> Side:
    """Open a bundle's int8 model. BundleError if it has none, or its lists cannot be read."""
    manifest, entry = bundle.manifest, bundle.entry("int8")
    if entry is None:
        raise BundleError(f"{bundle.path} contains no int8 model.")
    try:
        recipe = build_recipe(dict(manifest.provenance["recipe"]), str(bundle.path))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path} does not record its recipe: {error}.") from None
    return Side(
        name=manifest.name,
        serial=manifest.serial,
        sha256=bundle.sha256,
        file=bundle.files[entry.file],
        format=entry.format,
        labels=manifest.labels,
        contract=manifest.input,
        recipe=recipe,
        taught=read_taught(bundle),
        held={digest: row["int8"] for digest, row in read_answers(bundle).items()},
        earlier=read_against(bundle),
        passed=verdict_of(bundle).passed,
        rule=str((manifest.provenance.get("data", {}).get("groups") or {}).get("by", "")),
    )


def run_side(run: Run) -> Side:
    """Open a run's int8 export. RunError if it has none, or its held-out answers are gone."""
    format_, precision = next((pair for pair in existing_exports(run) if pair[1] == "int8"), ("tflite", "int8"))
    labels, held = run.info.data.labels, {}
    if run.info.folds:
        out = require_held_out(run)
        held = dict(zip(out.hashes.tolist(), (labels[index] for index in out.int8.argmax(axis=1)), strict=True))
    return Side(
        name=run.recipe.name or run.name,
        file=run.read(export_path(run, format_, precision).name, "export", "--int8"),
        format=format_,
        labels=labels,
        contract=input_contract(run),
        recipe=run.recipe,
        taught=taught_images(run),
        held=held,
        earlier=run.stored(AGAINST, Against),
        rule=run.info.data.groups.by if run.info.data.groups else "",
    )


def verify_against(
    run: Run, dataset: Dataset, old: Path, *, renamed: Mapping[str, str], rule: Rule, progress: Progress
) -> Against:
    """Compare a run's int8 export with an old bundle's, and write `against.json` and the pictures of photos with two answers.

    Raises BundleError if the old bundle cannot be used; UnknownNameError if `renamed` names a class that a model does not have.
    """
    made, pictures = compare_sides(bundle_side(read_bundle(old)), run_side(run), dataset, renamed, rule, progress)
    write_pictures(run, pictures)
    write_json(run.file(AGAINST), made)
    return made


def compare_bundles(
    old: Path, new: Path, data: str, *, renamed: Mapping[str, str], rule: Rule, reporter: Reporter
) -> tuple[Against, dict[int, np.ndarray]]:
    """Compare two bundles' int8 models on the photos of `data` that neither learnt from; return what `compare_sides` does."""
    one, other = bundle_side(read_bundle(old)), bundle_side(read_bundle(new))
    recipe = dataclasses.replace(other.recipe.data, source=data, unseen=None)
    dataset = open_dataset(recipe, progress=reporter.working, for_training=False, note=reporter.note)
    for line in dataset.left_out():
        reporter.note(line)
    return compare_sides(one, other, dataset, renamed, rule, reporter.working)


def compare_sides(
    old: Side, new: Side, dataset: Dataset, renamed: Mapping[str, str], rule: Rule, progress: Progress
) -> tuple[Against, dict[int, np.ndarray]]:
    """Return the comparison, and pictures of the first flips by index, uint8 (height, width, channels)."""
    for name, to in renamed.items():
        for label, labels, which in ((name, old.labels, "old"), (to, new.labels, "new")):
            if label not in labels:
                raise UnknownNameError(f"--renamed: the {which} model has no class {label!r}. {nearest(label, labels)}")
    now, of_data = ([renamed.get(label, label) for label in names] for names in (old.labels, dataset.labels))
    labels = tuple(dict.fromkeys((*new.labels, *now)))
    shared = set(now) & set(new.labels)
    counted, left = countable(old, new, dataset, of_data, shared)
    answers = [answered(side, counted, dataset, names, progress) for side, names in ((old, now), (new, new.labels))]
    items = [item for item in counted if all(item.hash in given for given in answers)]
    left["unreadable"] += len(counted) - len(items)
    one, other = ([given[item.hash] for item in items] for given in answers)
    true = [of_data[item.label] for item in items]
    columns = [np.array(list(map(labels.index, given)), np.int64) for given in (one, other, true)]
    had = np.array([old.had(item) for item in items], bool)
    groups = {"all": np.ones(len(items), bool)}
    if old.about.taught_by != "content":
        groups |= {"old": had, "new": ~had}
    by_folds = np.array([item.hash in old.held or item.hash in new.held for item in items], bool)
    worth = np.where(by_folds, WORTH, 1.0)
    parts = [
        part(name, (old.name, new.name), [column[chosen] for column in columns], labels, float(worth[chosen].mean()))
        for name, chosen in groups.items()
        if chosen.any()
    ]
    order = flips_in_order(*columns)
    counts = (parts[0].lost, parts[0].gained, parts[0].n) if parts else (0, 0, 0)
    balanced = dataset.balances(new.recipe.train.class_weights)
    by_class = counts_by_class(columns, len(labels)) if balanced else ()
    judgement = judge(*counts, rule, float(worth.mean()) if parts else 1.0, by_class)
    decode = decoder(dataset, new.contract).pixels
    pictures = {place: decode(items[index]) for place, index in enumerate(order[:GALLERY])}
    return Against(
        **vars(judgement),
        old=old.about,
        new=new.about,
        earlier=old.passed,
        rule=rule,
        margin=MAX_LOSS,
        balanced=balanced,
        parts=tuple(parts),
        added=tuple(label for label in new.labels if label not in shared),
        gone=tuple(label for label in old.labels if renamed.get(label, label) not in shared),
        renamed=dict(renamed),
        not_counted={why: photos for why, photos in left.items() if photos},
        unknown=tuple(unknown(old, new)),
        flips=tuple(
            LabelledFlip(source=items[index].source, true=true[index], reference=one[index], candidate=other[index])
            for index in order
        ),
        looks=1 + max((side.earlier.looks for side in (old, new) if side.earlier), default=0),
    ), {place: thumbnail(pixels) for place, pixels in pictures.items() if pixels is not None}


def counts_by_class(columns: Sequence[np.ndarray], width: int) -> list[Counts]:
    """Return each class's counts for `judge`; `columns` are both models' answers and the true classes, int (n,)."""
    one, other, true = columns
    chosen = (one == true) & (other != true), (one != true) & (other == true), np.ones(len(true), bool)
    return list(zip(*(np.bincount(true[which], minlength=width).tolist() for which in chosen), strict=True))


def countable(
    old: Side, new: Side, dataset: Dataset, labels: Sequence[str], shared: set[str]
) -> tuple[list[Item], Counter[str]]:
    """Return the photos of shared classes that neither model learnt from, each once, and the counts of the others by reason."""
    listed = {(item.hash, item.label): item for items in dataset.items.values() for item in items}
    often = Counter(digest for digest, _ in listed)
    items = list(listed.values())
    whys = {side: model.left_out(items, dataset) for side, model in (("old", old), ("new", new))}
    kept, left = [], Counter[str]()
    for item in items:
        reasons = (why[item.hash].format(side) for side, why in whys.items() if item.hash in why)
        if often[item.hash] > 1:
            left["with two labels"] += 1
        elif labels[item.label] not in shared:
            left["of classes that one of the models lacks"] += 1
        elif reason := next(reasons, ""):
            left[reason] += 1
        else:
            kept.append(item)
    return sorted(kept, key=lambda item: (labels[item.label], item.source)), left


def answered(
    side: Side, items: Sequence[Item], dataset: Dataset, labels: Sequence[str], progress: Progress
) -> dict[str, str]:
    """Return a model's answer to each photo, by hash, with classes named as in `labels`. Unreadable photos have none."""
    names = dict(zip(side.labels, labels, strict=True))
    found = {item.hash: names[side.held[item.hash]] for item in items if item.hash in side.held}
    asked = [item for item in items if item.hash not in found]
    model, decoding = device_model(side.file, side.format, side.contract), decoder(dataset, side.contract)
    meter = Meter(progress, f"running {side.name}", len(asked))
    for item in asked:
        if (pixels := decoding.pixels(item)) is not None:
            found[item.hash] = labels[int(model.logits(pixels[np.newaxis]).argmax())]
        meter.advance()
    return found


def decoder(dataset: Dataset, contract: InputContract) -> Decoder:
    shape = contract.height, contract.width, contract.channels
    recipe = DataRecipe(source=dataset.name, fit=contract.fit, region=contract.region, resampling=contract.resampling)
    return Decoder(read=dataset.read, recipe=recipe, shape=shape, other_resize=None)


def flips_in_order(one: np.ndarray, other: np.ndarray, true: np.ndarray) -> list[int]:
    """Return the photos with two answers: first those that only the old model classifies correctly, then only the new one."""
    return sorted(
        np.flatnonzero(one != other).tolist(), key=lambda row: (one[row] != true[row], other[row] != true[row])
    )


def unknown(old: Side, new: Side) -> list[str]:
    """Return lines on what is unknown about models that do not list their images."""
    return [
        f"{side.name} does not list its training images, so only photos count that its own rule assigns to the test split. "
        "It is unknown whether it was still trained on some of them, and whether photos were moved between splits."
        for side in (old, new)
        if side.about.taught_by == "content" and side.recipe.data.source not in DATASETS
    ]
