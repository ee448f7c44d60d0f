"""The stress test of shipped models, and of networks trained on photos with and without --robust.

In each draw one stratified fold of five is the test split. `edgecnn run` skips finished stages, so the bench can be interrupted. Validation
images are for choosing and the test split for confirming: the runs are measured on both, the shipped models on the test split.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/stress.py --data <trash-photos.zip> --runs /tmp/stress
"""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, about, edgecnn, finish, parser
from photos_by_fold import divided, listed, write_split

from edgecnn.runs import HISTORY

SHIPPED: Mapping[str, Sequence[str]] = {
    "digits": (),
    "cifar10-resnet_25kb": ("--limit", "2000"),
    "cifar10-resnet8": ("--limit", "2000"),
}
"""Shipped models, with the number of test images to measure: the first ones by content hash."""

PHOTOS: Mapping[str, Mapping[str, Any]] = {"network": {"name": "efficientnet_lite0_270kb", "height": 96, "width": 96}}
"""The recipe of the runs on photos, without data and seed."""

WAYS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"lite": {}, "lite-robust": {"train": {"robust": True}}}
"""The runs on photos by name, and their additions to the recipe."""

DRAWS = (3, 4, 5)
"""Seeds for dividing the photos and for training. Draws 1 and 2 were looked at while `--robust` was developed."""

SPLITS = ("validation", "test")

HEADINGS = ("model", "split", "images", "clean", "mean corrupted", "95 % interval", "agreement", "worst", "points lost")
GAINS = ("draw", "split", "images", "clean", "with --robust", "points", "mean corrupted", "with --robust", "points")
BY_CORRUPTION = ("corruption", "without", "with --robust", "points")


def main() -> None:
    """Train, measure, print a table and write the figures."""
    made = parser(__doc__, "stress")
    made.add_argument("--data", type=Path, required=True, help="a zip of photos, with one folder per class")
    made.add_argument("--runs", type=Path, required=True, help="a folder that keeps the trained runs")
    arguments = made.parse_args()
    runs = arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    entries = [shipped(name, options) for name, options in SHIPPED.items()]
    photos = listed(arguments.data)
    for draw in DRAWS:
        if not (data := runs / f"photos-{draw}.zip").exists():
            write_split(arguments.data, data, photos, divided(photos, 0, 0, draw))
        for name in WAYS:
            run = trained(runs, name, draw)
            entries += [{"model": name, "draw": draw, "stress": stress(run, "--split", split)} for split in SPLITS]
    report = {
        **about("stress", recipe=PHOTOS),
        "entries": entries,
        "gains": {split: gain(entries, split) for split in SPLITS},
        "training_s": training_s(runs),
    }
    finish(arguments.out, report, HEADINGS, map(row, entries))


def shipped(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure a shipped model on its test split."""
    bundle = ROOT / "models" / name / f"{name}.edgecnn"
    return {"model": name, "stress": stress(bundle, "--split", "test", *options)}


def trained(runs: Path, name: str, draw: int) -> Path:
    """Run a recipe with `edgecnn run` in a separate process, and return the run."""
    recipe, run = runs / f"{name}-{draw}.toml", runs / f"{name}-{draw}"
    tables: dict[str, Mapping[str, Any]] = {
        "data": {"source": str(runs / f"photos-{draw}.zip")},
        **PHOTOS,
        **WAYS[name],
    }
    lines = [f"seed = {draw}"]
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    recipe.write_text("\n".join(lines))
    edgecnn("run", recipe, "--out", run, "--max-drop", "100", cwd=runs)
    return run


def training_s(runs: Path) -> dict[str, float]:
    """Return the training seconds, without validation: medians over the draws."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for name in WAYS:
        for draw in DRAWS:
            with (runs / f"{name}-{draw}" / HISTORY).open(encoding="utf-8") as file:
                times[name].append(sum(float(epoch["seconds"]) for epoch in csv.DictReader(file)))
    return {name: statistics.median(values) for name, values in times.items()}


def stress(path: Path, *options: str) -> dict[str, Any]:
    """Return the stress report of a run or a bundle without figures by strength; an existing report of a run is reused."""
    kept = path / f"stress-{options[1]}.json"
    text = kept.read_bytes() if kept.exists() else edgecnn("stress", path, "--json", *options)
    report: dict[str, Any] = json.loads(text)
    for item in report["corruptions"]:
        del item["strengths"]
    return report


def reports(entries: Sequence[Mapping[str, Any]], name: str, split: str, draws: Sequence[int]) -> list[dict[str, Any]]:
    """Return a way's stress reports on a split, one per draw."""
    return [
        item["stress"]
        for draw in draws
        for item in entries
        if (item["model"], item.get("draw"), item["stress"]["data"]["split"]) == (name, draw, split)
    ]


def figures(entries: Sequence[Mapping[str, Any]], name: str, split: str, draws: Sequence[int]) -> dict[str, float]:
    """Return the int8 model's accuracies over the images of some draws together, clean and mean corrupted, and the image count."""
    found = reports(entries, name, split, draws)
    images = [item["data"]["images"] for item in found]
    return {
        "images": sum(images),
        "clean": statistics.fmean((item["clean"]["int8"]["accuracy"] for item in found), weights=images),
        "corrupted": statistics.fmean((item["mean_int8"]["accuracy"] for item in found), weights=images),
    }


def gain(entries: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    """Return the gain from --robust on a split over all draws together, in percentage points of the int8 model."""
    before, after = (figures(entries, name, split, DRAWS) for name in WAYS)
    return {key: 100 * (after[key] - before[key]) for key in ("clean", "corrupted")}


def gain_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the gain from --robust on each split, per draw and over all draws, as text under GAINS."""
    rows: list[tuple[str, ...]] = []
    each: list[tuple[int, ...]] = [(draw,) for draw in DRAWS]
    for split in SPLITS:
        for draws in (*each, DRAWS):
            before, after = (figures(report["entries"], name, split, draws) for name in WAYS)
            cells = [str(draws[0]) if len(draws) == 1 else "all", split, f"{before['images']:,}"]
            for key in ("clean", "corrupted"):
                cells += [f"{before[key]:.2%}", f"{after[key]:.2%}", f"{100 * (after[key] - before[key]):+.2f}"]
            rows.append(tuple(cells))
    return rows


def corruption_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the int8 models' mean accuracy by corruption on the test splits, averaged over the draws, as text under BY_CORRUPTION."""
    before, after = (reports(report["entries"], name, "test", DRAWS) for name in WAYS)
    rows: list[tuple[str, ...]] = []
    for index, item in enumerate(before[0]["corruptions"]):
        one, other = (statistics.mean(found["corruptions"][index]["int8"] for found in way) for way in (before, after))
        rows.append((item["corruption"], f"{one:.2%}", f"{other:.2%}", f"{100 * (other - one):+.2f}"))
    return rows


def row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an entry as text."""
    report = entry["stress"]
    worst = next(item for item in report["corruptions"] if item["corruption"] == report["worst"])
    agreements = [item["agreement"] for item in report["corruptions"]]
    agreement = None if None in agreements else statistics.mean(agreements)
    return (
        f"{entry['model']}, draw {entry['draw']}" if "draw" in entry else entry["model"],
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
