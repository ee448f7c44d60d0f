"""How often does a small validation part call the wrong model better, head or fine-tuned, and what does that cost?

Reads runs by folds that tuning.json ended, such as those of `ways.py --ways folds`: each photo has an answer of a head and of a fine-tuned
model, neither of which saw it. Photos drawn from each class stand in for a validation part, `edgecnn train`'s rule decides by their
answers, and the other photos judge. Figures are balanced accuracies if a set is unbalanced. A set whose head makes no mistake says nothing.

    python tools/bench/verdicts.py RUNS/signs-0-1/folds RUNS/coins-0-1/folds
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import Row, about, finish, parser
from ways import TITLES

from edgecnn.data.decoding import class_weights, equal_weights
from edgecnn.data.folds import read_folds
from edgecnn.evaluate.statistics import balanced_accuracy, found_by_class
from edgecnn.runs import Run
from edgecnn.stages import Silent
from edgecnn.stages.folds import answers_of, asked_recipe, layer_answers, rival
from edgecnn.stages.train import kept_split_groups, open_images
from edgecnn.train.best import verdict
from edgecnn.train.settle import FEWEST_JUDGES

SHARES = (0.1, 0.2, 0.3)
"""Parts of the photos that decide: today's validation part, a fold of five, and more."""

HEADINGS = (
    "photos", "n", "head", "fine-tuned",
    *(f"{share:.0%} decide: fine-tuned ships, points lost" for share in SHARES),
)  # fmt: skip


def main() -> None:
    """Draw parts, print a table and write the figures."""
    made = parser(__doc__, "verdicts")
    made.add_argument("runs", type=Path, nargs="+", help="runs that were trained with --folds")
    made.add_argument("--draws", type=int, default=1_000, help="for each share (default: 1,000)")
    arguments = made.parse_args()
    results = [measured(Run(path), arguments.draws) for path in arguments.runs]
    finish(arguments.out, {**about("verdicts", draws=arguments.draws), "results": results}, HEADINGS, map(row, results))


def measured(run: Run, draws: int) -> Row:
    """Return the accuracies of a run's heads and fine-tuned models, and how often parts of their answers choose the latter."""
    asked, folds = asked_recipe(run), read_folds(run)
    assert folds is not None
    dataset = open_images(asked, run, Silent(), None)
    dataset.split_groups = kept_split_groups(run) or dataset.split_groups
    whole = folds.all_teach(dataset)
    recipe = rival(asked, whole, run, Silent())
    assert recipe is not None
    hashes, classes, head = layer_answers(recipe, whole, run, folds, Silent())
    held = answers_of(run, folds)
    place = {one: index for index, one in enumerate(held.hashes.tolist())}
    tuned = held.float[[place[one] for one in hashes]]
    unbalanced = bool(np.ptp(class_weights(classes, recipe.train.class_weights)) > 0)

    def accuracy(logits: np.ndarray, chosen: np.ndarray) -> float:
        answers, true = logits[chosen].argmax(axis=1), classes[chosen]
        return (
            balanced_accuracy(found_by_class(answers, true, whole.labels))
            if unbalanced
            else float(np.mean(answers == true))
        )

    random, everything, parts = np.random.default_rng(1), np.arange(len(classes)), []
    for share in SHARES:
        fine_tuned, right = 0, []
        for _ in range(draws):
            part = drawn(classes, share, random)
            weights = equal_weights(classes[part]) if unbalanced else np.ones(len(part))
            made = verdict(head[part], tuned[part], classes[part], weights, epochs=1)
            ships = len(part) >= FEWEST_JUDGES and made.ships == "fine-tuned"
            fine_tuned += ships
            right.append(accuracy(tuned if ships else head, np.setdiff1d(everything, part)))
        parts.append({"share": share, "fine_tuned": fine_tuned / draws, "accuracy": float(np.mean(right))})
    return {
        "data": run.path.parent.name.partition("-0-")[0],
        "n": len(classes),
        "head": accuracy(head, everything),
        "fine_tuned": accuracy(tuned, everything),
        "parts": parts,
    }


def drawn(classes: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Return the indices of a share of each class's photos; a fraction of a photo is the probability of one more."""
    found = []
    for label in np.unique(classes):
        photos = random.permutation(np.flatnonzero(classes == label))
        found.append(photos[: int(share * len(photos) + random.random())])
    return np.sort(np.concatenate(found))


def row(result: Row) -> Sequence[str]:
    """Return a set's figures as text."""
    best = max(result["head"], result["fine_tuned"])
    return (
        TITLES[result["data"]], f"{result['n']:,}", f"{result['head']:.1%}", f"{result['fine_tuned']:.1%}",
        *(f"{part['fine_tuned']:.0%}, {100 * (best - part['accuracy']):.2f}" for part in result["parts"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
