"""The part of training that gives each of a user's photos its split: a group shares one, and no photo moves later.

The list is stored next to the photos, with a copy in each run.
"""

import contextlib
import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgecnn.data import Dataset
from edgecnn.data.splits import FILE, SPLITS, Link, Sides, csv_text, is_former, read_sides, rule_of, sides_text
from edgecnn.errors import DatasetError, OutputError
from edgecnn.files import folder_lock, write_atomic
from edgecnn.labels import plural
from edgecnn.runs import LEFT_OUT, Run
from edgecnn.stages.reporter import Reporter

if TYPE_CHECKING:
    from edgecnn.inspect.inspection import Copies

NAMED = 3  # pairs of photos, or classes, that a line names

OFF = 0.05
"""A line names a split whose share of the photos, or of a class, is further than this from the recipe's, and by more than one photo."""

WAIT_S = 60.0  # seconds, for another training that writes the list

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Listed(NamedTuple):
    """The list before this command; where it is now, or why it is not next to the photos; and where an older one was put."""

    known: Sides
    where: str = ""
    why: str = ""
    former: str = ""


def placed(dataset: Dataset, reporter: Reporter, run: Run | None = None, *, keep: bool = True) -> Dataset:
    """Return a dataset with each image in the split of its group, and report what changed; only a user's own photos are placed.

    The list next to the photos is read again and written, unless `keep` is false. If it does not exist, the run's list is used.

    Raises:
        DatasetError: if a list is damaged, the groups that the recipe names cannot be made, or the images cannot be trained on.
        OutputError: if the disk is full.
    """
    dataset.require_groups()
    if dataset.known:
        dataset.sides = kept_sides(run)
    if dataset.known or not dataset.left_to_edgecnn:
        return dataset
    from edgecnn.inspect.question import ask

    links, found = find(dataset, reporter)
    listed = Listed(dataset.sides or kept_sides(run))
    if keep and dataset.place:
        result, listed = written(dataset, dataset.place, listed.known, links)
    else:
        result = dataset.sided(listed.known, links)
        if keep:
            listed = listed._replace(why="nothing is written into archives and Frigate's folders")
    for line in lines(result, listed):
        reporter.note(f"{dataset.name}: {line}")
    if sentence := ask(result, found.looks.items, found.features, reporter.working, reporter.note):
        reporter.note(f"{dataset.name}: {sentence}")
    return result


def find(dataset: Dataset, reporter: Reporter) -> tuple[list[Link], "Copies"]:
    """Search a dataset for copies, and for frames of a burst: by hashes only, unless the images are a user's own."""
    from edgecnn.inspect.inspection import find_links
    from edgecnn.inspect.look import missing_weights

    missing = None
    if not dataset.own:
        missing = "hashes only"
    elif missing_weights():
        missing = "no search for cut and moved copies: it needs the extra backbones"
        reporter.note(f"{dataset.name}: {missing}")
    return find_links(dataset, missing=missing, progress=reporter.working, note=reporter.note)


def written(dataset: Dataset, place: Path, known: Sides, links: list[Link]) -> tuple[Dataset, Listed]:
    """Write the list, and put one that was divided otherwise next to it."""
    path, former = place / FILE, ""
    busy = DatasetError(f"another command is writing {path}. Run this one again.")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # on file systems without locks
            held.enter_context(folder_lock(place, busy, WAIT_S))
        before = path.read_bytes() if path.exists() else b""
        known = read_sides(before, str(path)) if before else known  # another training may have written it since
        result = dataset.sided(known, links)
        text = sides_text(result.sides).encode()
        try:
            if before and result.anew:
                free = (place / f"{path.stem}-{number}.csv" for number in range(1, 10_000))
                older = next(one for one in free if not one.exists())
                write_atomic(older, before)
                former = str(older)
            if text != before:
                write_atomic(path, text)
        except OutputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in UNWRITABLE:
                raise
            return result, Listed(known, why=f"it cannot be written there ({cause.strerror})")
    return result, Listed(known, str(path), former=former)


def kept_sides(run: Run | None) -> Sides:
    path = run.file(FILE) if run else None
    return read_sides(path.read_bytes(), str(path)) if path and path.exists() else {}


def write_sides(run: Run, dataset: Dataset) -> None:
    """Store the list that a run began with, and the test photos that comparisons leave out."""
    if dataset.sides and not run.file(FILE).exists():
        write_atomic(run.file(FILE), sides_text(dataset.sides))
        write_atomic(run.file(LEFT_OUT), csv_text(("sha256", "with"), dataset.tied.items()))


def lines(after: Dataset, listed: Listed) -> Iterator[str]:
    """Yield lines on what changed, and on what a user should know about the groups and the splits."""
    items = {item.hash: item for part in after.items.values() for item in part}
    known = {} if after.anew else listed.known
    fresh = [one for one in items if one not in known]
    if after.groups_note:
        yield after.groups_note
    if after.anew:
        moved = sum(one in items and after.sides[one].split != side.split for one, side in listed.known.items())
        kept = f"; the list before is now {listed.former}" if listed.former else ""
        yield f"divided anew, since {FILE} was divided otherwise: {plural(moved, 'photo')} changed their split{kept}"
    if is_former(known):
        yield (
            f"{FILE} is of edgecnn 0.2.0, which put all similar photos into one split; it is kept as it is. Remove it, or name groups "
            "with --group-by, to divide all photos anew"
        )
    if known:
        yield f"{plural(len(items) - len(fresh), 'photo')} kept in the split that {FILE} lists; {plural(len(fresh), 'new photo')}"
    yield groups_line(after)
    if off := off_shares(after):
        yield f"{'; '.join(off[:NAMED])}{'; …' if len(off) > NAMED else ''}: {FILE if known else 'a group'} cannot be divided"
    if after.tied:
        pairs = [f"{items[one].source} and {items[other].source}" for one, other in after.tied.items()]
        yield (
            f"model comparisons leave out {plural(len(pairs), 'test photo')} of the same thing as training photos: "
            f"{'; '.join(pairs[:NAMED])}{'; …' if len(pairs) > NAMED else ''}"
        )
    if listed.why:
        yield (
            f"the splits are stored with the run, in its {FILE}, since {listed.why}. Copy that file next to the class folders, and no "
            "photo moves when you add more"
        )
    elif listed.where and fresh:
        yield f"the splits are stored in {listed.where}; photos listed there never move"


def groups_line(after: Dataset) -> str:
    """Return a line on the groups: how many, and how large, if a user named them; else how many photos share one."""
    photos = {item.hash for part in after.items.values() for item in part}
    sizes = Counter(after.sides[one].group for one in photos)
    if rule := rule_of(after.sides):
        counts = after.groups()
        assert counts
        each = ", ".join(f"{counts.splits[split]:,} {split}" for split in SPLITS)
        return (
            f"{len(sizes):,} groups by '{rule}' ({each}), of {min(sizes.values()):,} to {max(sizes.values()):,} photos"
        )
    alike = sum(size for size in sizes.values() if size > 1)
    return (
        f"{alike:,} of {len(photos):,} photos are copies of others, or frames of a burst, and share their split"
        if alike
        else f"no two of {len(photos):,} photos show the same thing"
    )


def off_shares(after: Dataset) -> list[str]:
    """Return the splits with another share than the recipe's, of all photos or of a class; a class without a test goes first."""
    labels = Counter((item.label, split) for split, part in after.items.items() for item in part)
    counts: Counter[tuple[str, str]] = Counter()
    for (label, split), count in labels.items():
        counts[f"class {after.labels[label]!r}", split] += count
        counts["the photos", split] += count
    found = []
    for what in sorted({what for what, _ in counts}, key=lambda what: what != "the photos"):
        total = sum(counts[what, split] for split in SPLITS)
        for split, share in after.shares.items():
            apart = abs(counts[what, split] - share * total)
            if apart > OFF * total and apart > 1:
                found.append(
                    (
                        counts[what, split] > 0,
                        f"{split} has {counts[what, split] / total:.0%} of {what}, not {share:.0%}",
                    )
                )
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]
