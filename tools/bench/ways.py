"""`edgecnn train`, `train --quick` and `train --folds 5` next to the simplest way, judged on the same photos, which none of them saw.

A quarter of each class is kept aside, or with --per-class K all photos but K of each class. The others go into a zip, on which each way
trains. Figures are for the bundle's int8 TFLite file on the photos kept aside, and for photos from elsewhere if --other names them. The
simplest way is logistic regression on the features of the whole EfficientNet-Lite0 at 224x224, in float.

    python tools/bench/ways.py --data signs.zip grocery.zip --runs RUNS
    … --data coins.zip --other coins-other.zip --group-by '(.+)_\\d+$'
    … --data signs.zip --per-class 10 20 50 --seeds 1 2 3 --out few_photos.json
    … --data magnets.zip --earlier CHECKOUT/.venv/bin/python --out earlier.json

With --earlier, the default of another version trains on the same photos. Its rows say what today's default gains over it.
"""

import json
import random
import shutil
import statistics
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from harness import Results, Row, about, edgecnn_command, finish, parser, ran
from simplest import all_photos, features_of, fitted, gain

from edgecnn.bundle.file import read_bundle
from edgecnn.data.decoding import is_unbalanced
from edgecnn.evaluate.statistics import balanced_accuracy, found_by_class
from edgecnn.images import SUFFIXES
from edgecnn.runs import FEATURES, PARITY, Run
from edgecnn.runtime import Classifier

WAYS = {"quick": ("--quick",), "default": (), "folds": ("--folds", "5")}

HEADINGS = (
    "photos", "per class", "seed", "trained on", "n", "way", "network", "right", "balanced", "simplest", "gain", "95 % interval",
    "its test: drop, agreement", "elsewhere", "bytes", "CPU min",
)  # fmt: skip

SUMMARY = (
    "photos", "n", "`--quick`", "default", "`--folds 5`", "simplest way", "default gains, in points (95 % interval)",
    "ships: default, folds", "same answer as float: quick, default, folds", "bytes: quick, default, folds",
    "CPU minutes: quick, default, folds",
)  # fmt: skip

SHORT = ("photos", "n", "`--quick`", "default", "`--folds 5`", "simplest way", "CPU minutes: quick, default, folds")

EARLIER = (
    "photos", "n", "default", "earlier default", "default gains, in points (95 % interval)", "bytes: default, earlier",
    "CPU minutes: quick, default, earlier",
)  # fmt: skip

PER_CLASS = (10, 20, 50)

FEW = ("photos", *(f"{count} per class: default, simplest way" for count in PER_CLASS))

FIRST = ("signs", "masks", "coins")
"""The sets in README."""

TITLES = {
    "trash-photos": "six materials",
    "signs": "ten hand signs",
    "grocery": "ten kinds of fruit and vegetable",
    "masks": "faces with and without a mask",
    "screws": "screws and empty holes",
    "coins": "six coins",
    "coffee-leaves": "coffee leaves, five kinds",
    "solar-cells": "solar cells, good or defect",
    "magnets": "magnetic tiles, five kinds",
}


def main() -> None:
    """Train, print a table and write the figures."""
    made = parser(__doc__, "ways")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument("--other", type=Path, help="a zip of photos of the same classes from elsewhere")
    made.add_argument("--runs", type=Path, required=True, help="folder in which the runs are kept")
    made.add_argument("--ways", nargs="+", default=["quick", "default"], choices=WAYS, help="default: quick default")
    made.add_argument("--per-class", type=int, nargs="+", default=[0], help="photos of each class that teach")
    made.add_argument("--group-by", help="as of train")
    made.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    made.add_argument("--earlier", type=Path, metavar="PYTHON", help="the Python of an earlier version")
    arguments = made.parse_args()
    if arguments.earlier and "default" not in arguments.ways:
        made.error("--earlier needs the way default, with which the earlier version is compared")
    ways = [*arguments.ways, "earlier"] if arguments.earlier else arguments.ways
    archives = {path.stem: path.resolve() for path in arguments.data}
    context = about("ways")
    results = Results(arguments.out, context)
    axes = {"seed": arguments.seeds, "per_class": arguments.per_class, "group_by": [arguments.group_by]}
    for case in results.missing(data=archives, **axes, way=ways):
        name = f"{case['data']}-{case['per_class']}-{case['seed']}{'-groups' if case['group_by'] else ''}"
        place = (arguments.runs / name).resolve()
        results.add(**case, **measure(archives[case["data"]], place, case, arguments.other, arguments.earlier))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


def measure(archive: Path, place: Path, case: Row, other: Path | None, earlier: Path | None) -> Row:
    """Train in a way on some photos, unless that was done before; return counts of the others, bytes and processor seconds."""
    photos = photos_in(archive)
    taught = drawn(photos, case["per_class"], case["seed"])
    data, run, bundle = place / "photos.zip", Run(place / case["way"]), place / f"{case['way']}.edgecnn"
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(data, "w") as written:
        for name in taught:
            written.writestr(short(name), opened.read(name))
    program = edgecnn_command()
    if case["way"] == "earlier":
        program = ["env", "-u", "PYTHONPATH", *edgecnn_command(str(earlier))]  # ours comes first in it
    cost, groups = place / f"{case['way']}.json", ("--group-by", case["group_by"]) if case["group_by"] else ()
    if not bundle.exists():
        shutil.rmtree(run.path, ignore_errors=True)
        command = [*program, "train", "--data", data, *WAYS.get(case["way"], ()), *groups, "--out", run.path]
        used = ran([*command, "--set", f"seed={case['seed']}"], cwd=place)
        cost.write_text(json.dumps(used.cpu_seconds))
        ran([*program, "export", run.path, "--int8"], cwd=place)
        ran([*program, "verify", run.path, "--max-drop", "100"], cwd=place)
        ran([*program, "bundle", run.path, "--out", bundle], cwd=place)
    report = json.loads(run.file(PARITY).read_text())
    files = {item["name"]: item for item in report["models"]}
    whole = next(item for item in report["comparisons"] if item["candidate"] == "tflite-int8")
    kept = [name for name in photos if name not in set(taught)]
    manifest = read_bundle(bundle).manifest
    recipe, labels = manifest.provenance["recipe"], list(manifest.labels)
    classes = np.array([labels.index(photos[name]) for name in kept])
    answers = answered(bundle, archive, kept)
    features = place.parent / f"{case['data']}-{FEATURES}"
    simple = np.array([labels.index(one) for one in simplest(archive, features, tuple(taught), tuple(kept))])
    right, simply = answers == classes, simple == classes
    default = answered(place / "default.edgecnn", archive, kept) == classes if case["way"] == "earlier" else None
    found = {
        "network": f"{recipe['network']['name']} at {manifest.input.width}",
        "head_ships": case["way"] != "earlier" and run.info.head_ships,
        "train": len(taught),
        "n": len(kept),
        "right": int(right.sum()),
        "simplest_right": int(simply.sum()),
        "gain": gain(simply, right)[1:],
        "default_gains": None if default is None else gain(right, default),
        "unbalanced": bool(is_unbalanced(np.bincount(classes))),
        "balanced": [balanced_accuracy(found_by_class(one, classes, labels)) for one in (answers, simple)],
        "stated": files["tflite-int8"]["accuracy"],
        "stated_n": report["data"]["test_images"],
        "drop": whole["drop"],
        "agreement": whole["agreement"],
        "bytes": files["tflite-int8"]["size_bytes"],
        "ms": files["tflite-int8"]["ms_per_image"],
        "cpu_seconds": json.loads(cost.read_text()),
    }
    if other:
        elsewhere = photos_in(other)
        true = np.array([labels.index(label) for label in elsewhere.values()])
        found["elsewhere"] = [int(np.sum(answered(bundle, other, list(elsewhere)) == true)), len(elsewhere)]
    return found


def photos_in(archive: Path) -> dict[str, str]:
    """Return the class of each photo, by its name in an archive."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if Path(name).suffix.lower() in SUFFIXES)
    return {name: name.split("/")[-2] for name in names}


def drawn(photos: Mapping[str, str], per_class: int, seed: int) -> list[str]:
    """Return the photos that teach: `per_class` of each class, or with 0 three quarters of each."""
    draw, found = random.Random(seed), list[str]()
    for label in sorted(set(photos.values())):
        names = [name for name, one in photos.items() if one == label]
        found += draw.sample(names, min(per_class, len(names)) if per_class else len(names) - round(len(names) / 4))
    return found


def answered(bundle: Path, archive: Path, names: Sequence[str]) -> np.ndarray:
    """Return the int8 model's answers to photos of an archive, int (n,)."""
    classifier = Classifier.load(bundle, engine="litert", precision="int8")
    with zipfile.ZipFile(archive) as opened:
        results = (classifier.classify(opened.read(name), top_k=1, threshold=0.0) for name in names)
        return np.array([classifier.labels.index(result.top[0].label) for result in results])


@lru_cache(1)
def simplest(archive: Path, features: Path, taught: tuple[str, ...], kept: tuple[str, ...]) -> list[str]:
    """Return the simplest way's answers to the photos kept aside. The folder `features` caches the features."""
    recipe, whole, photos = all_photos(archive)
    place = {short(source): index for index, (_, source) in enumerate(photos.places)}
    values = features_of(photos, recipe, features)
    teaching, asked = ([place[short(name)] for name in names if short(name) in place] for names in (taught, kept))
    if len(asked) < len(kept):
        sys.exit(f"{archive}: {len(kept) - len(asked)} photos kept aside are exact copies of others, or unreadable")
    answers = fitted(values[teaching], photos.classes[teaching]).predict(values[asked])
    return [whole.labels[answer] for answer in answers]


def short(name: str) -> str:
    """Return a photo's class folder and file name."""
    return "/".join(name.split("/")[-2:])


def row(result: Row) -> tuple[str, ...]:
    """Return a training's figures as text."""
    n, elsewhere = result["n"], result.get("elsewhere")
    compared = result.get("default_gains") or [100 * (result["right"] - result["simplest_right"]) / n, *result["gain"]]
    return (
        result["data"] + (" by group" if result["group_by"] else ""), str(result["per_class"] or "three quarters"), str(result["seed"]),
        f"{result['train']:,}", f"{n:,}", result["way"] + (": head" if result["head_ships"] and result["way"] != "quick" else ""),
        result["network"], f"{result['right'] / n:.2%}", f"{result['balanced'][0]:.2%}", f"{result['simplest_right'] / n:.2%}",
        f"{compared[0]:+.2f}", "{:+.2f} to {:+.2f}".format(*compared[1:]),
        f"{result['drop']:+.2f}, {result['agreement']:.2%} of {result['stated_n']:,}",
        f"{elsewhere[0] / elsewhere[1]:.2%}, said {result['stated']:.2%}" if elsewhere else "", f"{result['bytes']:,}",
        f"{result['cpu_seconds'] / 60:.1f}",
    )  # fmt: skip


def summary(results: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a row for each set of photos divided by photo, three quarters of which taught all ways, with the balanced accuracies of
    unbalanced classes."""
    rows = []
    for title, *ways in sets(results, *WAYS):
        default = ways[1]
        more = 100 * (default["right"] - default["simplest_right"]) / default["n"]
        rows.append((
            title, f"{default['n']:,}", *map(shares, ways), shares(default, 1, "simplest_right"),
            "{:+.1f} ({:+.1f} to {:+.1f})".format(more, *default["gain"]),
            ", ".join("head" if one["head_ships"] else "fine-tuned" for one in ways[1:]),
            ", ".join(f"{one['agreement']:.2%}" for one in ways), ", ".join(f"{one['bytes']:,}" for one in ways),
            minutes(*ways),
        ))  # fmt: skip
    return rows


def earlier_summary(results: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a row for each set on which an earlier version trained too."""
    return [
        (
            title, f"{default['n']:,}", shares(default), shares(earlier),
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*earlier["default_gains"]),
            f"{default['bytes']:,}, {earlier['bytes']:,}", minutes(quick, default, earlier),
        )
        for title, quick, default, earlier in sets(results, "quick", "default", "earlier")
    ]  # fmt: skip


def few_summary(results: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a row for each set of photos: the median, lowest and highest of the default's draws, and the simplest way's median. They are
    accuracies, or balanced accuracies if classes are unbalanced."""
    rows = []
    for data, title in TITLES.items():
        cells = []
        for count in PER_CLASS:
            drawn = [one for one in results if (one["data"], one["per_class"], one["way"]) == (data, count, "default")]
            ours, simple = ([leading(one, part) for one in drawn] for part in (0, 1))
            cells.append(
                f"{statistics.median(ours):.1%} ({min(ours):.1%} to {max(ours):.1%}), {statistics.median(simple):.1%}"
                if drawn
                else ""
            )
        rows.append((title, *cells))
    return rows


def leading(result: Row, part: int) -> float:
    """Return the balanced accuracy of the int8 file (0) or the simplest way (1) if classes are unbalanced, else the accuracy."""
    right: int = result[("right", "simplest_right")[part]]
    return float(result["balanced"][part]) if result["unbalanced"] else right / result["n"]


def sets(results: Sequence[Row], *ways: str) -> Iterator[tuple[Any, ...]]:
    """Yield the title and the results of each set, divided by photo, three quarters of which taught all of some ways."""
    for data, title in TITLES.items():
        found = {
            one["way"]: one for one in results if (one["data"], one["per_class"], one["group_by"]) == (data, 0, None)
        }
        if found.keys() >= set(ways):
            yield title, *(found[way] for way in ways)


def shares(result: Row, part: int = 0, count: str = "right") -> str:
    text = f"{result[count] / result['n']:.2%}"
    return f"{text}, balanced {result['balanced'][part]:.2%}" if result["unbalanced"] else text


def minutes(*results: Row) -> str:
    return ", ".join(f"{one['cpu_seconds'] / 60:.1f}" for one in results)


if __name__ == "__main__":
    main()
