"""The part of training that gives each of a user's own photos its split: what shows the same is in one, and nothing moves later.

The list is kept next to the photos, and a copy in each run.
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
from edgecnn.runs import LEFT_OUT, Run
from edgecnn.stages.reporter import Reporter

NAMED = 3  # pairs of photos that a line names

WAIT_S = 60.0  # for another training that writes the list

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def placed(dataset: Dataset, reporter: Reporter, run: Run | None = None, *, keep: bool = True) -> Dataset:
    """Return a dataset with each image in the split of its group, and say what that changed; others than a user's own stay as they are.

    The list next to the photos is read again and written, unless `keep` is false. If it does not exist, that of the run goes first.

    Raises:
        DatasetError: if a list is damaged, or the images give no training; OutputError if the disk is full.
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
    """Search a dataset for images that show the same: others than a user's own by hashes alone."""
    from edgecnn.inspect.features import missing_weights
    from edgecnn.inspect.inspection import find_links

    missing = None
    if not dataset.own:
        missing = "by hashes alone"
    elif missing_weights():
        missing = "cut and moved copies were not searched for: that needs the extra backbones"
        reporter.note(f"{dataset.name}: {missing}")
    return find_links(dataset, missing=missing, progress=reporter.working, note=reporter.note)


def written(dataset: Dataset, place: Path, known: Sides, links: list[Link]) -> tuple[Dataset, Sides, str]:
    """Return the dataset as the list next to its photos has it, what that held before, and why it could not be written, or ""."""
    path = place / FILE
    busy = DatasetError(f"another command is writing {path}. Run this one again.")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # of file systems without locks
            held.enter_context(folder_lock(place, busy, WAIT_S))
        before = path.read_bytes() if path.exists() else b""
        known = read_sides(before, str(path)) if before else known  # another training may have written since
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
    """Keep the list as a run began with it, and the test photos that comparisons leave out."""
    if dataset.sides and not run.file(FILE).exists():
        write_atomic(run.file(FILE), sides_text(dataset.sides))
        write_atomic(run.file(LEFT_OUT), csv_text(("sha256", "with"), dataset.tied.items()))


def lines(before: Dataset, after: Dataset, known: Sides, why: str | None) -> Iterator[str]:
    """Yield what happened to the images; `why` says that the list is not kept next to them, "" that it is, None that none is written."""
    items = {item.hash: item for part in after.items.values() for item in part}
    sizes = Counter(after.sides[one].group for one in items)
    alike = [one for one in items if sizes[after.sides[one].group] > 1]
    fresh = [one for one in items if one not in known]
    by_content = {item.hash: split for split, part in before.sided({}, ()).items.items() for item in part}
    moved = [one for one in fresh if after.sides[one].split != by_content[one]]
    what = "show the same as others, or are of one burst, and share their split"
    if not known:
        changed = f": {len(moved):,} of them are not where their content would put them" if moved else ""
        yield (
            f"{len(alike):,} of {len(items):,} photos {what}{changed}"
            if alike
            else f"no two of {len(items):,} photos show the same"
        )
    else:
        joined = sum(sizes[after.sides[one].group] > 1 for one in fresh)
        more = f"; {len(fresh):,} are new, of which {joined:,} {what}" if fresh else ""
        yield f"{len(items) - len(fresh):,} photos stay in their splits, as {FILE} says{more}"
        single = [one for one in items if one in known and sizes[after.sides[one].group] == 1]
        if other := sum(after.sides[one].split != by_content[one] for one in single):
            yield (
                f"{other:,} photos are not in the split that data.test_fraction and data.validation_fraction would give them: {FILE} goes "
                "first. Remove it to divide all photos anew"
            )
    if after.tied:
        pairs = [
            f"{items[one].source} and {items[other].source}"
            for one, other in after.tied.items()
            if one in items and other in items
        ]
        yield (
            f"{len(after.tied):,} test photos show the same as photos that teach, and comparisons of models leave them out: "
            f"{'; '.join(pairs[:NAMED])}{'; …' if len(pairs) > NAMED else ''}"
        )
    if why:
        yield (
            f"the splits are kept with the run, in its {FILE}, since {why}. Put that next to the class folders, and no photo moves when "
            "more come"
        )
    elif why == "" and fresh:
        yield f"the splits are kept in {before.place}/{FILE}; what is in it never moves"
