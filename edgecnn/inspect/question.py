"""Labels that a classifier fitted to all other images contradicts, and the question whether new photos of new things are harder.

Held-out accuracy by photo is compared with that by what names and times tell.

Many pictures of few things share a pile, a module or an hour. If file names or EXIF times show such groups, and the head's accuracy by
folds over them is lower than over groups that mean nothing, the accuracy by photo is too high for new piles, modules and hours.
"""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgecnn.data import Dataset, Progress
from edgecnn.data.folds import stratified
from edgecnn.data.items import Item
from edgecnn.data.splits import FEWEST, rule_of, texts_by
from edgecnn.errors import ImageError
from edgecnn.files import sha256
from edgecnn.inspect.look import Cache

FOLDS = 5
ROUNDS = 3  # random divisions of all images into folds; an image's scores are the mean over them

FEWEST_IMAGES = 2
"""Fewest different images of a class for its scores to be cross-validated: copies of each other share a fold."""

ODDS = 10.0
"""A label is named if another class has this many times its score. Of 1,465 photos with 50 wrong labels, this names about 80, 44 of them
wrong; 5 would name 120, with three more."""

COMPONENTS = 256
"""Principal components to use instead of the features: they name as many wrong labels as all 1,280, in a fraction of the time."""


@dataclass(frozen=True)
class Doubt:
    """A label that is likely wrong: the image's index, the class that its features suggest, and both classes' scores, 0 to 1."""

    index: int
    suggested: int
    score: float
    suggested_score: float


def out_of_fold(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """Return each image's scores from logistic regressions that were fitted without it and its copies.

    Args:
        features: float32 (n, features).
        classes: int (n,); each class 0 to the largest has FEWEST or more different images.
        groups: int (n,), the same for copies of each other, which share a fold.
        seed: of the folds.
        progress: if any.

    Returns:
        Softmax scores, float64 (n, classes); zeros for an image that was never held out while others of its class were fitted.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    from edgecnn.train.candidates import choose_strength, regression  # edgecnn.train loads TensorFlow

    scores = np.zeros((len(classes), int(classes.max()) + 1))
    times = np.zeros((len(classes), 1))
    folds = max(2, min(FOLDS, int(distinct(classes, groups).min())))
    # small matrices: on a busy machine, threads waiting for each other took 30 times as long
    with threadpool_limits(1):
        scaled = components(standardised(features))
        strength = choose_strength(scaled, classes, seed)
        for number in range(ROUNDS):
            split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + number)
            for fold, (kept, held) in enumerate(split.split(scaled, classes, groups)):
                if progress:
                    progress("checking labels", number * folds + fold + 1, ROUNDS * folds)
                # a class that was not fitted scores 0, right or wrong
                judged = held[np.isin(classes[held], classes[kept])]
                if not len(judged) or len(np.unique(classes[kept])) < 2:
                    continue
                fitted = regression(strength).fit(scaled[kept], classes[kept])
                scores[np.ix_(judged, fitted.classes_)] += fitted.predict_proba(scaled[judged])
                times[judged] += 1
    return scores / np.maximum(times, 1)


def distinct(classes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.bincount(np.unique(np.stack([classes, groups]), axis=1)[0])


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features (n, features) with mean 0 and standard deviation 1; a constant one becomes 0."""
    spread = features.std(axis=0)
    spread = np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, np.inf)
    scaled: np.ndarray = (features - features.mean(axis=0)) / spread
    return scaled


def components(features: np.ndarray) -> np.ndarray:
    """Return the first COMPONENTS principal components of standardised features (n, features)."""
    if features.shape[1] <= COMPONENTS:
        return features
    _, vectors = np.linalg.eigh(np.asarray(features.T @ features, np.float64))
    return features @ vectors[:, : -COMPONENTS - 1 : -1].astype(features.dtype)


def doubts(scores: np.ndarray, classes: np.ndarray) -> list[Doubt]:
    """Return the labels that are likely wrong according to the scores of `out_of_fold`, the likeliest first.

    These are labels for which another class is preferred at ODDS. They are ranked by their own score (self-confidence).

    Source: Northcutt et al. 2021, "Confident Learning" (arXiv:1911.00068), section 3.2, for the ranking.
    """
    own, others = scores[np.arange(len(classes)), classes], scores.copy()
    others[np.arange(len(classes)), classes] = -1.0
    named = np.flatnonzero(others.max(axis=1) > ODDS * own)
    named = named[np.argsort(own[named], kind="stable")]
    columns = named, others.argmax(axis=1)[named], own[named], others.max(axis=1)[named]
    return [Doubt(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


KIND = "question-1"  # the name of cached sentences; it changes with how they are found

STEMS = (r"(.+)_\d+$", r"(.+)-\d+$", r"(.+) \d+$", r"(.*\D)\d+$")
"""Patterns of a stem with a counter; the first that gives groups is asked about."""

RUNS = r"^(\d+)\d\d$"
"""The pattern of numbered names: a hundred numbers in a row are a group."""

BREAK_S = 600.0
"""Seconds without a photo after which the next one, by its EXIF time, begins another group."""

MATCHED, LEAST, LARGEST, SIZE = 0.9, 10, 0.25, 2.0
"""Smallest fraction of photos in groups, fewest groups, largest group as a fraction of the photos, and smallest mean size."""

QUESTION_COMPONENTS, STRENGTH, ITERATIONS = 128, 0.01, 100
"""Principal components, inverse regularisation strength and iterations of the head: one that is fitted often."""

QUESTION_FOLDS, SEEDS = 5, (1, 2, 3)
"""Folds, and the seeds of the folds for the figures that are said."""

LOWER, SHUFFLES, FIRST = 0.03, 60, 10
"""Groups matter if accuracy over them is lower by this than the mean of shuffled groups, and lower than with every one of the SHUFFLES.
After the FIRST of these, most that do not matter are known."""

MOST = 18_000
"""Photos to ask about, drawn by hash, times classes: the head for 1,200 photos of six classes takes 25 s of CPU time for all shuffles."""


class Candidate(NamedTuple):
    """A way to group photos: its name, an example, each photo's group, and how to use it."""

    what: str
    example: str
    groups: np.ndarray
    advice: str


def ask(
    dataset: Dataset,
    items: Sequence[Item],
    features: np.ndarray | None,
    progress: Progress,
    note: Callable[[str], None],
) -> str:
    """Return a sentence if held-out accuracy is lower by groups that names or times show than by photo; else "".

    It is "" if a user named groups, or without `features`, float32 (n, length). Sentences are cached by content, classes and names.
    """
    if features is None or rule_of(dataset.split_groups):
        return ""
    count = MOST // len({item.label for item in items})
    rows = sorted(range(len(items)), key=lambda row: items[row].hash)[:count]
    chosen = [items[row] for row in rows]
    key = sha256(repr([(item.hash, item.label, item.below) for item in chosen]).encode())
    with contextlib.closing(Cache(note, dataset.region)) as cache:
        if key in (known := cache.get(KIND, [key])):
            return known[key].decode()
        classes = np.unique([item.label for item in chosen], return_inverse=True)[1]
        candidates = [one for one in found(dataset, chosen) if fits(one.groups, classes)]
        sentence = asked(candidates, features[rows], classes, progress) if candidates else ""
        cache.put(KIND, [(key, sentence.encode())])
    return sentence


def asked(candidates: Sequence[Candidate], features: np.ndarray, classes: np.ndarray, progress: Progress) -> str:
    """Return the sentence for the candidate with the lowest accuracy, among those that matter."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        centred = features - features.mean(axis=0)
        # one scale for all features, as in `edgecnn.train.origin`; the first components suffice
        values = components(centred / max(float(centred.std()), 1e-12))[:, :QUESTION_COMPONENTS]
        mattering = [one for one in candidates if matters(values, classes, one.groups, progress)]
        if not mattering:
            return ""
        lowest, one = min(
            ((right(values, classes, one.groups, SEEDS), one) for one in mattering), key=lambda answer: answer[0]
        )
        by_photo = right(values, classes, np.arange(len(classes)), SEEDS)
    return (
        f"a head's held-out accuracy is {by_photo:.0%} by photo, and {lowest:.0%} by {one.what} ({one.example}): if new photos will come "
        f"from others, expect the second; {one.advice}"
    )


def found(dataset: Dataset, items: Sequence[Item]) -> Iterator[Candidate]:
    """Yield what names and times tell: stems with counters, numbers in runs of a hundred, and EXIF times in clusters."""
    for what, patterns in (("file-name stem", STEMS), ("runs of a hundred numbers", (RUNS,))):
        for pattern in patterns:
            texts = texts_by(pattern, items)
            if len(texts) >= MATCHED * len(items):
                groups = numbered([texts.get(item.hash, item.hash) for item in items])
                example = f"{min(texts.values())}…, {len(set(groups.tolist()))} groups"
                yield Candidate(what, example, groups, f"--group-by '{pattern}' makes it the figure")
                break
    times = [taken(dataset, item) for item in items]
    if sum(one is not None for one in times) >= MATCHED * len(items):
        moments = np.array([one or 0.0 for one in times])
        order = np.argsort(moments, kind="stable")
        groups = np.zeros(len(items), np.int64)
        groups[order] = np.cumsum(np.diff(moments[order], prepend=moments[order[0]]) > BREAK_S)
        example = f"breaks of {BREAK_S / 60:.0f} minutes, {groups.max() + 1} groups"
        yield Candidate(
            "time in EXIF", example, groups, "a folder for each of them below the class folders makes it the figure"
        )


def taken(dataset: Dataset, item: Item) -> float | None:
    """Return when a photo was taken, in seconds, by its EXIF; None if it does not say."""
    try:
        data = dataset.read(item)
        if isinstance(data, np.ndarray):
            return None
        with Image.open(io.BytesIO(data)) as image:
            exif = image.getexif()
        text = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)  # DateTimeOriginal, DateTime
        return datetime.strptime(str(text), "%Y:%m:%d %H:%M:%S").timestamp()
    except (ImageError, OSError, ValueError, SyntaxError):
        return None


def numbered(texts: Sequence[str]) -> np.ndarray:
    return np.unique(texts, return_inverse=True)[1]


def fits(groups: np.ndarray, classes: np.ndarray) -> bool:
    """Return whether groups are many, none too large, and not the classes themselves: each class has at least FEWEST."""
    sizes = np.bincount(groups)
    sizes = sizes[sizes > 0]
    each = Counter(label for label, _ in set(zip(classes.tolist(), groups.tolist(), strict=True)))
    return (
        len(sizes) >= LEAST
        and sizes.max() <= LARGEST * len(groups)
        and len(groups) >= SIZE * len(sizes)
        and len(each) > 1
        and min(each.values()) >= FEWEST
    )


def matters(values: np.ndarray, classes: np.ndarray, groups: np.ndarray, progress: Progress) -> bool:
    """Return whether accuracy over groups is lower than over the same groups shuffled among the photos of each class."""
    lowest, random, others = right(values, classes, groups), np.random.default_rng(1), []
    for number in range(SHUFFLES):
        progress("asking what groups change", number + 1, SHUFFLES)
        shuffled = groups.copy()
        for label in range(int(classes.max()) + 1):
            shuffled[classes == label] = random.permutation(groups[classes == label])
        others.append(right(values, classes, shuffled))
        if others[-1] <= lowest or (number + 1 >= FIRST and np.mean(others) - lowest < 0.9 * LOWER):
            return False
    return float(np.mean(others)) - lowest >= LOWER


def right(values: np.ndarray, classes: np.ndarray, groups: np.ndarray, seeds: Sequence[int] = (1,)) -> float:
    """Return the fraction of photos that a head classifies correctly which was fitted to the other folds; a group is in one fold."""
    from edgecnn.train.candidates import regression  # edgecnn.train loads TensorFlow

    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a head that has not converged is good enough
        for part in (part for seed in seeds for part in stratified(classes, groups.tolist(), QUESTION_FOLDS, seed)):
            kept = np.delete(np.arange(len(classes)), part)
            fitted = regression(STRENGTH, ITERATIONS).fit(values[kept], classes[kept])
            answers.append(fitted.predict(values[part]) == classes[part])
    return float(np.mean(np.concatenate(answers)))
