"""Labels that a classifier fitted to all other images contradicts, and the question whether new photos of new things are harder.

Many pictures of few things share a pile, a module or an hour. If file names or EXIF times show such groups, and the head's accuracy by
folds over them is lower than over groups that mean nothing, the accuracy by photo is too high for new piles, modules and hours.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
from PIL import Image

from edgecnn.data import Dataset, Progress
from edgecnn.data.folds import stratified
from edgecnn.data.items import Item, Meter, Note
from edgecnn.data.splits import FEWEST, rule_of, texts_by
from edgecnn.errors import ImageError
from edgecnn.evaluate.answers import HeldOut
from edgecnn.files import sha256
from edgecnn.inspect.findings import WrongLabel
from edgecnn.inspect.look import Cache
from edgecnn.runtime.decision import softmax

SEED = 1
FOLDS = 5
ROUNDS = 3  # random divisions of all images into folds; an image's scores are the mean over them

ODDS = 10.0
"""A label is named if another class has this many times its score. Of 1,465 photos with 50 wrong labels, this names about 80, 44 of them
wrong; 5 would name 120, with three more."""

COMPONENTS = 256
"""Principal components to use instead of the features: they name as many wrong labels as all 1,280, in a fraction of the time."""


def labels_in_doubt(
    items: Sequence[Item], names: Sequence[str], features: np.ndarray, group: np.ndarray, progress: Progress
) -> tuple[WrongLabel, ...]:
    """Return the labels that are likely wrong; none of a class with too few different images to judge.

    `names` are those of the classes, `group` the number of each image's group, int (n,), the same for copies of each other.
    """
    labels = np.array([item.label for item in items])
    usable = np.flatnonzero(distinct(labels, group)[labels] >= 2)  # copies of each other share a fold
    present = np.unique(labels[usable]).tolist()
    if len(present) < 2:
        return ()
    classes = np.searchsorted(present, labels[usable])
    scores = out_of_fold(features[usable], classes, group[usable], progress)
    judged = [items[index] for index in usable.tolist()]
    return wrong_labels(judged, [names[index] for index in present], scores, classes)


def doubted_by_folds(items: Sequence[Item], names: Sequence[str], held: HeldOut) -> tuple[WrongLabel, ...]:
    """Return the labels that a run's folds contradict, each image judged by the model that never saw it."""
    answered = zip(held.hashes.tolist(), held.classes.tolist(), strict=True)
    rows = {photo_and_label: row for row, photo_and_label in enumerate(answered)}
    judged = [item for item in items if (item.hash, item.label) in rows]
    chosen = [rows[item.hash, item.label] for item in judged]
    return wrong_labels(judged, names, softmax(held.float[chosen]), held.classes[chosen])


def out_of_fold(features: np.ndarray, classes: np.ndarray, groups: np.ndarray, progress: Progress) -> np.ndarray:
    """Return each image's scores from logistic regressions that were fitted without it and its copies.

    Args:
        features: float32 (n, features).
        classes: int (n,); each class 0 to the largest has two or more different images.
        groups: int (n,), the same for copies of each other, which share a fold.
        progress: called after each fold.

    Returns:
        Softmax scores, float64 (n, classes); zeros for an image that was never held out while others of its class were fitted.
    """
    from threadpoolctl import threadpool_limits

    from edgecnn.train.candidates import choose_strength, regression  # edgecnn.train loads TensorFlow

    scores = np.zeros((len(classes), int(classes.max()) + 1))
    times = np.zeros((len(classes), 1))
    folds = max(2, min(FOLDS, int(distinct(classes, groups).min())))
    # small matrices: on a busy machine, threads waiting for each other took 30 times as long
    with threadpool_limits(1):
        scaled = components(standardised(features))
        strength = choose_strength(scaled, classes, SEED)
        for number in range(ROUNDS):
            for fold, held in enumerate(stratified(classes, groups.tolist(), folds, SEED + number)):
                progress("checking labels", number * folds + fold + 1, ROUNDS * folds)
                kept = np.delete(np.arange(len(classes)), held)
                # a class that was not fitted scores 0, right or wrong
                judged = held[np.isin(classes[held], classes[kept])]
                if not len(judged) or len(np.unique(classes[kept])) < 2:
                    continue
                fitted = regression(strength).fit(scaled[kept], classes[kept])
                scores[np.ix_(judged, fitted.classes_)] += fitted.predict_proba(scaled[judged])
                times[judged] += 1
    return scores / np.maximum(times, 1)


def distinct(classes: np.ndarray, groups: np.ndarray, width: int = 0) -> np.ndarray:
    """Return how many groups each class has, int (classes,), for at least `width` classes."""
    return np.bincount(np.unique(np.stack([classes, groups]), axis=1)[0], minlength=width)


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features (n, features) with mean 0 and standard deviation 1; a constant one becomes 0."""
    spread = features.std(axis=0)
    spread = np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, np.inf)
    scaled: np.ndarray = (features - features.mean(axis=0)) / spread
    return scaled


def components(features: np.ndarray) -> np.ndarray:
    """Return the first COMPONENTS principal components of standardised features (n, features)."""
    _, vectors = np.linalg.eigh(np.asarray(features.T @ features, np.float64))
    return features @ vectors[:, : -COMPONENTS - 1 : -1].astype(features.dtype)


def wrong_labels(
    items: Sequence[Item], names: Sequence[str], scores: np.ndarray, classes: np.ndarray
) -> tuple[WrongLabel, ...]:
    """Return the labels that are likely wrong according to scores (n, classes), the likeliest first; `names` are those of the classes.

    These are labels for which another class is preferred at ODDS. They are ranked by their own score (self-confidence).

    Source: Northcutt et al. 2021, "Confident Learning" (arXiv:1911.00068), section 3.2, for the ranking.
    """
    own, others = scores[np.arange(len(classes)), classes], scores.copy()
    others[np.arange(len(classes)), classes] = -1.0
    suggested, best = others.argmax(axis=1), others.max(axis=1)
    named = np.flatnonzero(best > ODDS * own)
    return tuple(
        WrongLabel(
            source=items[index].source,
            split=items[index].split,
            label=names[classes[index]],
            suggested=names[suggested[index]],
            score=float(own[index]),
            suggested_score=float(best[index]),
        )
        for index in named[np.argsort(own[named], kind="stable")]
    )


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

SEEDS = 1, 2, 3  # of the folds for the figures that are said

LOWER, SHUFFLES, FIRST = 0.03, 60, 10
"""Groups matter if accuracy over them is lower by this than the mean of shuffled groups, and lower than with every one of the SHUFFLES.
After the FIRST of these, most that do not matter are known."""

MOST = 18_000
"""Photos to ask about, drawn by hash, times classes: the head for 1,200 photos of six classes takes 25 s of CPU time for all shuffles."""


Candidate = tuple[np.ndarray, str, str, str]
"""A way to group photos: each photo's group, int (n,), its name, an example, and how to use it."""


def ask(dataset: Dataset, items: Sequence[Item], features: np.ndarray | None, progress: Progress, note: Note) -> str:
    """Return a sentence if held-out accuracy is lower by groups that names or times show than by photo; else "".

    It is "" if a user named groups, or without `features`, float32 (n, length). Sentences are cached by content, classes and names.
    """
    if features is None or rule_of(dataset.split_groups):
        return ""
    count = MOST // len({item.label for item in items})
    rows = sorted(range(len(items)), key=lambda row: items[row].hash)[:count]
    chosen = [items[row] for row in rows]
    key = sha256(repr([(item.hash, item.label, item.below) for item in chosen]).encode())

    def answer(_: Sequence[int]) -> list[bytes]:
        classes = np.unique([item.label for item in chosen], return_inverse=True)[1]
        candidates = [one for one in found(dataset, chosen) if fits(one[0], classes)]
        return [asked(candidates, features[rows], classes, progress).encode() if candidates else b""]

    with contextlib.closing(Cache(note, dataset.region)) as cache:
        return cache.completed(KIND, [key], answer, Meter(None, "", 1))[0].decode()


def asked(candidates: Sequence[Candidate], features: np.ndarray, classes: np.ndarray, progress: Progress) -> str:
    """Return the sentence for the candidate with the lowest accuracy, among those that matter."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        centred = features - features.mean(axis=0)
        # one scale for all features, as in `edgecnn.train.origin`; the first components suffice
        values = components(centred / max(float(centred.std()), 1e-12))[:, :QUESTION_COMPONENTS]
        mattering = [
            (right(values, classes, one[0], SEEDS), *one)
            for one in candidates
            if matters(values, classes, one[0], progress)
        ]
        if not mattering:
            return ""
        lowest, groups, what, example, advice = min(mattering, key=lambda one: one[0])
        by_photo = right(values, classes, np.arange(len(classes)), SEEDS)
    return (
        f"a head's held-out accuracy is {by_photo:.0%} by photo, and {lowest:.0%} by {what} ({example}, {groups.max() + 1} groups): if new "
        f"photos will come from others, expect the second; {advice} makes it the figure"
    )


def found(dataset: Dataset, items: Sequence[Item]) -> Iterator[Candidate]:
    """Yield what names and times tell: stems with counters, numbers in runs of a hundred, and EXIF times in clusters."""
    for what, patterns in (("file-name stem", STEMS), ("runs of a hundred numbers", (RUNS,))):
        for pattern in patterns:
            texts = texts_by(pattern, items)
            if len(texts) >= MATCHED * len(items):
                groups = np.unique([texts.get(item.hash, item.hash) for item in items], return_inverse=True)[1]
                yield groups, what, f"{min(texts.values())}…", f"--group-by '{pattern}'"
                break
    times = [taken(dataset, item) for item in items]
    if sum(one is not None for one in times) >= MATCHED * len(items):
        moments = np.array([one or 0.0 for one in times])
        order = np.argsort(moments, kind="stable")
        groups = np.zeros(len(items), np.int64)
        groups[order] = np.cumsum(np.diff(moments[order], prepend=moments[order[0]]) > BREAK_S)
        folders = "a folder for each of them below the class folders"
        yield groups, "time in EXIF", f"breaks of {BREAK_S / 60:.0f} minutes", folders


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


def fits(groups: np.ndarray, classes: np.ndarray) -> bool:
    """Return whether groups are many, none too large, and not the classes themselves: each class has at least FEWEST."""
    sizes, each = np.bincount(groups), distinct(classes, groups)
    return (
        len(sizes) >= LEAST
        and sizes.max() <= LARGEST * len(groups)
        and len(groups) >= SIZE * len(sizes)
        and len(each) > 1
        and each.min() >= FEWEST
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
    for part in (part for seed in seeds for part in stratified(classes, groups.tolist(), FOLDS, seed)):
        kept = np.delete(np.arange(len(classes)), part)
        fitted = regression(STRENGTH, ITERATIONS).fit(values[kept], classes[kept])
        answers.append(fitted.predict(values[part]) == classes[part])
    return float(np.mean(np.concatenate(answers)))
