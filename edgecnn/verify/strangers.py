"""Results of the decision "stranger", chosen on training and validation images, on the test split."""

import numpy as np

from edgecnn.calibrate.confidence import ChosenStrangers
from edgecnn.data import Split
from edgecnn.evaluate.answers import Progress, device_model, in_chunks, input_contract
from edgecnn.evaluate.statistics import wilson
from edgecnn.export import export_path
from edgecnn.files import sha256_file
from edgecnn.runs import KNOWN, STRANGERS, Run
from edgecnn.runtime.decision import Strangers, softmax
from edgecnn.verify.parity_report import StrangerFigures


def tested_strangers(
    run: Run, chosen: ChosenStrangers, name: str, format_: str, precision: str, test: Split, progress: Progress
) -> StrangerFigures:
    refused = wrong = 0
    if chosen.limit:
        data = export_path(run, format_, precision).read_bytes()
        opened = device_model(data, format_, input_contract(run))
        strangers = Strangers(chosen.limit, known_features(run))

        def answers(images: np.ndarray) -> np.ndarray:
            logits, features = opened.logits_and_features(images)
            scores = softmax(logits / np.float32(chosen.temperature))
            return np.column_stack([strangers.refused(scores.max(axis=1), features), logits.argmax(axis=1)])

        found = in_chunks(answers, test.images, "strangers", progress)
        of_known = found[:, 0].astype(bool)
        refused, wrong = int(of_known.sum()), int(np.sum(of_known & (found[:, 1] != test.classes)))
    made = {key: getattr(chosen, key) for key in ("rate", "not_fitted", "known_images", "validation_images")}
    return StrangerFigures(
        **made,
        model=name,
        n=len(test.classes),
        refused=refused,
        refused_wrong=wrong,
        refused_interval=wilson(refused, len(test.classes)) if chosen.limit else None,
        decide=bool(run.recipe.stranger.decide),
    )


def known_features(run: Run) -> np.ndarray:
    """Return the known images' features of a run: int8 (images, length)."""
    codes: np.ndarray = np.load(run.file(KNOWN), allow_pickle=False)
    return codes


def stored_strangers(run: Run) -> ChosenStrangers | None:
    """Return the content of a run's `strangers.json`; None if that or `known.npy` is missing or unusable."""
    chosen, known = run.stored(STRANGERS, ChosenStrangers), run.file(KNOWN)
    return chosen if chosen and known.is_file() and sha256_file(known) == chosen.known_sha256 else None
