"""How much better than it is the choice of network, input and regularization makes a head look: nested folds of finished `--quick` runs.

The figure of a run is the accuracy of the candidate that all photos chose, by answers of layers without the photo's fold. Nested, each
fold's candidate and regularization are chosen without the fold's photos, and answer only those.

    python tools/bench/choice_optimism.py --runs RUNS/masks RUNS/signs
"""

from pathlib import Path

import numpy as np
from harness import Results, Row, about, finish, parser

from edgecnn.data import open_dataset
from edgecnn.data.balanced import class_weights
from edgecnn.data.folds import read_folds
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.runs import CHOICE, FEATURES, Run
from edgecnn.train import candidates as rules
from edgecnn.train.frozen import Photos, frozen_features
from edgecnn.train.last_layer import Images, fit, held_out, parts

HEADINGS = ("run", "n", "as chosen by all", "nested", "optimism, points")


def main() -> None:
    """Choose again in nested folds, print a table and write the figures."""
    made = parser(__doc__, "choice_optimism")
    made.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="folders of finished --quick runs that chose their network"
    )
    arguments = made.parse_args()
    context = about("choice_optimism")
    results = Results(arguments.out, context)
    runs = {path.name: path for path in arguments.runs}
    for case in results.missing(run=runs):
        results.add(**case, **figures(Run(runs[case["run"]])))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


def figures(run: Run) -> Row:
    """Return a run's accuracy, every class counting the same if its classes are unbalanced, as it says and by nested folds."""
    choice, folds = run.stored(CHOICE, NetworkChoice), read_folds(run)
    assert choice and folds
    dataset = folds.all_teach(open_dataset(run.recipe.data))
    photos = Photos(dataset, ("train",), run.info.input.channels, run.recipe.seed, rules.MOST, None)
    weights, reading = class_weights(photos.classes), (run.recipe.input_scale, run.recipe.input_zero_point)
    features = {
        (family, height): frozen_features(family, (height, width), photos, reading, run.file(FEATURES))
        for family, height, width in {
            (one.network.rpartition("_")[0], one.height, one.width) for one in choice.candidates
        }
    }

    def images_of(one: Candidate) -> Images:
        own = features[one.network.rpartition("_")[0], one.height][one.network]
        return Images(own, photos.classes, weights, len(dataset.labels))

    def chosen(photos_in: np.ndarray) -> tuple[Candidate, np.ndarray, float]:
        """Return the candidate that some photos choose, its answers to them, and its strength."""
        groups = [photos.groups[index] for index in photos_in]
        inner = rules.folds_of(photos.classes[photos_in], groups, run.recipe.seed)
        answers = [held_out(images_of(one).some(photos_in), inner) for one in choice.candidates]
        logits = [found for found, _ in answers]
        taken = rules.taken(rules.compared(choice.candidates, logits, photos.classes[photos_in], weights[photos_in]))
        place = next(
            index
            for index, one in enumerate(choice.candidates)
            if (one.network, one.height) == (taken.network, taken.height)
        )
        return choice.candidates[place], *answers[place]

    everything = np.arange(len(photos.classes))
    nested = np.empty((len(everything), len(dataset.labels)), np.float32)
    for kept, held in parts(rules.folds_of(photos.classes, photos.groups, run.recipe.seed)):
        one, _, strength = chosen(kept)
        nested[held] = fit(images_of(one).some(kept), strength).logits(images_of(one).features[held])
    scores = [weights @ (logits.argmax(axis=1) == photos.classes) for logits in (chosen(everything)[1], nested)]
    return {"n": len(everything), "chosen": scores[0] / len(everything), "nested": scores[1] / len(everything)}


def row(result: Row) -> tuple[str, ...]:
    """Return a run's figures as text."""
    shares = [result["chosen"], result["nested"]]
    return (
        result["run"],
        f"{result['n']:,}",
        *(f"{share:.2%}" for share in shares),
        f"{100 * (shares[0] - shares[1]):+.2f}",
    )


if __name__ == "__main__":
    main()
