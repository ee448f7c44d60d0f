"""Does the alarm of `edgecnn.device.http.drift` go off without a cause, and how soon with one?

Streams are composed of a model's scores on test images. Each picture is held for 1 to 600 frames, and each day has its own mix of classes
(Dirichlet). One week is accepted, and 30 days follow. If those are the same kind of days, the result is the fraction of months with a false
alarm. Otherwise, from the ninth day on, the images are darker, blurred, or partly from a class that was left out of training. A permutation
test on hours with the same rate of false alarms serves as a comparison.

    python tools/bench/drift.py --data <cifar10-jpeg.zip>
"""

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import ROOT, Results, Row, about, edgecnn, finish, parser
from PIL import Image

from edgecnn.bundle.validation import BOUNDS
from edgecnn.device.http.drift import DAY, FALSE_ALARMS, GROUPS, LIMIT, SPANS, WEEK, Week
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.stress.corruptions import CORRUPTIONS

DAYS = 30

CAUSE = 1
"""Days between the week and the change."""

PERMUTATIONS = 4000

LEFT_OUT = (0.2, 0.5)
"""Shares of pictures that show the left-out class."""

CONDITIONS = (("low-light", 3), ("low-light", 5), ("motion", 3), ("motion", 5))

KINDS: Mapping[str, Mapping[str, float]] = {
    "days alike": {"mix": 100.0},
    "days differ": {"mix": 1.0},
    "few classes a day": {"mix": 0.3},
    "one frame a second": {"mix": 1.0, "fps": 1.0},
    "one scene half the day": {"mix": 1.0, "one": 0.5},
}
"""Kinds of days: the Dirichlet's concentration, frames/s, and the share of pictures that stay the same all day."""


class Scores(NamedTuple):
    """A model's results on n images: bin of the best score, best class, and whether it is a stranger. `true` is each image's class."""

    bins: np.ndarray
    best: np.ndarray
    stranger: np.ndarray
    true: np.ndarray


class Case(NamedTuple):
    """Scores of the images. `after` holds the scores once something has changed; None if nothing does.

    With a `share`, scores of the left-out class come last in `after`, and replace that share of the others.
    """

    before: Scores
    after: Scores | None = None
    share: float = 0.0


class Stream(NamedTuple):
    """Segments of a stream, in order: each one's hour, image and number of frames."""

    hours: np.ndarray
    images: np.ndarray
    frames: np.ndarray


def main() -> None:
    """Score, draw streams, print a table and write the figures."""
    made = parser(__doc__, "drift")
    made.add_argument("--data", type=Path, required=True, help="a zip with the folders train/CLASS and test/CLASS")
    made.add_argument("--model", type=Path, default=ROOT / "models/cifar10-resnet8/cifar10-resnet8.edgecnn")
    made.add_argument("--left-out", default="frog", help="a class; default: %(default)s")
    made.add_argument(
        "--without", type=Path, help="the bundle of a network that was trained without it; by default one is trained"
    )
    made.add_argument(
        "--epochs", type=int, default=6, help="for the network that is trained without it; default: %(default)s"
    )
    made.add_argument("--streams", type=int, default=200, help="of each kind; default: %(default)s")
    arguments = made.parse_args()
    images, names = test_images(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        without = arguments.without or trained_without(arguments, Path(folder))
        whole = Classifier.load(arguments.model)
        nine = Classifier.load(without, strangers=True)
    cases = dict(scored_cases(whole, nine, images, names, arguments.left_out))
    context = about(
        "drift", data=arguments.data.name, model=whole.name, left_out=arguments.left_out, epochs=arguments.epochs,
        streams=arguments.streams, days=DAYS, stated=FALSE_ALARMS,
    )  # fmt: skip
    out = arguments.out.resolve()
    results = Results(out, context)
    for case in results.missing(images=cases, kind=KINDS):
        seed = [list(cases).index(case["images"]), list(KINDS).index(case["kind"])]
        results.add(**case, **measured(case["kind"], cases[case["images"]], arguments.streams, seed))
    finish(out, {**context, "results": results.rows}, HEADINGS, map(line, results.rows))


HEADINGS = ("streams", "images", "n", "noticed", "median frames until then", "median hours", "by permuting hours")


def line(row: Row) -> list[str]:
    frames, hours, permuted = row["median_frames"], row["median_hours"], row["permuting_hours"] is not None
    return [
        row["kind"], row["images"], str(row["streams"]), f"{row['noticed']:.1%}",
        f"{frames:,}" if frames else "—", f"{hours:.0f}" if hours else "—", f"{row['permuting_hours']:.1%}" if permuted else "",
    ]  # fmt: skip


def measured(kind: str, case: Case, streams: int, seed: list[int]) -> Row:
    """Return in how many streams of a kind the alarm goes off, and the median number of frames until then."""
    settings, delays, permuted = dict(KINDS[kind]), [], 0
    fps = settings.pop("fps", 5.0)
    start = (WEEK + CAUSE) * DAY
    for number in range(streams):
        random = np.random.default_rng([*seed, number])
        stream = drawn(case.before.true, random, fps, **settings)
        hours = by_hour(stream, case, start, random)
        hour = first_alarm(*hours)
        if hour is not None and (case.after is None or hour > start):
            delays.append(hour - start)
        permuted += case.after is None and naive(hours[1].sum(axis=1), random)
    half = sorted(delays + [np.inf] * (streams - len(delays)))[streams // 2]
    median = None if case.after is None or half == np.inf else float(half)
    return {
        "streams": streams, "noticed": len(delays) / streams, "median_hours": median,
        "median_frames": median and round(median * 3600 * fps), "permuting_hours": permuted / streams if case.after is None else None,
    }  # fmt: skip


def drawn(true: np.ndarray, random: np.random.Generator, fps: float, mix: float, one: float = 0.0) -> Stream:
    """Draw a stream of WEEK + DAYS days, with each picture held for 1 to 600 frames."""
    hour = round(3600 * fps)
    total = (WEEK + DAYS) * DAY * hour
    starts = np.concatenate([[0], np.cumsum(random.integers(1, 601, total // 250))])
    starts = starts[starts < total]
    day = starts // (DAY * hour)
    classes = np.unique(true)
    mixes = np.cumsum(random.dirichlet(np.full(len(classes), mix), WEEK + DAYS), axis=1)
    picked = np.minimum((random.random((len(starts), 1)) > mixes[day]).sum(axis=1), len(classes) - 1)
    images = np.empty(len(starts), np.int64)
    for number, label in enumerate(classes):
        images[picked == number] = random.choice(np.flatnonzero(true == label), np.sum(picked == number))
    stays = random.random(len(starts)) < one
    images[stays] = random.integers(len(true), size=WEEK + DAYS)[day[stays]]
    edges = np.union1d(starts, np.arange(0, total + 1, hour))
    piece = np.searchsorted(starts, edges[:-1], side="right") - 1
    return Stream(edges[:-1] // hour, images[piece], np.diff(edges))


def by_hour(
    stream: Stream, case: Case, start: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the output of `edgecnn.device.http.drift.means_of` for each hour of a stream that changes from the hour `start` on."""
    figures = [part[stream.images] for part in case.before[:3]]
    if case.after is not None:
        late, known, images = stream.hours >= start, len(case.before.true), stream.images
        if case.share:  # pictures of the left-out class replace some of the others
            other = np.arange(known)
            swapped = random.permutation(known)[: round(case.share * known)]
            other[swapped] = random.integers(known, len(case.after.true), len(swapped))
            images = other[images]
        figures = [np.where(late, part[images], figure) for part, figure in zip(case.after[:3], figures, strict=True)]
    bins, best, stranger = figures
    hours = (WEEK + DAYS) * DAY
    key = stream.hours * GROUPS + best
    frames, level = (
        np.bincount(key, weights, hours * GROUPS).reshape(hours, GROUPS)
        for weights in (stream.frames, stream.frames * bins)
    )
    whole = frames.sum(axis=1)
    strangers = np.bincount(stream.hours, stream.frames * stranger, hours) / whole
    return frames / whole[:, np.newaxis], level / whole[:, np.newaxis], strangers


def first_alarm(*hours: np.ndarray) -> int | None:
    """Return the hour of the first alarm, as judged by a board at the end of each hour; None if it never goes off."""
    week, first = Week(*(part[: WEEK * DAY].reshape(WEEK, DAY, *part.shape[1:]).mean(axis=1) for part in hours)), []
    sums = [np.concatenate([np.zeros((1, *part.shape[1:])), np.cumsum(part, axis=0)]) for part in hours]
    for span in SPANS:
        end = np.arange((WEEK + span) * DAY, len(hours[0]) + 1)
        shares, levels = ((part[end] - part[end - span * DAY]) / (span * DAY) for part in sums[:2])
        first += end[np.abs(week.t(shares, levels, span)) > LIMIT].tolist()[:1]
    ends = np.arange(2 * WEEK * DAY, len(hours[0]) + 1, DAY)[:, np.newaxis] - np.arange(WEEK) * DAY
    days = (sums[2][ends] - sums[2][ends - DAY]) / DAY
    first += ends[week.has_more_strangers(days), 0].tolist()[:1]
    return min(first, default=None)


def naive(level: np.ndarray, random: np.random.Generator) -> bool:
    """Return whether a permutation test on hours separates any later day from the week, at the same rate per month."""
    week, least = level[: WEEK * DAY], FALSE_ALARMS / DAYS
    draws = np.argsort(random.random((PERMUTATIONS, (WEEK + 1) * DAY)), axis=1)[:, :DAY]
    for day in level[WEEK * DAY :].reshape(DAYS, DAY):
        pooled = np.concatenate([day, week])
        found = abs(day.mean() - pooled.mean())
        if np.mean(np.abs(pooled[draws].mean(axis=1) - pooled.mean()) >= found) < least:
            return True
    return False


def scored_cases(
    whole: Classifier, nine: Classifier, images: np.ndarray, names: list[str], left_out: str
) -> Iterator[tuple[str, Case]]:
    """Yield each case with its name."""
    labels = sorted(set(names))
    true = np.array([labels.index(name) for name in names])
    before = scored(whole, images, true)
    yield "unchanged", Case(before)
    for name, strength in CONDITIONS:
        corruption = CORRUPTIONS[name]
        random = np.random.default_rng(1)
        value = corruption.values("small")[strength - 1]
        changed = np.stack([corruption.apply(image, value, random) for image in images])
        yield f"{name} {strength}", Case(before, scored(whole, changed, true))
    known = np.array(names) != left_out
    yield "of nine classes, unchanged", Case(scored(nine, images[known], true[known]))
    order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
    after = scored(nine, images[order], true[order])
    for share in LEFT_OUT:
        yield f"{share:.0%} of a tenth class", Case(Scores._make(part[: known.sum()] for part in after), after, share)


def scored(classifier: Classifier, images: np.ndarray, true: np.ndarray) -> Scores:
    parts = []
    for start in range(0, len(images), 100):
        batch = images[start : start + 100]
        if classifier.strangers is None:
            scores = softmax(classifier.model.logits(batch) / classifier.temperature)
            refused = np.zeros(len(batch), bool)
        else:
            logits, features = classifier.model.logits_and_features(batch)
            scores = softmax(logits / classifier.temperature)
            refused = classifier.strangers.refused(scores.max(axis=1), features)
        bins = np.searchsorted(BOUNDS, scores.max(axis=1).astype(np.float64))
        parts.append((bins, scores.argmax(axis=1), refused))
    bins, best, refused = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Scores(bins, best, refused, true)


def test_images(archive: Path) -> tuple[np.ndarray, list[str]]:
    """Return the test images of a zip, uint8 (n, height, width, channels), and the class of each."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if "/test/" in name and name.endswith(".jpg"))
        images = [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names]
    return np.stack(images), [Path(name).parent.name for name in names]


def trained_without(arguments, folder: Path) -> Path:
    """Train a network without a class, and return its bundle."""
    data = folder / "others.zip"
    with zipfile.ZipFile(arguments.data) as whole, zipfile.ZipFile(data, "w") as part:
        for item in whole.infolist():
            if f"/{arguments.left_out}/" not in item.filename:
                part.writestr(item, whole.read(item))
    (folder / "recipe.toml").write_text(
        f'name = "others"\n[data]\nsource = "{data}"\n[network]\nname = "resnet8"\n[train]\nepochs = {arguments.epochs}\n'
        "[stranger]\nrate = 0.05\n"
    )
    edgecnn("run", folder / "recipe.toml", "--max-drop", "100", "--accept-conversion", cwd=folder)
    return folder / "runs/others/others.edgecnn"


if __name__ == "__main__":
    main()
