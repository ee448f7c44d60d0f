"""The part of training that gives each of a user's photos its split: photos that show the same thing share one, and no photo moves later.

The list is stored next to the photos, with a copy in each run.
"""

import contextlib
import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgecnn.data import Dataset
from edgecnn.data.csv_text import csv_text
from edgecnn.data.sides import FILE, Link, Sides, read_sides, sides_text
from edgecnn.errors import DatasetError, OutputError
from edgecnn.files import folder_lock, write_atomic
from edgecnn.labels import plural
from edgecnn.runs import LEFT_OUT, Run
from edgecnn.stages.reporter import Reporter

NAMED = 3  # pairs of photos that a line names

WAIT_S = 60.0  # seconds, for another training that writes the list

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def placed(dataset: Dataset, reporter: Reporter, run: Run | None = None, *, keep: bool = True) -> Dataset:
    """Return a dataset with each image in the split of its group, and report what changed; only a user's own photos are placed.

    The list next to the photos is read again and written, unless `keep` is false. If it does not exist, the run's list is used.

    Raises:
        DatasetError: if a list is damaged, or the images cannot be trained on; OutputError if the disk is full.
    """
    if dataset.known:
        dataset.sides = kept_sides(run)
    if dataset.known or not dataset.left_to_edgecnn:
        return dataset
    links = find(dataset, reporter)
    known = dataset.sides or kept_sides(run)
    why = ""
    if not keep:
        result = dataset.sided(known, links)
    elif dataset.place is None:
        result, why = dataset.sided(known, links), "nothing is written into archives and Frigate's folders"
    else:
        result, known, why = written(dataset, dataset.place, known, links)
    for line in lines(dataset, result, known, why if keep else None):
        reporter.note(f"{dataset.name}: {line}")
    return result


def find(dataset: Dataset, reporter: Reporter) -> list[Link]:
    """Search a dataset for images that show the same thing: by hashes only, unless they are a user's own."""
    from edgecnn.inspect.features import missing_weights
    from edgecnn.inspect.inspection import find_links

    missing = None
    if not dataset.own:
        missing = "hashes only"
    elif missing_weights():
        missing = "no search for cut and moved copies: it needs the extra backbones"
        reporter.note(f"{dataset.name}: {missing}")
    return find_links(dataset, missing=missing, progress=reporter.working, note=reporter.note)


def written(dataset: Dataset, place: Path, known: Sides, links: list[Link]) -> tuple[Dataset, Sides, str]:
    """Write the list; return the dataset divided by it, the list before, and why it could not be written, or ""."""
    path = place / FILE
    busy = DatasetError(f"another command is writing {path}. Run this one again.")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # on file systems without locks
            held.enter_context(folder_lock(place, busy, WAIT_S))
        before = path.read_bytes() if path.exists() else b""
        known = read_sides(before, str(path)) if before else known  # another training may have written it since
        result = dataset.sided(known, links)
        text = sides_text(result.sides).encode()
        try:
            if text != before:
                write_atomic(path, text)
        except OutputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in UNWRITABLE:
                raise
            return result, known, f"it cannot be written there ({cause.strerror})"
    return result, known, ""


def kept_sides(run: Run | None) -> Sides:
    path = run.file(FILE) if run else None
    return read_sides(path.read_bytes(), str(path)) if path and path.exists() else {}


def write_sides(run: Run, dataset: Dataset) -> None:
    """Store the list that a run began with, and the test photos that comparisons leave out."""
    if dataset.sides and not run.file(FILE).exists():
        write_atomic(run.file(FILE), sides_text(dataset.sides))
        write_atomic(run.file(LEFT_OUT), csv_text(("sha256", "with"), dataset.tied.items()))


def lines(before: Dataset, after: Dataset, known: Sides, why: str | None) -> Iterator[str]:
    """Yield lines on the changes; `why` is why the list is not stored next to the images, "" if it is, None if none is written."""
    items = {item.hash: item for part in after.items.values() for item in part}
    sizes = Counter(after.sides[one].group for one in items)
    alike = [one for one in items if sizes[after.sides[one].group] > 1]
    fresh = [one for one in items if one not in known]
    by_content = {item.hash: split for split, part in before.sided({}, ()).items.items() for item in part}
    moved = [one for one in fresh if after.sides[one].split != by_content[one]]
    what = "show the same thing as others, or belong to the same burst, and share their split"
    if not known:
        changed = f": {len(moved):,} of them would otherwise be in another split" if moved else ""
        yield (
            f"{len(alike):,} of {len(items):,} photos {what}{changed}"
            if alike
            else f"no two of {len(items):,} photos show the same thing"
        )
    else:
        joined = sum(sizes[after.sides[one].group] > 1 for one in fresh)
        more = f"; {plural(len(fresh), 'new photo')}, of which {joined:,} {what}" if fresh else ""
        yield f"{plural(len(items) - len(fresh), 'photo')} kept in the split that {FILE} lists{more}"
        single = [one for one in items if one in known and sizes[after.sides[one].group] == 1]
        if other := sum(after.sides[one].split != by_content[one] for one in single):
            yield (
                f"{plural(other, 'photo')} would be in another split by data.test_fraction and data.validation_fraction, but {FILE} takes "
                "precedence. Remove it to divide all photos anew"
            )
    if after.tied:
        pairs = [
            f"{items[one].source} and {items[other].source}"
            for one, other in after.tied.items()
            if one in items and other in items
        ]
        yield (
            f"model comparisons leave out {plural(len(after.tied), 'test photo')} of the same thing as training photos: "
            f"{'; '.join(pairs[:NAMED])}{'; …' if len(pairs) > NAMED else ''}"
        )
    if why:
        yield (
            f"the splits are stored with the run, in its {FILE}, since {why}. Copy that file next to the class folders, and no photo "
            "moves when you add more"
        )
    elif why == "" and fresh:
        yield f"the splits are stored in {before.place}/{FILE}; photos listed there never move"
