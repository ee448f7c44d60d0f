"""What a user's photos give: `edgecnn train --folds 5` on sets of photos, or with --quick the last layer only, next to the simplest way.

Every photo is classified by a model that did not learn from it. The simplest way is logistic regression on the features of the whole
EfficientNet-Lite0 at 224x224, with the same folds; five folds inside the training photos choose its regularization. Runs are kept in
--runs, so an interrupted bench continues. Minutes are for one fold: to choose a network, and to train. With --quick they are for all of it.

    python tools/bench/photo_sets.py --data trash-photos.zip grocery.zip signs.zip masks.zip --runs RUNS --seeds 1 2 3
    … --quick --out photo_sets_quick.json
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import Results, Row, about, environment, finish, parser
from simplest import features_of, fitted

from edgecnn.data import open_dataset
from edgecnn.data.folds import Folds, read_folds
from edgecnn.evaluate.answers import HeldOut, require_held_out
from edgecnn.evaluate.statistics import balanced_accuracy, found_by_class, paired_interval
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import CHOICE, FEATURES, Run
from edgecnn.stages.folds import fold_runs

FOLDS = 5
HEADINGS = (
    "photos", "seed", "n", "networks of the folds", "float", "int8", "agreement", "simplest", "int8 gains", "95 % interval", "min",
)  # fmt: skip


def main() -> None:
    """Train, print a table and write the figures."""
    made = parser(__doc__, "photo_sets")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument("--runs", type=Path, required=True, help="folder in which the runs are kept")
    made.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    made.add_argument("--quick", action="store_true", help="fit only the last layer")
    made.add_argument("--jobs", type=int, default=2, help="folds to train at a time (default: 2)")
    arguments = made.parse_args()
    archives = {path.stem: path.resolve() for path in arguments.data}
    context = about("photo_sets", jobs=arguments.jobs, **({"quick": True} if arguments.quick else {}))
    results = Results(arguments.out, context)
    for case in results.missing(seed=arguments.seeds, data=archives):
        run = (arguments.runs / f"{case['data']}-{case['seed']}").resolve()
        how = ["--quick"] if arguments.quick else ["--folds", str(FOLDS), "--jobs", str(arguments.jobs)]
        cpu_seconds = train(archives[case["data"]], run, case["seed"], how)
        results.add(**case, **figures(run), **({"cpu_seconds": cpu_seconds} if arguments.quick else {}))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


def train(data: Path, run: Path, seed: int, how: list[str]) -> float:
    """Train in the given way with the defaults, from where it stopped; return the processor seconds that it took."""
    command = [sys.executable, "-m", "edgecnn", "train"]
    if run.exists():
        command += ["--resume", *how[2:], "--out", str(run)]
    else:
        command += ["--data", str(data), *how, "--set", f"seed={seed}", "--out", str(run)]
    run.parent.mkdir(parents=True, exist_ok=True)
    before = os.times()
    subprocess.run(command, cwd=run.parent, env=environment(), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return round(after.children_user + after.children_system - before.children_user - before.children_system, 1)


def figures(path: Path) -> Row:
    """Return counts of a finished run's held-out answers and those of the simplest way, its folds' networks, and seconds."""
    run = Run(path)
    held, infos, folds = require_held_out(run), run.info.folds, read_folds(run)
    assert folds is not None
    float_answers, int8_answers = held.float.argmax(axis=1), held.int8.argmax(axis=1)
    simple_answers = simplest(run, folds, held)
    answers = float_answers, int8_answers, simple_answers
    right, simple = int8_answers == held.classes, simple_answers == held.classes
    lost, gained = int(np.sum(simple & ~right)), int(np.sum(right & ~simple))
    low, high = paired_interval(lost, gained, len(right))
    choices = [one.stored(CHOICE, NetworkChoice) for one in fold_runs(run, folds)]
    return {
        "n": len(right),
        "float_right": int(np.sum(float_answers == held.classes)),
        "int8_right": int(right.sum()),
        "agreed": int(np.sum(float_answers == int8_answers)),
        "simplest_right": int(simple.sum()),
        "gain": [-high, -low],
        "balanced": [
            balanced_accuracy(found_by_class(answer, held.classes, run.info.data.labels)) for answer in answers
        ],
        "networks": [f"{one.network} at {one.width}" for one in infos],
        "choice_seconds": [choice.seconds for choice in choices if choice],
        "train_seconds": [one.seconds for one in infos],
    }


def simplest(run: Run, folds: Folds, held: HeldOut) -> np.ndarray:
    """Return the simplest way's answers to a run's held-out photos, int (n,)."""
    from edgecnn.train.candidates import Photos

    dataset = folds.all_teach(open_dataset(run.recipe.data))
    photos = Photos(dataset, ("train",), 3, run.recipe.seed, len(held.classes), None)
    features = features_of(photos, run.recipe, run.file(FEATURES))
    place = {one: index for index, one in enumerate(photos.hashes)}
    features = features[[place[one] for one in held.hashes.tolist()]]
    answers = np.zeros(len(held.classes), int)
    for fold in range(1, FOLDS + 1):
        kept, asked = held.fold != fold, held.fold == fold
        answers[asked] = fitted(features[kept], held.classes[kept]).predict(features[asked])
    return answers


def row(result: Row) -> tuple[str, ...]:
    """Return a training's figures as text."""
    counts = [result[name] for name in ("float_right", "int8_right", "agreed", "simplest_right")]
    shares = [f"{count / result['n']:.2%}" for count in counts]
    gain = 100 * (result["int8_right"] - result["simplest_right"]) / result["n"]
    chosen = Counter(map(str, result["networks"])).most_common()
    networks = ", ".join(f"{network} ({count})" for network, count in chosen)
    if "cpu_seconds" in result:
        minutes = [f"{result['cpu_seconds'] / 60:.1f}"]
    else:
        minutes = [f"{np.median(result[part]) / 60:.1f}" for part in ("choice_seconds", "train_seconds")]
    return (result["data"], str(result["seed"]), f"{result['n']:,}", networks, *shares, f"{gain:+.2f}",
            f"{result['gain'][0]:+.2f} to {result['gain'][1]:+.2f}", " + ".join(minutes))  # fmt: skip


def pooled(results: Sequence[Row]) -> str:
    """Return the agreement, the drop and both ways' errors over all photos, as a sentence."""
    n, float_right, int8_right, agreed, simplest_right = (
        sum(result[name] for result in results)
        for name in ("n", "float_right", "int8_right", "agreed", "simplest_right")
    )
    drop = 100 * (float_right - int8_right) / n
    return (
        f"Of all {n:,} photos, int8 and float give {agreed / n:.2%} the same answer, and int8 is right "
        f"{abs(drop):.2f} points {'less' if drop > 0 else 'more'} often. Its error is {1 - int8_right / n:.2%}, the simplest way's "
        f"{1 - simplest_right / n:.2%}."
    )


if __name__ == "__main__":
    main()
