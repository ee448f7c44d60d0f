"""A run's record of its images: the list, written when the run begins, and read and checked when it continues."""

import csv
import io

from edgecnn.data.csv_text import csv_text
from edgecnn.data.dataset import Dataset
from edgecnn.data.items import NAMED
from edgecnn.data.known import Known
from edgecnn.errors import RunError
from edgecnn.files import write_atomic
from edgecnn.labels import printable
from edgecnn.runs import IMAGES, Run

COLUMNS = ("split", "class", "sha256", "file")


def known_images(run: Run) -> Known:
    """Return a run's record of its images; RunError if `run.json` or the list of its images cannot be read."""
    path = run.file(IMAGES)
    files: dict[tuple[str, str, str], list[str]] = {}
    if path.exists():
        try:
            for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
                files.setdefault((row["split"], row["class"], row["sha256"]), []).append(row["file"])
        except (OSError, ValueError, KeyError, csv.Error) as error:
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
