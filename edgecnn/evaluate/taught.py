"""Images used to train, choose or test a model: `images.csv` of a bundle, so that comparisons can leave out what it was trained on."""

import csv
import io

from edgecnn.bundle.file import Bundle
from edgecnn.data.dataset import known_images
from edgecnn.data.splits import FILE, csv_text, read_sides
from edgecnn.errors import BundleError
from edgecnn.runs import IMAGES, LEFT_OUT, Run

MOST = 20_000
"""Most images whose hashes a bundle lists; each line takes 71 bytes."""

TIED = "tied"
"""The split of a test image that shows the same thing as a training image."""


def taught_images(run: Run) -> dict[str, str] | None:
    """Return the split of each of a user's own images by its hash (TIED for some test images); None for a named dataset."""
    rows = {(split, digest) for split, _, digest in known_images(run).files}
    if not rows:
        return None
    path = run.file(LEFT_OUT)
    tied = {row["sha256"] for row in csv.DictReader(io.StringIO(path.read_text()))} if path.exists() else set()
    splits = {digest: TIED if digest in tied else split for split, digest in rows if split == "test"}
    return splits | {digest: split for split, digest in sorted(rows) if split != "test"}


def read_taught(bundle: Bundle) -> dict[str, str] | None:
    """Return `taught_images` as stored in a bundle; None if the bundle has no list. Raises BundleError if it cannot be read."""
    if IMAGES not in bundle.files:
        return None
    try:
        rows = csv.DictReader(io.StringIO(bundle.files[IMAGES].decode()))
        return {row["sha256"]: row["split"] for row in rows}
    except (ValueError, KeyError, csv.Error) as error:
        raise BundleError(f"{bundle.path}: {IMAGES} is damaged: {error}.") from None


def images_csv(run: Run) -> bytes | None:
    """Return `taught_images` in a bundle's format, with numbered groups if a user named them; None also for more than MOST images."""
    taught = taught_images(run)
    if taught is None or len(taught) > MOST:
        return None
    if run.info.data.groups is None:
        return csv_text(("sha256", "split"), sorted(taught.items())).encode()
    sides = read_sides(run.file(FILE).read_bytes(), str(run.file(FILE)))
    numbers: dict[str, int] = {}
    rows = (
        (one, split, numbers.setdefault(sides[one].group, len(numbers) + 1)) for one, split in sorted(taught.items())
    )
    return csv_text(("sha256", "split", "group"), rows).encode()
