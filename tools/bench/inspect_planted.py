"""What `edgecnn inspect` finds of what was planted in photos, and what it names that is not so.

A copy of the photos gets, by a fixed seed: a test split of a fifth of each class; 50 duplicates in training, 25 of them with the same
pixels and 25 compressed anew, cut or mirrored; 20 test photos in training as well; 10 damaged files; 50 photos in a wrong class. All files
get new names. Pairs that the photos bring themselves are in inspect_near.txt, listed by hand.

    EDGECNN_DATA=<folder of trash-photos.zip> python tools/bench/inspect_planted.py

With --cleanlab-python, the Python of an environment with cleanlab 2.9 names wrong labels too, by the same scores.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image
from resume import about

from edgecnn.data import Dataset, open_dataset
from edgecnn.data.items import Meter
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect import features
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.inspection import SEED, inspect_images
from edgecnn.inspect.report import Inspection
from edgecnn.inspect.wrong_labels import out_of_fold
from edgecnn.recipe import DataRecipe
from edgecnn.report.table import text_table

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "inspect_planted.json"
NEAR = HERE / "inspect_near.txt"
EXACT, CHANGED, LEAKS, DAMAGED, WRONG = 25, 25, 20, 10, 50
TEST = 0.2
REFERENCE = """
import sys, json, numpy
from cleanlab.filter import find_label_issues
given = numpy.load(sys.argv[1])
print(json.dumps(find_label_issues(given["labels"], given["scores"], return_indices_ranked_by="self_confidence", n_jobs=1).tolist()))
"""


@dataclass(kw_only=True)
class Planted:
    """What was planted, by the sources that an inspection names."""

    exact: list[tuple[str, str]] = field(default_factory=list)
    changed: dict[tuple[str, str], str] = field(default_factory=dict)
    real: list[tuple[str, str]] = field(default_factory=list)
    leaks: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Planter:
    """Writes the photos with what is planted; every file gets a random name."""

    def __init__(self, archive: Path, folder: Path, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.folder, self.planted = folder, Planted()
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
            self.photos = {Path(name).stem: (Path(name).parent.name, file.read(name)) for name in names}
        self.classes = sorted({label for label, _ in self.photos.values()})
        self.pairs = [tuple(line.split()) for line in NEAR.read_text().splitlines() if line and line[0] != "#"]

    def plant(self) -> Planted:
        """Write everything."""
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
        """Write a photo's file once more into training, or its pixels as PNG, in turn."""
        if number % 2:
            return self.write("train", label, encoded(opened(data), "PNG"), ".png")
        return self.write("train", label, data)

    def changed(self, data: bytes, number: int) -> tuple[str, bytes]:
        """Return how a photo is changed, and the result."""
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
        """Return a damaged file: cut off, empty, no image, or overwritten in the middle of its header."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="trash-photos.zip", help="a zip of NAME/CLASS/*.jpg, below $EDGECNN_DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="draws (default: 1 2 3)")
    parser.add_argument("--cleanlab-python", type=Path, help="Python of an environment with cleanlab 2.9")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    cases = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(measured(archive, Path(folder), seed, arguments.cleanlab_python))
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    report = {
        **about("inspect_planted"),
        "data": arguments.data,
        "cases": cases,
    }
    print(text_table(HEADINGS, rows_of(cases)))
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def measured(archive: Path, folder: Path, seed: int, cleanlab: Path | None) -> dict[str, Any]:
    """Plant by one seed and inspect, with features and by hashes alone."""
    planted = Planter(archive, folder / "photos", seed).plant()
    dataset = open_dataset(DataRecipe(source=str(folder / "photos")), for_training=False)
    by_features = inspect_images(dataset)
    by_hash = inspect_images(dataset, missing="by hashes alone")
    return {
        "seed": seed,
        "images": by_features.images,
        "features": counted(planted, by_features),
        "hash": counted(planted, by_hash),
        "labels": labels_counted(planted, by_features) | reference(planted, dataset, by_features, folder, cleanlab),
        "seconds": {"features": by_features.seconds, "hash": by_hash.seconds},
    }


def counted(planted: Planted, report: Inspection) -> dict[str, Any]:
    """Return how much of each kind was found, as [found, planted], and how many images were named without cause."""
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


def labels_counted(planted: Planted, report: Inspection) -> dict[str, Any]:
    """Return how many of the first named labels are planted ones."""
    return {"planted": len(planted.wrong), **ranked([item.source for item in report.wrong_labels], planted)}


def ranked(named: Sequence[str], planted: Planted) -> dict[str, int]:
    """Return how many of the first 50, the first 100 and of all named images were put into a wrong class."""
    hits = [source in set(planted.wrong) for source in named]
    return {"named": len(named), "first_50": sum(hits[:50]), "first_100": sum(hits[:100]), "found": sum(hits)}


def reference(
    planted: Planted, dataset: Dataset, report: Inspection, folder: Path, python: Path | None
) -> dict[str, Any]:
    """Return what cleanlab names by the same scores; nothing without its environment."""
    if python is None:
        return {}
    lost = {item.source for item in report.unreadable}
    items = [item for part in dataset.items.values() for item in part if item.source not in lost]
    cache = Cache()
    values, _ = features.compute(items, dataset.read, cache, features.open_body, Meter(None, "", len(items)))
    cache.close()
    places = {item.source: index for index, item in enumerate(items)}
    together = np.arange(len(items))
    for group in report.groups:
        indices = sorted(places[copy.source] for copy in group.copies)
        together[indices] = indices[0]
    labels = np.array([item.label for item in items])
    scores = out_of_fold(values, labels, together, SEED)
    np.savez(folder / "scores.npz", labels=labels, scores=scores / scores.sum(axis=1, keepdims=True))
    command = [str(python), "-c", REFERENCE, str(folder / "scores.npz")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    named = [items[index].source for index in json.loads(done.stdout)]
    return {"cleanlab": ranked(named, planted)}


HEADINGS = ("planted", "by hash alone", "with features")


def rows_of(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the figures of all draws, added up, as the rows of a table."""

    def share(pairs: Sequence[Sequence[int]]) -> str:
        found, planted = (sum(pair[place] for pair in pairs) for place in (0, 1))
        return f"{found} of {planted}"

    rows: list[tuple[str, ...]] = []
    for title, key in (
        ("same pixels", "exact"),
        ("leaks", "leaks"),
        ("damaged files", "damaged"),
        ("near copies, all", "near"),
    ):
        rows.append((title, *(share([case[way][key] for case in cases]) for way in ("hash", "features"))))
    for way in cases[0]["features"]["near_by_way"]:
        rows.append(
            (
                f"near copies, {way}",
                *(share([case[by]["near_by_way"][way] for case in cases]) for by in ("hash", "features")),
            )
        )
    images = sum(case["images"] for case in cases)
    rows.append(
        ("false alarms, images", *(f"{sum(case[by]['false_images'] for case in cases)} of {images}" for by in ("hash", "features")))
    )  # fmt: skip
    planted = sum(case["labels"]["planted"] for case in cases)
    for title, key in (("first 50", "first_50"), ("first 100", "first_100"), ("all named", "found")):
        mine = f"{sum(case['labels'][key] for case in cases)} of {planted}"
        theirs = [case["labels"]["cleanlab"][key] for case in cases if "cleanlab" in case["labels"]]
        rows.append((f"wrong labels, {title}", "-", mine + (f"; cleanlab {sum(theirs)}" if theirs else "")))
    return rows


if __name__ == "__main__":
    main()
