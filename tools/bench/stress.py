"""The stress test of shipped models, of a run on photos, and of the same run trained with --robust.

`edgecnn run` trains the recipes in a folder of runs and skips what is done already, so the bench can be interrupted and started again.
Validation images choose and the test split confirms: both are measured for the runs, the test split for the shipped models. How much longer
a training with --robust takes is estimated by `edgecnn train --dry-run`, which times a few steps of both, alternately.

    EDGECNN_DATA=<folder of trash-photos.zip and cifar10-jpeg.zip> python tools/bench/stress.py --runs /tmp/stress
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgecnn.files import canonical_json, write_atomic
from edgecnn.report.table import text_table
from edgecnn.versions import library_versions, processor

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "stress.json"

SHIPPED: Mapping[str, Sequence[str]] = {
    "digits": (),
    "cifar10-resnet_25kb": ("--limit", "2000"),
    "cifar10-resnet8": ("--limit", "2000"),
}
"""Shipped models, and how many of their test images are measured: the first ones by their content's hash."""

PHOTOS: Mapping[str, Mapping[str, Any]] = {
    "data": {"source": "trash-photos.zip"},
    "network": {"name": "efficientnet_lite0_270kb", "height": 96, "width": 96},
}
"""The recipe of the runs on photos."""

WAYS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"lite": {}, "lite-robust": {"train": {"robust": True}}}
"""The runs on photos by name, and what each adds to the recipe."""

SPLITS = ("validation", "test")

ROUNDS = 3
"""Times that both trainings are timed, alternately; the medians count."""

HEADINGS = ("model", "split", "images", "clean", "mean corrupted", "95 % interval", "agreement", "worst", "points lost")

GAINS = ("split", "images", "clean", "with --robust", "points", "mean corrupted", "with --robust", "points")
BY_CORRUPTION = ("corruption", "without", "with --robust", "points")


def main() -> None:
    """Train, measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs, which are kept there")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    entries = [shipped(name, options) for name, options in SHIPPED.items()]
    for name, changes in WAYS.items():
        run = trained(arguments.runs, name, changes)
        entries += [{"model": name, "stress": stress(run, "--split", split)} for split in SPLITS]
    times = training_s(arguments.runs)
    report: dict[str, Any] = {
        "bench": "stress",
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "versions": library_versions(),
        "recipe": PHOTOS,
        "entries": entries,
        "gains": {split: gain(entries, split) for split in SPLITS},
        "training_s": times,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(text_table(HEADINGS, [row(entry) for entry in entries]))
    for split, found in report["gains"].items():
        print(
            f"--robust, {split}: mean corrupted accuracy {found['corrupted']:+.2f} points, clean accuracy {found['clean']:+.2f}"
        )
    print(f"--robust takes {times['lite-robust'] / times['lite']:.2f} times the training time")
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def shipped(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure a shipped model on its test split."""
    bundle = ROOT / "models" / name / f"{name}.edgecnn"
    return {"model": name, "stress": stress(bundle, "--split", "test", *options)}


def trained(runs: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """Take a recipe through `edgecnn run`, in a process of its own, and return the run."""
    command("run", str(recipe_of(runs, name, changes)), "--out", str(runs / name), "--max-drop", "100")
    return runs / name


def recipe_of(runs: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """Write a run's recipe, and return its path."""
    tables: dict[str, Mapping[str, Any]] = {**PHOTOS, **changes}
    path = runs / f"{name}.toml"
    path.write_text(
        "".join(
            f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for table, keys in tables.items()
        )
    )
    return path


def training_s(runs: Path) -> dict[str, float]:
    """Return how many seconds the training of each run takes, estimated from steps that are timed alternately."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, changes in WAYS.items():
            found = json.loads(command("train", str(recipe_of(runs, name, changes)), "--dry-run", "--json"))
            times[name].append(found["seconds"])
    return {name: statistics.median(values) for name, values in times.items()}


def stress(path: Path, *options: str) -> dict[str, Any]:
    """Measure a run or a bundle, and return the report without its figures by strength; one that the run has of this split is taken."""
    kept = path / f"stress-{options[1]}.json"
    text = kept.read_bytes() if kept.exists() else command("stress", str(path), "--json", *options)
    report: dict[str, Any] = json.loads(text)
    for item in report["corruptions"]:
        del item["strengths"]
    return report


def command(*arguments: str) -> bytes:
    """Run edgecnn and return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "edgecnn", *arguments], stdout=subprocess.PIPE, check=True, env=environment
    )
    return done.stdout


def pair(entries: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Any]]:
    """Return the stress reports of the runs on photos, in the order of WAYS, on a split."""
    return [
        next(item["stress"] for item in entries if item["model"] == name and item["stress"]["data"]["split"] == split)
        for name in WAYS
    ]


def gain(entries: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    """Return what --robust gained on a split, in percentage points of the int8 model."""
    before, after = pair(entries, split)
    return {
        "clean": 100 * (after["clean"]["int8"]["accuracy"] - before["clean"]["int8"]["accuracy"]),
        "corrupted": 100 * (after["mean_int8"]["accuracy"] - before["mean_int8"]["accuracy"]),
    }


def gain_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what --robust gained on each split as text under GAINS."""
    rows = []
    for split in SPLITS:
        before, after = pair(report["entries"], split)
        found = report["gains"][split]
        rows.append(
            (
                split,
                f"{before['data']['images']:,}",
                *(f"{item['clean']['int8']['accuracy']:.2%}" for item in (before, after)),
                f"{found['clean']:+.2f}",
                *(f"{item['mean_int8']['accuracy']:.2%}" for item in (before, after)),
                f"{found['corrupted']:+.2f}",
            )
        )
    return rows


def corruption_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the int8 models' mean accuracy by corruption on the test split as text under BY_CORRUPTION."""
    before, after = pair(report["entries"], "test")
    return [
        (one["corruption"], f"{one['int8']:.2%}", f"{other['int8']:.2%}", f"{100 * (other['int8'] - one['int8']):+.2f}")
        for one, other in zip(before["corruptions"], after["corruptions"], strict=True)
    ]


def row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an entry as text."""
    report = entry["stress"]
    worst = next(item for item in report["corruptions"] if item["corruption"] == report["worst"])
    agreements = [item["agreement"] for item in report["corruptions"]]
    agreement = None if None in agreements else statistics.mean(agreements)
    return (
        entry["model"],
        report["data"]["split"],
        f"{report['data']['images']:,}",
        f"{report['clean']['int8']['accuracy']:.2%}",
        f"{report['mean_int8']['accuracy']:.2%}",
        " to ".join(f"{end:.2%}" for end in report["mean_int8"]["interval"]),
        "-" if agreement is None else f"{agreement:.2%}",
        report["worst"],
        f"{worst['lost']:.2f}",
    )


if __name__ == "__main__":
    main()
