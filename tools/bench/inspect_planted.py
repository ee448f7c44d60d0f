"""How many planted mistakes `edgecnn inspect` finds in photos, and how many false alarms it raises.

With a fixed seed, a copy of the photos gets a test split with a fifth of each class; 50 duplicates in training, 25 of them with the same
pixels and 25 recompressed, cropped or mirrored; 20 test photos that are also in training; 10 damaged files; and 50 photos in a wrong class.
inspect_near.txt lists by hand the pairs that the original photos already contain.

    EDGECNN_DATA=<folder of trash-photos.zip> python tools/bench/inspect_planted.py
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, finish, parser
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.inspect.findings import Inspection
from edgecnn.inspect.inspection import inspect_images
from edgecnn.recipe import DataRecipe

NEAR = Path(__file__).with_name("inspect_near.txt")
EXACT, CHANGED, LEAKS, DAMAGED, WRONG = 25, 25, 20, 10, 50
TEST = 0.2


@dataclass(kw_only=True)
class Planted:
    """The planted mistakes, by the sources that an inspection names."""

    exact: list[tuple[str, str]] = field(default_factory=list)
    changed: dict[tuple[str, str], str] = field(default_factory=dict)
    real: list[tuple[str, str]] = field(default_factory=list)
    leaks: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Planter:
    """Writes the photos with planted mistakes. Every file gets a random name."""

    def __init__(self, archive: Path, folder: Path, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.folder, self.planted = folder, Planted()
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
            self.photos = {Path(name).stem: (Path(name).parent.name, file.read(name)) for name in names}
        self.classes = sorted({label for label, _ in self.photos.values()})
        self.pairs = [tuple(line.split()) for line in NEAR.read_text().splitlines() if line and line[0] != "#"]

    def plant(self) -> Planted:
        """Write everything and return what was planted."""
        known = {stem for pair in self.pairs for stem in pair}
        order = [stem for stem in self.random.permutation(sorted(self.photos)).tolist() if stem not in known]
        test = {stem for stem in self.photos if self.random.random() < TEST}
        training = [stem for stem in order if stem not in test]
        copied, training = training[: EXACT + CHANGED], training[EXACT + CHANGED :]
        damaged, training = training[:DAMAGED], training[DAMAGED:]
        held = [stem for stem in order if stem in test]
        leaked, held = held[:LEAKS], held[LEAKS:]
        wrong = set(self.random.permutation(training + held)[:WRONG].tolist())
        places: dict[str, str] = {}
        for stem, (label, data) in self.photos.items():
            split = "test" if stem in test else "train"
            if stem in damaged:
                self.planted.damaged.append(self.write(split, label, self.broken(data, damaged.index(stem))))
                continue
            if stem in wrong:
                label = str(self.random.choice([name for name in self.classes if name != label]))
            places[stem] = self.write(split, label, data)
            if stem in wrong:
                self.planted.wrong.append(places[stem])
        for number, stem in enumerate(copied):
            label, data = self.photos[stem]
            if number < EXACT:
                self.planted.exact.append((places[stem], self.same(label, data, number)))
            else:
                way, changed = self.changed(data, number)
                self.planted.changed[places[stem], self.write("train", label, changed)] = way
        for number, stem in enumerate(leaked):
            label, data = self.photos[stem]
            self.planted.leaks.append((places[stem], self.same(label, data, number)))
        self.planted.real = [(places[first], places[second]) for first, second in self.pairs]
        return self.planted

    def write(self, split: str, label: str, data: bytes, suffix: str = ".jpg") -> str:
        """Write a file under a random name, and return its source."""
        source = f"{split}/{label}/{self.random.bytes(6).hex()}{suffix}"
        path = self.folder / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return source

    def same(self, label: str, data: bytes, number: int) -> str:
        """Write another copy of a photo into training, alternating between its file and its pixels as PNG."""
        if number % 2:
            return self.write("train", label, encoded(opened(data), "PNG"), ".png")
        return self.write("train", label, data)

    def changed(self, data: bytes, number: int) -> tuple[str, bytes]:
        """Return the kind of change to a photo, and the result."""
        image = opened(data)
        way = ("compressed", "halved", "cut", "cut", "mirrored")[number % 5]
        if way == "compressed":
            return way, encoded(image, "JPEG", quality=int(self.random.integers(30, 70)))
        if way == "halved":
            return way, encoded(image.resize((image.width // 2, image.height // 2)), "JPEG", quality=75)
        if way == "mirrored":
            return way, encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=80)
        share = self.random.uniform(0.65, 0.95)
        width, height = round(share * image.width), round(share * image.height)
        left = int(self.random.integers(0, image.width - width + 1))
        top = int(self.random.integers(0, image.height - height + 1))
        return way, encoded(image.crop((left, top, left + width, top + height)), "JPEG", quality=85)

    def broken(self, data: bytes, number: int) -> bytes:
        """Return a damaged file: truncated, empty, not an image, or overwritten in the middle of its header."""
        ways = (data[: len(data) // 2], b"", b"not a photo at all", data[:20] + bytes(400) + data[420:], data[:-2000])
        return ways[number % 5]


def opened(data: bytes) -> Image.Image:
    """Return a photo, in RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return a photo's file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def main() -> None:
    """Plant, inspect, print a table and write the figures."""
    made = parser(__doc__, "inspect_planted")
    made.add_argument("--data", default="trash-photos.zip", help="a zip of NAME/CLASS/*.jpg, below $EDGECNN_DATA")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="draws (default: 1 2 3)")
    arguments = made.parse_args()
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    cases = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # the first case computes everything
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                cases.append(measured(archive, Path(folder), seed))
    finish(arguments.out, {**about("inspect_planted", data=arguments.data), "cases": cases}, HEADINGS, rows_of(cases))


def measured(archive: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Plant mistakes with one seed and inspect, with features and by hashes only."""
    planted = Planter(archive, folder / "photos", seed).plant()
    dataset = open_dataset(DataRecipe(source=str(folder / "photos")), for_training=False)
    by_features, by_hash = inspect_images(dataset), inspect_images(dataset, missing="by hashes alone")
    return {
        "seed": seed,
        "images": by_features.images,
        "features": counted(planted, by_features),
        "hash": counted(planted, by_hash),
        "labels": labels_counted(planted, by_features),
        "seconds": {"features": by_features.seconds, "hash": by_hash.seconds},
    }


def counted(planted: Planted, report: Inspection) -> dict[str, Any]:
    """Return how many of each kind were found, as [found, planted], and how many images were named without cause."""
    groups = [{copy.source for copy in group.copies} for group in report.groups]
    leaking = [{copy.source for copy in group.copies} for group in report.groups if group.leak]

    def together(pairs: Sequence[tuple[str, str]], among: Sequence[set[str]] = groups) -> list[int]:
        return [sum(any({*pair} <= group for group in among) for pair in pairs), len(pairs)]

    lost = {item.source for item in report.unreadable}
    true = [*planted.exact, *planted.changed, *planted.real, *planted.leaks]
    partners: dict[str, set[str]] = {}
    for first, second in true:
        partners.setdefault(first, set()).add(second)
        partners.setdefault(second, set()).add(first)
    false = [source for group in groups for source in sorted(group) if not partners.get(source, set()) & group]
    ways = sorted(set(planted.changed.values()))
    by_way = {way: together([pair for pair, how in planted.changed.items() if how == way]) for way in ways}
    return {
        "exact": together(planted.exact),
        "leaks": together(planted.leaks, leaking),
        "damaged": [len(lost & set(planted.damaged)), len(planted.damaged)],
        "damaged_false": len(lost - set(planted.damaged)),
        "near": together([*planted.changed, *planted.real]),
        "near_by_way": {**by_way, "of the set itself": together(planted.real)},
        "false_images": len(false),
        "false_sources": false,
    }


def labels_counted(planted: Planted, report: Inspection) -> dict[str, int]:
    """Return how many of the first 50, the first 100 and all named labels belong to images that were put into a wrong class."""
    hits = [item.source in set(planted.wrong) for item in report.wrong_labels]
    found = {"first_50": sum(hits[:50]), "first_100": sum(hits[:100]), "found": sum(hits)}
    return {"planted": len(planted.wrong), "named": len(hits), **found}


HEADINGS = ("planted", "by hash only", "with features")


def rows_of(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the figures of all draws, summed, as rows of a table."""

    def share(pairs: Sequence[Sequence[int]]) -> str:
        found, planted = (sum(pair[place] for pair in pairs) for place in (0, 1))
        return f"{found} of {planted}"

    both = ("hash", "features")
    keys = {"same pixels": "exact", "leaks": "leaks", "damaged files": "damaged", "near copies, all": "near"}
    rows = [(title, *(share([case[by][key] for case in cases]) for by in both)) for title, key in keys.items()]
    for way in cases[0]["features"]["near_by_way"]:
        rows.append((f"near copies, {way}", *(share([case[by]["near_by_way"][way] for case in cases]) for by in both)))
    images = sum(case["images"] for case in cases)
    rows.append(
        ("false alarms, images", *(f"{sum(case[by]['false_images'] for case in cases)} of {images}" for by in both))
    )
    for title, key in {"first 50": "first_50", "first 100": "first_100", "all named": "found"}.items():
        pairs = [(case["labels"][key], case["labels"]["planted"]) for case in cases]
        rows.append((f"wrong labels, {title}", "-", share(pairs)))
    return rows


if __name__ == "__main__":
    main()
