"""What a bundle needs to recognise strangers: features of training images, and a limit that validation images set."""

from dataclasses import dataclass

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.data import Dataset, Split
from edgecnn.data.balanced import balanced
from edgecnn.data.known import require_split
from edgecnn.evaluate.answers import Progress, in_chunks, input_contract
from edgecnn.evaluate.statistics import wilson
from edgecnn.export import export_path
from edgecnn.files import canonical_json, sha256, sha256_file, write_atomic
from edgecnn.runs import KNOWN, STRANGERS, Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.stranger import Strangers, similarity, unit_rows
from edgecnn.tables import to_json
from edgecnn.verify.golden import npy
from edgecnn.verify.parity_report import StrangerFigures

KNOWN_FILE = "stranger/known.npy"
"""Where a bundle keeps the known images' features."""

KNOWN_IMAGES = 1_000
"""Training images that are known, at most, the same number of each class: each is compared with every image that is classified."""

NEIGHBOURS = 5

VALUES = 256
"""Values of validation images that a bundle keeps, at most: quantiles stand for more."""


@dataclass(frozen=True, kw_only=True)
class ChosenStrangers:
    """How a run's models recognise strangers: `strangers.json`; `known.npy` next to it has the features.

    `not_fitted` says why there is no `limit`: too few validation images for the rate. `model` is the file in a bundle by which it was
    chosen, at the softmax temperature `temperature`.
    """

    limit: StrangerLimit | None
    not_fitted: str | None
    rate: float
    validation_images: int
    known_images: int
    model: str
    model_sha256: str
    known_sha256: str
    temperature: float
    validation_sha256: str
    train_sha256: str


def known_codes(features: np.ndarray) -> np.ndarray:
    """Return features as a bundle keeps them: int8, each row scaled so that its largest is 127; only directions are compared."""
    largest = np.abs(features).max(axis=1, keepdims=True)
    codes: np.ndarray = np.rint(features * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    return codes


def least_count(rate: float) -> int:
    """Return how many validation images are needed to set a limit for a rate: of fewer, one alone is more than the rate."""
    return int(np.ceil(1 / rate - 1e-9)) - 1


def fit_limit(scores: np.ndarray, features: np.ndarray, codes: np.ndarray, rate: float) -> StrangerLimit | None:
    """Choose the limit below which an image is a stranger.

    With n validation images it is their rate * (n + 1)-th smallest familiarity, interpolated, the p-values of each being those among the
    others: an image of the same kind falls below it with a probability of about the rate.

    Args:
        scores: the largest softmax score of each validation image, shape (n,).
        features: theirs, float32, shape (n, length).
        codes: of known images, from `known_codes`.
        rate: share of known images that may be refused, in (0, 0.5].

    Returns:
        The limit; None where the images are too few for the rate, or no image is known.

    Source: split conformal prediction, Vovk, Gammerman and Shafer 2005; the quantile, Weibull 1939 (numpy's method "weibull").
    """
    from scipy.stats import rankdata

    if len(scores) < least_count(rate) or not len(codes):
        return None
    neighbours = min(NEIGHBOURS, len(codes))
    similar = similarity(features, unit_rows(codes), neighbours)
    familiarity = sum(np.log(rankdata(values, "max") / len(values)) for values in (scores, similar))
    shares = np.linspace(0, 1, min(max(len(scores), 2), VALUES))
    of_scores, of_similar = (np.quantile(values.astype(np.float64), shares) for values in (scores, similar))
    return StrangerLimit(
        known=KNOWN_FILE,
        length=codes.shape[1],
        neighbours=neighbours,
        scores=tuple(of_scores.tolist()),
        similarities=tuple(of_similar.tolist()),
        limit=float(np.quantile(familiarity, rate, method="weibull")),
        rate=rate,
    )


def choose_strangers(
    run: Run, dataset: Dataset, format_: str, precision: str, temperature: float, progress: Progress
) -> ChosenStrangers | None:
    """Choose how a run's models recognise strangers, on training and validation images, and write `strangers.json` and `known.npy`.

    Nothing is done where the files hold the choice for this model, these images and this temperature.

    Args:
        run: a trained run.
        dataset: the run's data.
        format_, precision: of the export to choose with.
        temperature: by which the runtime divides logits.
        progress: called with the images done.

    Returns:
        The choice; None where the recipe asks for no such decision, or the export gives no features.

    Raises:
        RunError: if the data have changed since the run began.
    """
    rate = run.recipe.stranger.rate
    if not rate:
        return None
    model = export_path(run, format_, precision).read_bytes()
    opened = Model(open_engine(None, model, format_, num_threads=1), input_contract(run))
    if opened.engine.features is None:
        return None
    file, model_sha256 = f"models/{precision}.{format_}", sha256(model)
    made_of = (file, model_sha256, temperature, rate, dataset.hashes["validation"], dataset.hashes["train"])
    stored = stored_strangers(run)
    if stored and made_of == (
        stored.model, stored.model_sha256, stored.temperature, stored.rate, stored.validation_sha256, stored.train_sha256
    ):  # fmt: skip
        return stored
    for split in ("train", "validation"):
        require_split(run, dataset, split)
    splits = dataset.load(("train", "validation"), **vars(run.info.input), stage="train", progress=progress)

    def answers(images: np.ndarray) -> np.ndarray:
        return np.hstack(opened.logits_and_features(images))

    train, validation = splits["train"], splits["validation"]
    drawn = np.sort(balanced(train.classes, KNOWN_IMAGES, run.recipe.seed))
    classes = len(run.info.data.labels)
    codes = known_codes(in_chunks(answers, train.images[drawn], "known images", progress)[:, classes:])
    found = in_chunks(answers, validation.images, "validation", progress)
    scores = softmax(found[:, :classes] / np.float32(temperature)).max(axis=1)
    limit = fit_limit(scores, found[:, classes:], codes, rate)
    few = f"{len(scores)} validation images, at least {least_count(rate)} are needed to refuse {rate:.0%}"
    known = npy(codes)
    chosen = ChosenStrangers(
        limit=limit,
        not_fitted=None if limit else few,
        rate=rate,
        validation_images=len(scores),
        known_images=len(codes),
        model=file,
        model_sha256=model_sha256,
        known_sha256=sha256(known),
        temperature=temperature,
        validation_sha256=dataset.hashes["validation"],
        train_sha256=dataset.hashes["train"],
    )
    write_atomic(run.file(KNOWN), known)
    write_atomic(run.file(STRANGERS), canonical_json(to_json(chosen)))
    return chosen


def tested_strangers(
    run: Run, chosen: ChosenStrangers, name: str, format_: str, precision: str, test: Split, progress: Progress
) -> StrangerFigures:
    """Return what a run's choice does on the test split.

    Args:
        run: a trained run.
        chosen: from `choose_strangers`.
        name: what the report calls the export that it was chosen with.
        format_, precision: of that export.
        test: the test split.
        progress: called with the images done.
    """
    refused = wrong = 0
    if chosen.limit:
        model = export_path(run, format_, precision).read_bytes()
        opened = Model(open_engine(None, model, format_, num_threads=1), input_contract(run))
        strangers = Strangers(chosen.limit, known_features(run))

        def answers(images: np.ndarray) -> np.ndarray:
            logits, features = opened.logits_and_features(images)
            scores = softmax(logits / np.float32(chosen.temperature))
            return np.column_stack([strangers.refused(scores.max(axis=1), features), logits.argmax(axis=1)])

        found = in_chunks(answers, test.images, "strangers", progress)
        of_known = found[:, 0].astype(bool)
        refused, wrong = int(of_known.sum()), int(np.sum(of_known & (found[:, 1] != test.classes)))
    return StrangerFigures(
        model=name,
        rate=chosen.rate,
        not_fitted=chosen.not_fitted,
        known_images=chosen.known_images,
        validation_images=chosen.validation_images,
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
    """Return the content of a run's `strangers.json`; None if that or `known.npy` is missing or cannot be used."""
    chosen, known = run.stored(STRANGERS, ChosenStrangers), run.file(KNOWN)
    return chosen if chosen and known.is_file() and sha256_file(known) == chosen.known_sha256 else None
