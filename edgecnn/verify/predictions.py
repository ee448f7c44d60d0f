"""Each model's answer to each test image, and what temperature, threshold and out-of-distribution limit do with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecnn.calibrate.confidence import ChosenConfidence, ChosenStrangers
from edgecnn.data import Progress, Split
from edgecnn.evaluate.answers import Answers, device_model, in_chunks, input_contract
from edgecnn.evaluate.statistics import ScoreFigures, wilson
from edgecnn.export import export_path
from edgecnn.files import npz, read_npz, sha256_file, write_atomic
from edgecnn.pixels import as_image
from edgecnn.runs import AGAINST_PICTURES, KNOWN, PREDICTIONS, STRANGERS, Run
from edgecnn.runtime.decision import Strangers, softmax
from edgecnn.verify.parity_report import Confidence, StrangerFigures

TRUE, SOURCES, TEMPERED = "true", "sources", "tempered"
ANSWER, SCORE, PICTURE = "answer/", "score/", "picture/"

GALLERY = 24

PICTURE_SIDE = 96
"""Largest length of a picture's longer side, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The answers of models to n test images.

    `true` holds the classes, int32 (n,). For each model, `answers` holds the best classes, int32 (n,), and `scores` their scores, float32
    (n,), without a temperature. `tempered` holds the scores at the bundle's temperature, of the model used to choose it, or is empty.
    `pictures` are the galleries' images by index, uint8, with sides of at most PICTURE_SIDE pixels.
    """

    true: np.ndarray
    sources: Sequence[str]
    answers: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    tempered: np.ndarray
    pictures: Mapping[int, np.ndarray]


def gallery(
    true: np.ndarray, reference: np.ndarray, candidate: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all images that two models answer differently, and of the candidate's mistakes, most confident first."""
    mistakes = np.flatnonzero(candidate != true)
    return np.flatnonzero(reference != candidate), mistakes[np.argsort(-scores[mistakes], kind="stable")]


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    if max(pixels.shape[:2]) <= PICTURE_SIDE:
        return pixels
    picture = as_image(pixels)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return np.asarray(picture).reshape(picture.height, picture.width, pixels.shape[2])


def write_predictions(
    run: Run,
    split: Split,
    pixels: Callable[[int], np.ndarray],
    answers: Sequence[Answers],
    int8: Answers | None,
    tempered: tuple[Answers, float] | None,
) -> None:
    """Write a run's `predictions.npz`: the `answers` of "float" and other models to the images of a split.

    `pixels` returns those of an image by its index, uint8 (height, width, channels). `int8` is the model whose flips and mistakes are
    stored as pictures, if any. `tempered` is the model used to choose a temperature, and that temperature.
    """
    arrays: dict[str, np.ndarray] = {TRUE: split.classes.astype(np.int32), SOURCES: np.array(split.sources, np.str_)}
    for item in answers:
        arrays[ANSWER + item.name] = np.argmax(item.values, axis=1).astype(np.int32)
        arrays[SCORE + item.name] = item.scores.max(axis=1)
    if tempered:
        model, temperature = tempered
        arrays[TEMPERED] = softmax(model.values / np.float32(temperature)).max(axis=1)
    if int8:
        answered, scores = arrays[ANSWER + int8.name], arrays[SCORE + int8.name]
        for chosen in gallery(arrays[TRUE], arrays[ANSWER + "float"], answered, scores):
            arrays |= {f"{PICTURE}{index}": thumbnail(pixels(int(index))) for index in chosen[:GALLERY]}
    write_atomic(run.file(PREDICTIONS), npz(arrays))


def write_pictures(run: Run, pictures: Mapping[int, np.ndarray]) -> None:
    """Write pictures of photos that an old model answers differently, uint8 (height, width, channels), keyed by index."""
    write_atomic(run.file(AGAINST_PICTURES), npz({f"{PICTURE}{index}": pixels for index, pixels in pictures.items()}))


def read_pictures(run: Run) -> dict[int, np.ndarray]:
    """Read the output of `write_pictures`; empty if the file is missing or unusable."""
    arrays = read_npz(run.file(AGAINST_PICTURES))
    return {int(name.removeprefix(PICTURE)): pixels for name, pixels in arrays.items() if name.startswith(PICTURE)}


def read_predictions(run: Run) -> Predictions | None:
    """Return the content of a run's `predictions.npz`; None if it is missing or unusable."""
    arrays = read_npz(run.file(PREDICTIONS))
    if not {TRUE, SOURCES} <= arrays.keys():
        return None
    answers, scores, pictures = (
        {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in (ANSWER, SCORE, PICTURE)
    )
    return Predictions(
        true=arrays[TRUE],
        sources=arrays[SOURCES].tolist(),
        answers=answers,
        scores=scores,
        tempered=arrays.get(TEMPERED, np.empty(0, np.float32)),
        pictures={int(index): value for index, value in pictures.items()},
    )


def tested_confidence(chosen: ChosenConfidence, figures: ScoreFigures, model: str) -> Confidence:
    made = {name: getattr(chosen, name) for name in ("temperature", "not_fitted", "choice")}
    return Confidence(**vars(figures), **made, model=model)


def tested_strangers(
    run: Run, chosen: ChosenStrangers, name: str, format_: str, precision: str, test: Split, progress: Progress
) -> StrangerFigures:
    refused = wrong = np.zeros(len(test.classes), bool)
    if chosen.limit:
        data = export_path(run, format_, precision).read_bytes()
        opened = device_model(data, format_, input_contract(run))
        strangers = Strangers(chosen.limit, known_features(run))

        def answers(images: np.ndarray) -> np.ndarray:
            logits, features = opened.logits_and_features(images)
            scores = softmax(logits / np.float32(chosen.temperature))
            return np.column_stack([strangers.refused(scores.max(axis=1), features), logits.argmax(axis=1)])

        found = in_chunks(answers, test.images, "strangers", progress)
        refused = found[:, 0].astype(bool)
        wrong = refused & (found[:, 1] != test.classes)
    return stranger_figures(run, chosen, name, refused, wrong, bool(chosen.limit))


def stranger_figures(
    run: Run, chosen: ChosenStrangers, model: str, refused: np.ndarray, wrong: np.ndarray, limited: bool
) -> StrangerFigures:
    """Return the figures of a decision that has `refused` some images, which are also `wrong` if the best class is: bool (n,)."""
    count, n = int(refused.sum()), len(refused)
    made = {key: getattr(chosen, key) for key in ("rate", "not_fitted", "known_images", "validation_images")}
    return StrangerFigures(
        **made,
        model=model,
        n=n,
        refused=count,
        refused_wrong=int(wrong.sum()),
        refused_interval=wilson(count, n) if limited else None,
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
