"""A dataset: divided, fingerprinted, and decoded split by split on request; and a run's record of it.

The record is the list of images, written when the run begins, and read and checked when it continues. The images that a run or a bundle
began with are looked for among those in the folder now, so adding photos does not lock a run.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from edgecnn import images
from edgecnn.data import splits
from edgecnn.data.decoding import Decoder, Split, is_unbalanced, picture, rooms
from edgecnn.data.items import (
    NAMED,
    PASSING,
    Item,
    LabelledImages,
    Meter,
    Note,
    Progress,
    emptied,
    too_many,
    unreadable,
    unreadable_text,
)
from edgecnn.errors import DatasetError, ImageError, RunError, SplitError, UnknownNameError, nearest
from edgecnn.files import csv_rows, csv_text, sha256, write_atomic
from edgecnn.labels import SPLITS_CSV, plural, printable
from edgecnn.pixels import as_array, resize
from edgecnn.recipe import DataRecipe
from edgecnn.region import whole_size
from edgecnn.run_info import Conflict, DataInfo, Duplicate, GroupInfo, Unreadable
from edgecnn.runs import IMAGES, Run
from edgecnn.tables import Struct

Divided = dict[str, tuple[Item, ...]]


class Known(Struct):
    """The record of the images: the classes, and each file by (split, class, SHA-256), if a list was stored."""

    labels: tuple[str, ...]
    files: Mapping[tuple[str, str, str], list[str]]

    def only(self, divided: Divided, labels: Sequence[str]) -> Divided:
        """Return the known items in their splits; without a list, all items of the known classes."""
        numbers = {labels.index(label): number for number, label in enumerate(self.labels) if label in labels}
        items = [
            dataclasses.replace(item, label=numbers[item.label])
            for part in divided.values()
            for item in part
            if item.label in numbers
        ]
        if self.files:
            items = list(self._listed(items))
        return splits.in_splits((item, item.split) for item in items)

    def missing(self, divided: Divided, split: str) -> list[str]:
        """Return the listed files of a split that are not among the items."""
        found = Counter((split, self.labels[item.label], item.hash) for item in divided[split])
        return [file for key, files in self.files.items() if key[0] == split for file in files[found[key] :]]

    def _listed(self, items: Sequence[Item]) -> Iterator[Item]:
        left = {key: len(files) for key, files in self.files.items()}
        moved = []
        for item in items:
            key = (item.split, self.labels[item.label], item.hash)
            if left.get(key):
                left[key] -= 1
                yield item
            else:
                moved.append(item)
        for item in moved:
            for split in splits.SPLITS:
                key = (split, self.labels[item.label], item.hash)
                if left.get(key):
                    left[key] -= 1
                    yield dataclasses.replace(item, split=split)
                    break


PRECEDENCE = ("test", "validation", "train")
"""An image in two splits stays in the one that comes first here."""

MAY_SEE_TEST = ("verify", "stress")
"""Stages that may see the test split: they report, and choose nothing."""


class Dataset:
    """Labelled images, listed, hashed and divided; `open_dataset` makes one. See `LabelledImages` for the parts of a source.

    Attributes:
        sizes: images per split, as listed, before duplicates are kept out.
        hashes, fingerprint: SHA-256 of labels and content hashes, per split and over all.
        duplicates: images kept out of their split; loading "train" fills it.
        conflicts: images in more than one class; all of them are used.
        unreadable: images left out because they cannot be read; loading adds those that cannot be decoded.
        given: the splits that the source itself has; only "train" if it leaves the choice to edgecnn.
        moved: whether the images are in other splits than edgecnn's own rule gives; see `redivided`.
        known: a run's or a bundle's record of its images: only these are in the splits.
        lists, place: edgecnn's own files next to the images, by name, and the folder for them; None if they cannot be written.
        split_groups: split and group of images by hash, if stored or computed; see `with_split_groups`.
        tied: test images, by hash, that are a copy of an image of another split, and that one.
        anew, groups_note: whether `with_split_groups` divided listed images anew, and a line about folders that are no groups, or "".
    """

    def __init__(
        self,
        listed: LabelledImages,
        recipe: DataRecipe,
        for_training: bool = True,
        note: Note = lambda text: None,
        known: Known | None = None,
    ):
        """Divide the images of a source, by content unless a list or the source says otherwise; DatasetError as in `check`."""
        self.name = listed.name
        self.title = recipe.title or listed.title
        self.labels = listed.labels
        self.shape = listed.shape
        self.mirror, self.own = listed.mirror, listed.own
        self.skipped, self.faults = listed.skipped, listed.faults
        self.unreadable = self._unlisted = listed.unreadable
        self.note = note
        self._file_noted = False
        self.moved = False
        self.duplicates: tuple[Duplicate, ...] = ()
        self._decoded: dict[tuple[int, int, int], tuple[Decoder, dict[str, Split]]] = {}
        self._recipe, self.region = recipe, recipe.region
        self.read = listed.read
        self.lists, self.place = listed.lists, listed.place
        self.given = frozenset(item.split for item in listed.items)
        self.split_groups: splits.SplitGroups = {}
        self.tied: Mapping[str, str] = {}
        self.anew, self.groups_note = False, ""
        if SPLITS_CSV in self.lists and self.left_to_edgecnn:
            self.split_groups = splits.read_split_groups(self.lists[SPLITS_CSV], f"{self.name}: {SPLITS_CSV}")
        self.items = splits.divide(listed.items, recipe, splits.splits_of(self.split_groups))
        self.known = known
        if known:
            self.items, self.labels = known.only(self.items, self.labels), known.labels
            if unknown := len(listed.items) - sum(map(len, self.items.values())):
                note(f"{self.name}: left out {plural(unknown, 'image')} added after training began")
        self._for_training = for_training
        if known or not self.left_to_edgecnn:  # else `with_split_groups` divides again
            self.check()
        self._describe()

    @property
    def left_to_edgecnn(self) -> bool:
        """Whether the images are a user's own, without splits."""
        return self.own and self.given == {"train"}

    def check(self) -> None:
        """For training, raise DatasetError if a class has no training image, or validation or test is empty."""
        if self._for_training:
            splits.check(self.items, self.labels, self._recipe, self.name)

    def _describe(self) -> None:
        self.sizes = {split: len(items) for split, items in self.items.items()}
        self.hashes = {split: splits.digest(items, self.labels) for split, items in self.items.items()}
        self.fingerprint = splits.digest(chain(*self.items.values()), self.labels, with_split=True)
        self.conflicts = find_conflicts(self.items, self.labels)

    def redivided(self, places: Mapping[str, str]) -> "Dataset":
        """Return the same images in other splits, `places` by content hash; those without a place are left out. Nothing is decoded."""
        other = copy.copy(self)
        items = [item for part in self.items.values() for item in part if places.get(item.hash) in splits.SPLITS]
        other.items = splits.in_splits((item, places[item.hash]) for item in items)
        other.duplicates, other._decoded, other.moved = (), {}, True
        other._describe()
        return other

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of images that each split should have."""
        held_out = self._recipe.validation_fraction, self._recipe.test_fraction
        return dict(zip(splits.SPLITS, (1 - sum(held_out), *held_out), strict=True))

    def with_split_groups(self, known: splits.SplitGroups, links: Sequence[splits.Link]) -> "Dataset":
        """Return the same images, each in the split of its group: `known` split groups stay, `links` connect copies, and frames of a burst.

        Known ones of other groups than the recipe's `group_by` do not stay. DatasetError if that makes no groups, or as in `check`.
        """
        listed = [item for part in self.items.values() for item in part]
        items = {item.hash: item for item in sorted(listed, key=lambda item: item.source, reverse=True)}
        groups = splits.grouping(listed, self.labels, self._recipe.group_by, known)
        classes = {one: items[one].label for one in sorted(items)}
        split_groups = splits.updated(groups, classes, self.shares, links)
        if not splits.is_former(split_groups):
            split_groups |= {one: split_groups[one]._replace(path=item.source) for one, item in items.items()}
        other = self.redivided(splits.splits_of(split_groups))
        other.split_groups, other.tied, other.moved = (
            split_groups,
            splits.tied(split_groups, links, groups.known),
            self.moved,
        )
        other.anew, other.groups_note = len(groups.known) < len(known), groups.line
        other.check()
        return other

    def require_groups(self) -> None:
        """Raise DatasetError if the recipe groups images that are not a user's own, or have splits."""
        if self._recipe.group_by not in (None, splits.NONE) and not self.left_to_edgecnn:
            raise DatasetError(
                f"--group-by divides your own photos in class folders, and {self.name} is a named dataset, or has splits. Leave it out, or "
                "put all photos into one set of class folders."
            )

    def group_of(self, item: Item) -> str:
        return self.split_groups[item.hash].group if item.hash in self.split_groups else item.hash

    def class_counts(self) -> list[int]:
        counts = Counter(item.label for items in self.items.values() for item in items)
        return [counts[number] for number in range(len(self.labels))]

    def balances(self, rule: str) -> bool:
        """Return whether every class counts the same when something is chosen, by the recipe's `train.class_weights`."""
        return self.own and rule != "none" and is_unbalanced(self.class_counts())

    def groups(self) -> GroupInfo | None:
        """Return the number of groups in each split, if a user named them."""
        rule = splits.rule_of(self.split_groups)
        counts = {split: len(set(map(self.group_of, items))) for split, items in self.items.items()}
        return GroupInfo(by=rule, splits=counts) if rule else None

    def order_classes(self, labels: Sequence[str]) -> None:
        """Number the classes as in another list, which may have more; DatasetError if a class is not in that list."""
        if unknown := [label for label in self.labels if label not in labels]:
            raise DatasetError(
                f"{self.name} has classes that are not among the {len(labels)} labels given: {', '.join(map(repr, unknown[:4]))}"
                f"{' …' if len(unknown) > 4 else ''}. {nearest(unknown[0], labels)}"
            )
        numbers = [labels.index(label) for label in self.labels]
        self.items = {
            split: tuple(dataclasses.replace(item, label=numbers[item.label]) for item in items)
            for split, items in self.items.items()
        }
        self.labels = tuple(labels)

    def summary(self) -> list[str]:
        """Return lines to print: images, classes and splits, then the files left out and the images with two labels."""
        counts = Counter(item.label for items in self.items.values() for item in items)
        classes = sorted(range(len(self.labels)), key=lambda index: (counts[index], index))
        small, large = classes[0], classes[-1]
        lines = [
            f"{self.name}: {sum(counts.values()):,} images in {len(self.labels)} classes, {counts[small]:,} ({self.labels[small]}) to "
            f"{counts[large]:,} ({self.labels[large]}) per class; {self.sizes['train']:,} for training, "
            f"{self.sizes['validation']:,} for validation, {self.sizes['test']:,} for test"
        ]
        folders = {(item.source.rpartition("/")[0], self.labels[item.label]) for item in self.items["train"]}
        nested = min((folder for folder, label in folders if folder.rpartition("/")[2] != label), default="")
        if self.own and nested:
            lines.append(f"{self.name}: images in subfolders count for their class, such as {nested}/")
        lines += [f"{self.name}: {line}" for line in self.skipped_lines()]
        lines += self.left_out()
        if self.conflicts:
            named = "; ".join(f"{item.source} and {item.other_source}" for item in self.conflicts[:NAMED])
            more = f"; and {len(self.conflicts) - NAMED:,} more" if len(self.conflicts) > NAMED else ""
            lines.append(
                f"{self.name}: {plural(len(self.conflicts), 'image')} with two labels: {named}{more}. Each is used with both; "
                "remove it from the wrong class."
            )
        return lines

    def skipped_lines(self) -> list[str]:
        outside = [path for path in self.skipped if path.lower().endswith(images.SUFFIXES)]
        others = [path for path in self.skipped if path not in outside]
        lines = [images.left_out(others)] if others else []
        if outside:
            stray = f"left out {plural(len(outside), 'image')} outside the class folders, such as {outside[0]}"
            lines.insert(0, stray)
        return lines

    def left_out(self) -> list[str]:
        total = sum(self.sizes.values()) + len(self._unlisted)
        lines = [f"{self.name}: {text.rstrip('.')}. {advice}" for text, advice in self.faults]
        if self._unlisted:
            lines.append(f"{self.name}: {unreadable_text(self._unlisted, total)}; left out")
        return lines

    def info(self, used: Mapping[str, int]) -> DataInfo:
        """Return a run's record of its data; `used` counts the training and validation images, by split."""
        return DataInfo(
            name=self.name,
            title=self.title,
            native_shape=self.shape,
            labels=tuple(self.labels),
            fingerprint=self.fingerprint,
            split_hashes=self.hashes,
            split_sizes=self.sizes,
            used=used,
            duplicates=self.duplicates,
            conflicts=self.conflicts,
            unreadable=self.unreadable,
            sides=sha256(splits.split_groups_text(self.split_groups).encode()) if self.split_groups else None,
            groups=self.groups(),
        )

    def load(
        self,
        requested: Sequence[str],
        *,
        height: int,
        width: int,
        channels: int,
        stage: str,
        progress: Progress | None = None,
        other_resize: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> dict[str, Split]:
        """Decode splits at the model's size, and keep them for the next call of the same size.

        Of images that are the same at this size, only those in the first split of PRECEDENCE stay, so earlier splits are decoded too.
        Damaged images are left out and recorded, up to MOST_UNREADABLE of all. SplitError for "test" unless `stage` is in MAY_SEE_TEST.
        `other_resize` is another program's, from uint8 (rows, columns, channels).

        OutputError without space for many images; DatasetError if too many are unreadable, one changed or is too large, a class has none.
        """
        self._permit(requested, stage)
        needed = PRECEDENCE[: max(map(PRECEDENCE.index, requested), default=-1) + 1]
        shape = (height, width, channels)
        decoder, loaded = self._decoded.get(shape, (None, {})) if other_resize is None else (None, {})
        if missing := [split for split in needed if split not in loaded]:
            counts = [self.sizes[split] for split in missing]
            meter = Meter(progress, f"decoding {self.name}", sum(counts))
            decoder = decoder or Decoder(read=self.read, recipe=self._recipe, shape=shape, other_resize=other_resize)
            places = rooms(self.name, counts, shape, self._note_once)
            loaded = loaded | {
                split: decoder.split(self.items[split], room, meter)
                for split, room in zip(missing, places, strict=True)
            }
            self._leave_out(decoder, "train" in loaded)
            if other_resize is None:
                self._decoded[shape] = decoder, loaded
        if decoder and "train" in requested:
            self.duplicates = tuple(decoder.duplicates)
            # an imported model may have more classes
            absent = set(range(len(self.labels))) - {item.label for item in self.items["train"]}
            splits.check_classes(absent | set(loaded["train"].classes.tolist()), self.labels, self._recipe, self.name)
        for split in requested:
            if self.items[split] and not len(loaded[split].classes):
                raise DatasetError(
                    f"{self.name}: none of the {len(self.items[split]):,} {split} images is left, since the same pictures are in other "
                    f"splits. Put other photos into {split}."
                )
        return {split: loaded[split] for split in requested}

    def pictures(
        self, split: str, sources: Sequence[str], *, channels: int, least: tuple[int, int], stage: str
    ) -> Iterator[np.ndarray]:
        """Yield a loaded split's `sources` before the resize: uint8 (rows, columns, channels), at least twice `least` if that large.

        Errors as in `load`, and ImageError if an image has changed since.
        """
        self._permit((split,), stage)
        items = {item.source: item for item in self.items[split]}
        for source in sources:
            try:
                image = picture(items[source], self.read, channels, least)
            except ImageError as error:
                raise ImageError(f"{source}: {error}") from None
            yield as_array(image).reshape(image.height, image.width, channels)

    def at_size(
        self,
        split: str,
        sources: Sequence[str],
        shape: tuple[int, int, int],
        *,
        stage: str,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Decode images of a loaded split again, at another size: uint8, each of `shape`. Errors as in `load` and `pictures`."""
        height, width, channels = shape
        fit, region, resampling = self._recipe.fit, self._recipe.region, self._recipe.resampling
        meter = Meter(progress, f"decoding {self.name} at {width}x{height}", len(sources))
        (room,) = rooms(self.name, [len(sources)], shape, self.note)
        least = whole_size(height, width, region)
        for index, image in enumerate(self.pictures(split, sources, channels=channels, least=least, stage=stage)):
            room[index] = resize(image, height, width, fit, region=region, resampling=resampling)
            meter.advance()
        return room

    def _leave_out(self, decoder: Decoder, all_decoded: bool) -> None:
        """Note unreadable images, or raise DatasetError: judged over the whole dataset if all of it is decoded, as in training."""
        total = sum(self.sizes.values()) + len(self._unlisted)
        if decoder.lost:
            raise unreadable([*decoder.lost, *decoder.damaged], total, self.name, PASSING)
        if not decoder.damaged:
            return
        broken = [*self._unlisted, *decoder.damaged]
        if too_many(broken, total):
            raise unreadable(broken, total, self.name)
        if all_decoded and (lost := self._emptied(decoder.damaged)):
            raise unreadable(broken, total, self.name, emptied(lost))
        known = set(self.unreadable)
        if fresh := [item for item in decoder.damaged if item not in known]:
            self.unreadable = (*self.unreadable, *fresh)
            self.note(f"{self.name}: {unreadable_text(fresh, total)}; left out")

    def _note_once(self, text: str) -> None:
        """Note only once that the images are in a file; each stage of `edgecnn run` would repeat it."""
        if not self._file_noted:
            self._file_noted = True
            self.note(text)

    def _emptied(self, damaged: Sequence[Unreadable]) -> list[str]:
        gone = {(item.split, item.source) for item in damaged}
        left = {name: [item for item in items if (name, item.source) not in gone] for name, items in self.items.items()}
        classes = {item.label for item in left["train"]}
        lost = {item.label for item in self.items["train"]} - classes
        return [
            *(self.labels[index] for index in sorted(lost)),
            *(name for name, items in left.items() if self.items[name] and not items),
        ]

    def _permit(self, requested: Sequence[str], stage: str) -> None:
        for split in requested:
            if split not in splits.SPLITS:
                raise UnknownNameError(f"{split!r} is not a split. {nearest(split, splits.SPLITS)}")
        if "test" in requested and stage not in MAY_SEE_TEST:
            raise SplitError(
                f"the stage {stage!r} requested test images, which only {' and '.join(map(repr, MAY_SEE_TEST))} may see: "
                "the test split is used once.\nUse the splits 'train' and 'validation'."
            )


def find_conflicts(divided: Mapping[str, Sequence[Item]], labels: Sequence[str]) -> tuple[Conflict, ...]:
    """Return the items whose content was seen before under another label; `divided` has the items by split."""
    first: dict[str, Item] = {}
    pairs = [(item, first.setdefault(item.hash, item)) for items in divided.values() for item in items]
    return tuple(
        Conflict(source=item.source, label=labels[item.label], other_source=same.source, other_label=labels[same.label])
        for item, same in pairs
        if item.label != same.label
    )


COLUMNS = ("split", "class", "sha256", "file")


def known_images(run: Run) -> Known:
    """Return a run's record of its images; RunError if `run.json` or the list of its images cannot be read."""
    path = run.file(IMAGES)
    files: dict[tuple[str, str, str], list[str]] = {}
    if path.exists():
        try:
            for row in csv_rows(path.read_bytes()):
                files.setdefault((row["split"], row["class"], row["sha256"]), []).append(row["file"])
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path} is damaged ({error}). Remove it to continue without the list.") from None
    return Known(labels=run.info.data.labels, files=files)


def write_known(run: Run, dataset: Dataset) -> None:
    """Write the list of a run's images, if they are a user's own or in other splits: a named dataset does not change."""
    if not (dataset.own or dataset.moved):
        return
    rows = (
        (split, dataset.labels[item.label], item.hash, item.source)
        for split, items in dataset.items.items()
        for item in items
    )
    write_atomic(run.file(IMAGES), csv_text(COLUMNS, rows))


def require_split(run: Run, dataset: Dataset, split: str) -> None:
    """Raise RunError if a split is not the one recorded when the run began; the message names what is missing."""
    recorded, received = run.info.data, dataset.hashes[split]
    if received == recorded.split_hashes[split]:
        return
    size, advice = recorded.split_sizes[split], "Put the original images back, or train again."
    if dataset.known and (missing := dataset.known.missing(dataset.items, split)):
        named = ", ".join(map(printable, missing[:NAMED])) + (", …" if len(missing) > NAMED else "")
        raise RunError(
            f"{dataset.name} lacks or has changed {len(missing):,} of the {size:,} {split} images that {run.path} began with: "
            f"{named}\n{advice}"
        )
    raise RunError(
        f"the {split} split of {dataset.name} is not the one that {run.path} began with: it had {size:,} images, now it has "
        f"{dataset.sizes[split]:,} (SHA-256 {received[:12]}, recorded {recorded.split_hashes[split][:12]}).\n{advice}"
    )
