"""Measure what each ingredient of a recipe is worth: validation accuracy with one taken out or put in, over several seeds.

Of an ingredient that the recipe has, the run without it is made; of one that it lacks, the run with it. Differences are of the same seed
and in percentage points; positive means that the variant is better. Runs take turns: the base and all variants by the first seed, then
by the next. Only the float phase is trained. Every run is kept in --runs, so that the bench can be interrupted at any moment: the same
command goes on where it was, in the middle of a run too. The test split is not touched.

    python tools/bench/ablation.py models/cifar10-article/recipe.toml --data cifar10-jpeg.zip --set train.epochs=10 --seeds 1 2 3
    python tools/bench/ablation.py … --only cutout schedule --set train.shift=2
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from resume import about

from edgecnn.data import Dataset, open_dataset
from edgecnn.errors import EdgeCNNError, TrainingError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.pipeline import resume_or_create
from edgecnn.recipe import Recipe, build_recipe, load_recipe, merge, nest, parse_overrides, to_tables
from edgecnn.report.table import text_table
from edgecnn.runs import HISTORY, Run

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "ablation.json"

INGREDIENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flip": ({"train.flip": "no"}, {"train.flip": "yes"}),
    "shift": ({"train.shift": 0}, {"train.shift": 2}),
    "cutout": ({"train.cutout": 0}, {"train.cutout": 8}),
    "label smoothing": ({"train.label_smoothing": 0.0}, {"train.label_smoothing": 0.1}),
    "weight decay": ({"train.weight_decay": 0.0}, {"train.weight_decay": 0.01}),
    "schedule": ({"train.schedule": "constant"}, {"train.schedule": "one-cycle"}),
    "bfloat16": ({"train.precision": "float32"}, {"train.precision": "bfloat16"}),
    "teacher": ({"train.teacher": ""}, {}),
}
"""Each ingredient's settings without it and with it (a teacher's: --teacher). Where the recipe has it, its own strength counts."""

ALTERNATIVES: dict[str, dict[str, Any]] = {
    "alternating flip": {"train.flip": "alternating"},
    "cosine": {"train.schedule": "cosine"},
}
"""Settings that stand in for the recipe's own."""


def main() -> None:
    """Make the runs that are missing, print the table, and write the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the base recipe")
    parser.add_argument("--data", help="instead of the recipe's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the base; repeat it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument(
        "--only", nargs="+", choices=(*INGREDIENTS, *ALTERNATIVES), help="these ingredients (default: all)"
    )
    parser.add_argument("--teacher", type=Path, help="a run to learn from, for the ingredient 'teacher'")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ablation"), help="where runs go (default: runs/ablation)"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help=f"the figures (default: {RESULT.relative_to(ROOT)})")
    arguments = parser.parse_args()
    try:
        base = base_tables(arguments.recipe, arguments.set, arguments.data)
        dataset = open_dataset(build_recipe(base).data)
        if build_recipe(base).train.flip == "auto":
            base = merge(base, {"train": {"flip": "yes" if dataset.mirror else "no"}})
        chosen = [
            name for name in arguments.only or (*INGREDIENTS, *ALTERNATIVES) if name != "teacher" or arguments.teacher
        ]
        variants = make_variants(base, chosen, arguments.teacher)
        report = measure(base, variants, arguments.seeds, dataset, (arguments.runs.resolve(), arguments.out))
    except EdgeCNNError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(
        f"{report['machine']}; {report['data']}, {report['validation_images']:,} validation images, seeds {report['seeds']}"
    )
    print(text_table(("", "settings", "median", "difference", "of each seed", "seconds"), rows(report)))


def base_tables(recipe: Path, settings: Sequence[str], data: str | None) -> dict[str, Any]:
    """Return the base recipe's tables: the file, what --set and --data lay over it, and no quantization-aware epochs."""
    tables = merge(load_recipe(recipe), parse_overrides(settings))
    tables = merge(tables, {"qat": {"epochs": 0, "calibration_batches": 1}})
    return merge(tables, {"data": {"source": data}}) if data else tables


def make_variants(base: Mapping[str, Any], names: Sequence[str], teacher: Path | None) -> dict[str, dict[str, Any]]:
    """Return the changed keys of each variant by name.

    It is "- NAME" where the base has the ingredient, "+ NAME" where it lacks it, "= NAME" for an alternative.
    """
    resolved = flat(to_tables(build_recipe(base)))
    variants: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in ALTERNATIVES:
            if resolved != resolved | ALTERNATIVES[name]:
                variants[f"= {name}"] = ALTERNATIVES[name]
            continue
        without, having = INGREDIENTS[name]
        if name == "teacher" and teacher:
            having = {"train.teacher": str(teacher.resolve())}
        lacks = resolved == resolved | without
        variants[f"{'+' if lacks else '-'} {name}"] = having if lacks else without
    return variants


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, by dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tables.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def measure(
    base: Mapping[str, Any],
    variants: Mapping[str, dict[str, Any]],
    seeds: Sequence[int],
    dataset: Dataset,
    places: tuple[Path, Path],
) -> dict[str, Any]:
    """Make every run, unless it is there, and write the figures after each; `places` are the folder of runs and the figures' file."""
    runs, out = places
    results: dict[str, dict[str, dict[str, float]]] = {}
    report: dict[str, Any] = {
        **about("ablation"),
        "data": dataset.title,
        "validation_images": dataset.sizes["validation"],
        "seeds": list(seeds),
        "recipe": to_tables(build_recipe(merge(base, {"data": {"source": Path(build_recipe(base).data.source).name}}))),
        "variants": {name: {key: Path(str(v)).name if key == "train.teacher" else v for key, v in changed.items()}
                     for name, changed in variants.items()},
    }  # fmt: skip
    for seed in seeds:
        for name, changed in {"base": {}, **variants}.items():
            recipe = build_recipe(merge(merge(base, nest(changed.items())), {"seed": seed}))
            folder = runs / f"{name.replace(' ', '')}-{seed}"
            results.setdefault(name, {})[str(seed)] = run_one(recipe, dataset, folder)
            report |= {"results": results, **summarize(results)}
            write_atomic(out, canonical_json(report))
    return report


def run_one(recipe: Recipe, dataset: Dataset, path: Path) -> dict[str, float]:
    """Train a run, go on with it, or take it as it is; return its last validation accuracy in the float phase.

    Raises:
        OutputExistsError: if the folder holds a run of another recipe.
        TrainingError: if the training fails.
    """
    run = resume_or_create(recipe, dataset, path, force=False)
    if not trained(run):
        command = [sys.executable, "-m", "edgecnn", "train", "--resume", "--out", str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=path.parent, env=environment, check=False)
        if done.returncode:
            raise TrainingError(f"{path} failed with exit code {done.returncode}; its messages are above.")
    with run.file(HISTORY).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "float"]
    accuracy = float(rows[-1]["validation_accuracy"])
    print(f"{path.name}: {accuracy:.2%}", file=sys.stderr, flush=True)
    return {"accuracy": accuracy, "seconds": sum(float(row["seconds"]) for row in rows)}


def trained(run: Run) -> bool:
    """Tell whether a run was trained to its end."""
    return run.file("run.json").exists() and run.info.state == "trained"


def summarize(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return medians, and differences to the base by seed, in points, of what has been measured so far."""
    medians = {
        name: statistics.median(run["accuracy"] for run in by_seed.values()) for name, by_seed in results.items()
    }
    differences = {
        name: {seed: 100 * (run["accuracy"] - results["base"][seed]["accuracy"]) for seed, run in by_seed.items()}
        for name, by_seed in results.items()
        if name != "base"
    }
    worth = {name: statistics.median(by_seed.values()) for name, by_seed in differences.items()}
    return {"medians": medians, "differences": differences, "median_differences": worth}


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the figures as text, the most useful variant first."""
    result: list[tuple[str, ...]] = []
    worth = report["median_differences"]
    for name in ("base", *sorted(worth, key=lambda name: -worth[name])):
        runs = report["results"][name]
        changed = report["variants"].get(name, {})
        result.append(
            (
                name,
                " ".join(f"{key}={value}" for key, value in changed.items()) or "-",
                f"{report['medians'][name]:.2%}",
                f"{worth[name]:+.2f}" if name in worth else "-",
                " ".join(f"{value:+.2f}" for value in report["differences"].get(name, {}).values())
                or " ".join(f"{run['accuracy']:.2%}" for run in runs.values()),
                f"{statistics.median(run['seconds'] for run in runs.values()):.1f}",
            )
        )
    return result


if __name__ == "__main__":
    main()
