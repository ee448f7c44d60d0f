"""Two runs on the photos that both have answers for. Each run's own test photos cannot show which of them is better."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecnn.bundle.read import Bundle
from edgecnn.data.recorded import known_images
from edgecnn.evaluate.held_out import read_answers, read_held_out
from edgecnn.evaluate.statistics import mcnemar_exact
from edgecnn.report.figures import Pair
from edgecnn.runs import Run
from edgecnn.verify.parity import paired_figures
from edgecnn.verify.predictions import Predictions

Answered = Mapping[str, tuple[str, str]]
"""Maps a photo's hash, or a named dataset's name for it, to the true class and int8's answer."""


def run_answers(run: Run, predictions: Predictions | None, int8: str | None) -> Answered:
    """Return the answers to a run's test photos, or to all photos if it has folds; empty if it was not verified."""
    labels, data = run.info.data.labels, run.info.data
    if run.info.folds and (held := read_held_out(run)):
        names, true, answers = held.hashes.tolist(), held.classes, held.int8.argmax(axis=1)
    elif predictions is None or int8 is None or int8 not in predictions.answers:
        return {}
    else:
        listed = known_images(run).files.items()
        hashes = {file: digest for (split, _, digest), files in listed if split == "test" for file in files}
        names = [hashes.get(source, f"{data.name}: {source}") for source in predictions.sources]
        true, answers = predictions.true, predictions.answers[int8]
    return {name: (labels[one], labels[two]) for name, one, two in zip(names, true, answers, strict=True)}


def bundle_answers(bundle: Bundle) -> Answered:
    """Return the answers of a bundle's folds; empty if it was made without folds."""
    return {digest: (row["class"], row["int8"]) for digest, row in read_answers(bundle).items()}


def pairs(runs: Sequence[tuple[str, Answered]]) -> Iterator[Pair | str]:
    """Yield the first run paired with each other one on their common photos with the same true class, or why that is impossible."""
    (first, one), *others = runs or [("", {})]
    for name, other in others:
        both = [key for key in one if key in other and one[key][0] == other[key][0]]
        if both:
            rows = np.array([(one[key][0], one[key][1], other[key][1]) for key in both])
            numbers = np.unique(rows, return_inverse=True)[1].reshape(rows.shape)
            figures = paired_figures(first, name, numbers[:, 1], numbers[:, 2], numbers[:, 0])
            yield Pair(**vars(figures), mcnemar_p=mcnemar_exact(figures.lost, figures.gained))
            continue
        lacking = [run for run, answers in ((first, one), (name, other)) if not answers]
        why = f"there are no per-photo answers for {' and '.join(lacking)}" if lacking else "no photo tested both"
        yield (
            f"{first} and {name} cannot be compared: {why}, and their own photos may differ in how hard they are. "
            "To compare two bundles on the same photos: edgecnn compare OLD.edgecnn NEW.edgecnn --data DATA"
        )
