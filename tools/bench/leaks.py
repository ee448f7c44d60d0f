"""What splits leak from bursts: pairs of one scene in two splits, and the accuracy that is claimed as a result.

Real photos serve as scenes. Each becomes a burst of ten frames, once as copies (compressed and made smaller) and once as a camera would
take them: cropped and shifted by up to 6 %, brighter or darker, with sensor noise, as JPEG. The search for copies runs as in training. It
does not know which frames form a burst, unless a user names the scene.

A draw is half of each class's scenes, whose frames arrive on three days, each on any of them. Logistic regression is fitted to the
training frames, on the features of the frozen ImageNet network that the search computes, and claims its accuracy on the test frames. The
truth is its accuracy on the frames of all scenes outside the draw. Only the first draws have accuracies, because fitting takes long.

    EDGECNN_DATA=<folder of trash-photos.zip> python tools/bench/leaks.py

With --work, intermediate results are kept, so that an interrupted bench can resume.
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import about, finish, parser
from PIL import Image, ImageEnhance
from threadpoolctl import threadpool_limits

from edgecnn.data import Dataset, open_dataset
from edgecnn.data.items import Item
from edgecnn.data.splits import COPY, SAME, Grouping, Link, SplitGroups, splits_of, tied, updated
from edgecnn.files import write_atomic
from edgecnn.inspect import groups
from edgecnn.inspect.inspection import find_copies
from edgecnn.inspect.look import Cache
from edgecnn.recipe import DataRecipe
from edgecnn.train.candidates import regression

POOL, FRAMES = 50, 10  # scenes per class, and frames per scene
DAYS = 3
CUT = 0.06
BRIGHTNESS, NOISE = 0.15, 3.0
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
KINDS = ("copies", "scenes")
ITERATIONS = 100


class Frames(NamedTuple):
    """All frames: their hashes, scenes, classes and features."""

    hashes: list[str]
    scenes: np.ndarray
    classes: np.ndarray
    features: np.ndarray


def burst(photo: Image.Image, random: np.random.Generator, kind: str) -> bytes:
    """Return a copy, or a frame of a scene."""
    if kind == "copies":
        small = photo.resize([round(random.uniform(0.5, 1) * side) for side in photo.size], Image.Resampling.BILINEAR)
        return jpeg(small, int(random.integers(40, 92)))
    share = 1 - random.uniform(0, CUT)
    width, height = (round(share * side) for side in photo.size)
    left, top = (
        int(random.integers(0, side - kept + 1)) for side, kept in zip(photo.size, (width, height), strict=True)
    )
    frame = photo.crop((left, top, left + width, top + height)).resize(photo.size, Image.Resampling.BILINEAR)
    frame = ImageEnhance.Brightness(frame).enhance(1 + random.uniform(-BRIGHTNESS, BRIGHTNESS))
    noisy = np.asarray(frame, np.float32) + random.normal(0, NOISE, (photo.height, photo.width, 3))
    return jpeg(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), int(random.integers(75, 92)))


def jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_frames(archive: Path, folder: Path, seed: int, kind: str) -> None:
    """Write CLASS/SCENE-N.jpg unless they exist."""
    if folder.exists():
        return
    random = np.random.default_rng(seed)
    by_class: dict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(archive) as file:
        for name in sorted(name for name in file.namelist() if name.endswith(".jpg")):
            by_class[Path(name).parent.name].append(name)
        for label, names in sorted(by_class.items()):
            chosen = set(random.permutation(names)[:POOL].tolist())
            for name in (name for name in names if name in chosen):
                photo = Image.open(io.BytesIO(file.read(name))).convert("RGB")
                for number in range(FRAMES):
                    write_atomic(folder / label / f"{Path(name).stem}-{number}.jpg", burst(photo, random, kind))


class Seen:
    """The result of the search over all frames."""

    def __init__(self, dataset: Dataset, cache: Cache) -> None:
        groups.frame_difference = functools.cache(groups.frame_difference)  # draws repeat their pairs
        self.found = find_copies(dataset, None, show, print, for_links=True)
        self.found.cache = cache  # draws measure further pairs
        self.hashes = [item.hash for item in self.found.looks.items]

    def links(self, here: Sequence[int]) -> list[Link]:
        """Return the links that the search finds among some of the frames, as if only these existed."""
        return [
            Link(self.hashes[pair.first], self.hashes[pair.second], pair.score, SAME if pair.by == "content" else COPY)
            for pair in self.found.near(np.array(here))
        ]


def pairs_apart(
    frames: Frames, chosen: Sequence[int], split_groups: Mapping[str, str], left_out: Container[str] = ()
) -> tuple[int, int, int]:
    """Count pairs of frames of one scene, those in two different splits, and those of the latter with a tested frame."""
    by_scene: dict[int, list[str]] = defaultdict(list)
    for index in chosen:
        by_scene[int(frames.scenes[index])].append(frames.hashes[index])
    pairs = [pair for hashes in by_scene.values() for pair in combinations(hashes, 2)]
    apart = [pair for pair in pairs if split_groups[pair[0]] != split_groups[pair[1]]]
    tested = sum(any(split_groups[one] == "test" and one not in left_out for one in pair) for pair in apart)
    return len(pairs), len(apart), tested


def arrived(frames: Frames, order: Sequence[int], seen: Seen, named: bool) -> tuple[dict[str, str], Mapping[str, str]]:
    """Return the splits of frames that arrive on DAYS days, with an update each day, and the frames left out of comparisons."""
    split_groups: SplitGroups = {}
    left_out: Mapping[str, str] = {}
    for day in range(1, DAYS + 1):
        here = sorted(order[: len(order) * day // DAYS])
        photos = {frames.hashes[index]: int(frames.classes[index]) for index in here}
        links = seen.links(here)
        scenes = {frames.hashes[index]: str(frames.scenes[index]) for index in here if named}
        groups = Grouping("(.+)-" if named else "", scenes, split_groups)
        split_groups = updated(groups, photos, SHARES, links)
        left_out = tied(split_groups, links)
    return splits_of(split_groups), left_out


def accuracy(frames: Frames, taught: np.ndarray, asked: Sequence[np.ndarray]) -> list[float]:
    """Fit on some frames, and return the accuracy on each of several other sets."""
    mean = frames.features[taught].mean(axis=0)
    scale = float((frames.features[taught] - mean).std())
    with threadpool_limits(1):
        fitted = regression(1.0, ITERATIONS).fit((frames.features[taught] - mean) / scale, frames.classes[taught])
        return [float(fitted.score((frames.features[one] - mean) / scale, frames.classes[one])) for one in asked]


def draw(frames: Frames, seen: Seen, seed: int, fitted: bool) -> dict[str, Any]:
    """Draw scenes, divide their frames by content only and with groups, and return pairs apart and accuracies for each."""
    random = np.random.default_rng(seed)
    made = np.unique(frames.scenes)
    classes = {int(scene): int(frames.classes[np.flatnonzero(frames.scenes == scene)[0]]) for scene in made}
    scenes = []
    for label in sorted(set(classes.values())):
        mine = random.permutation([one for one, other in classes.items() if other == label])
        scenes += mine[: len(mine) // 2].tolist()
    within = np.isin(frames.scenes, scenes)
    scattered = random.permutation(np.flatnonzero(within))
    whole = np.concatenate([np.flatnonzero(frames.scenes == scene) for scene in random.permutation(scenes)])
    content = dict(
        zip(
            frames.hashes,
            random.choice(list(SHARES), len(frames.hashes), p=list(SHARES.values())).tolist(),
            strict=True,
        )
    )
    fresh = np.flatnonzero(~within)
    row: dict[str, Any] = {"seed": seed}
    ways = {
        "content": (content, {}),
        "copies": arrived(frames, scattered.tolist(), seen, False),
        "groups": arrived(frames, scattered.tolist(), seen, True),
    }
    for way, (places, left_out) in ways.items():
        row["pairs"], row[f"{way}_apart"], row[f"{way}_tested"] = pairs_apart(frames, whole.tolist(), places, left_out)
        splits = np.array([places[frames.hashes[index]] for index in whole])
        if fitted:
            figures = accuracy(frames, whole[splits == "train"], (whole[splits == "test"], fresh))
            row[f"{way}_claimed"], row[f"{way}_true"] = figures
    return row


def frames_of(folder: Path, scenes: int) -> Dataset:
    """Open the frames of the first scenes of each class."""
    dataset = open_dataset(DataRecipe(source=str(folder)), for_training=False)
    places: dict[str, str] = {}
    for label in range(len(dataset.labels)):
        items = [item for part in dataset.items.values() for item in part if item.label == label]
        kept = sorted({scene_of(item) for item in items})[:scenes]
        places |= {item.hash: item.split for item in items if scene_of(item) in kept}
    return dataset.redivided(places)


def described(seen: Seen) -> Frames:
    """Return the frames, in the search's order."""
    items, features = seen.found.looks.items, seen.found.features
    assert features is not None
    numbers = np.unique([f"{item.label} {scene_of(item)}" for item in items], return_inverse=True)[1]
    return Frames(seen.hashes, numbers, np.array([item.label for item in items]), features)


def scene_of(item: Item) -> str:
    return Path(item.source).stem.rpartition("-")[0]


def show(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr, end="\r", flush=True)


def main() -> None:
    """Draw, print a table and write the figures."""
    made = parser(__doc__, "leaks")
    made.add_argument("--data", default="trash-photos.zip", help="a zip of NAME/CLASS/*.jpg, below $EDGECNN_DATA")
    made.add_argument(
        "--scenes", type=int, default=POOL, help=f"scenes of each class, at most {POOL} (default: {POOL})"
    )
    made.add_argument("--draws", type=int, default=100, help="draws (default: 100)")
    made.add_argument("--fitted", type=int, default=30, help="draws with accuracies (default: 30)")
    made.add_argument("--work", type=Path, help="a folder for intermediate results (default: a temporary one)")
    arguments = made.parse_args()
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    rows, frames = [], None
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the search starts from scratch
        for kind in KINDS:
            write_frames(archive, folder / kind, 1, kind)
            dataset = frames_of(folder / kind, arguments.scenes)
            with contextlib.closing(Cache()) as cache:
                seen = Seen(dataset, cache)
                frames = described(seen)
                for seed in range(1, arguments.draws + 1):
                    rows.append({"kind": kind, **draw(frames, seen, seed, seed <= arguments.fitted)})
    assert frames
    settings = {
        "data": arguments.data, "options": f"--scenes {arguments.scenes} --draws {arguments.draws} --fitted {arguments.fitted}",
        "scenes": len(np.unique(frames.scenes)), "frames": len(frames.hashes),
    }  # fmt: skip
    finish(arguments.out, {**about("leaks", **settings), "draws": rows}, HEADINGS, rows_of(rows))


HEADINGS = (
    "bursts of",
    "divided",
    "pairs of one scene in two splits",
    "of those, with a tested frame",
    "claimed",
    "on other scenes",
    "difference",
)

TITLES = {"content": "by content only", "copies": "copies together", "groups": "`--group-by` the scene"}


def rows_of(draws: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table: each way of dividing, with means over all draws and the range of 95 % of the differences."""
    rows: list[tuple[str, ...]] = []
    for kind, (way, title) in product(KINDS, TITLES.items()):
        mine = [row for row in draws if row["kind"] == kind]
        apart, tested, pairs = (sum(row[key] for row in mine) for key in (f"{way}_apart", f"{way}_tested", "pairs"))
        figures = ("-", "-", "-")
        if fitted := [row for row in mine if f"{way}_claimed" in row]:
            claimed, true = (np.array([row[f"{way}_{key}"] for row in fitted]) for key in ("claimed", "true"))
            low, high = np.percentile(100 * (claimed - true), (2.5, 97.5))
            difference = f"{100 * (claimed - true).mean():+.1f} ({low:+.1f} to {high:+.1f})"
            figures = (f"{claimed.mean():.1%}", f"{true.mean():.1%}", difference)
        rows.append((kind, title, f"{apart:,} of {pairs:,}", f"{tested:,}", *figures))
    return rows


def sentence(report: Mapping[str, Any]) -> str:
    fitted = sum("copies_claimed" in row for row in report["draws"]) // len(KINDS)
    return (
        f"{len(report['draws']) // len(KINDS):,} draws of half of the {report['scenes']:,} scenes; {fitted} of them have accuracies. To "
        f"measure again: `EDGECNN_DATA=FOLDER python tools/bench/leaks.py {report['options']}`, with {report['data']} in FOLDER."
    )


if __name__ == "__main__":
    main()
