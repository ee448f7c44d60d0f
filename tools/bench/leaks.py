"""What bursts do to a split: pairs of one scene on both sides, and the accuracy that is claimed with them.

Real photos are scenes, and of each a burst of ten frames is made: cut and moved by up to 6 %, brighter or darker, with a sensor's noise, as
JPEG. The search for photos that show the same runs once over all frames, as training does; nobody says which frames are of one burst.

A draw is 60 scenes, whose frames arrive in a random order on three days. Each frame's content is drawn too, so that each draw divides
anew. With the frames' features of the frozen network of ImageNet, logistic regression is fitted on the training frames, and claims its
accuracy on the test frames. The truth are the photos of all scenes that are not in the draw.

    EDGECNN_DATA=<folder of trash-photos.zip> python tools/bench/leaks.py
"""

import io
import os
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import about, finish, parser
from PIL import Image, ImageEnhance
from threadpoolctl import threadpool_limits

from edgecnn.data import Dataset, open_dataset
from edgecnn.data.sides import Link, Newcomers, Sides, splits_of, updated
from edgecnn.inspect.inspection import find_links
from edgecnn.recipe import DataRecipe
from edgecnn.train.frozen import Photos, frozen_features
from edgecnn.train.regression import regression

SCENES, FRAMES = 50, 10  # scenes of each class, and frames of a scene
DRAWN = 10  # scenes of each class in a draw
DAYS = 3
CUT = 0.06
BRIGHTNESS, NOISE = 0.15, 3.0
RUNG, SIDE = "efficientnet_lite0_4000kb", 160
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Frames(NamedTuple):
    """All pictures: their hashes, scenes, classes and features; a scene's own photo comes first, its frames follow."""

    hashes: list[str]
    scenes: np.ndarray
    classes: np.ndarray
    original: np.ndarray
    features: np.ndarray


def burst(photo: Image.Image, random: np.random.Generator) -> bytes:
    """Return a frame of a scene."""
    share = 1 - random.uniform(0, CUT)
    width, height = (round(share * side) for side in photo.size)
    left, top = (
        int(random.integers(0, side - kept + 1)) for side, kept in zip(photo.size, (width, height), strict=True)
    )
    frame = photo.crop((left, top, left + width, top + height)).resize(photo.size, Image.Resampling.BILINEAR)
    frame = ImageEnhance.Brightness(frame).enhance(1 + random.uniform(-BRIGHTNESS, BRIGHTNESS))
    noisy = np.asarray(frame, np.float32) + random.normal(0, NOISE, (photo.height, photo.width, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(random.integers(75, 92)))
    return buffer.getvalue()


def write_photos(archive: Path, folder: Path, seed: int) -> None:
    """Write frames/CLASS/SCENE-N.jpg and photos/CLASS/SCENE.jpg."""
    random = np.random.default_rng(seed)
    by_class: dict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(archive) as file:
        for name in sorted(name for name in file.namelist() if name.endswith(".jpg")):
            by_class[Path(name).parent.name].append(name)
        for label, names in sorted(by_class.items()):
            chosen = set(random.permutation(names)[:SCENES].tolist())
            for name in names:
                data, stem = file.read(name), Path(name).stem
                files = {folder / "photos" / label / f"{stem}.jpg": data}
                if name in chosen:
                    photo = Image.open(io.BytesIO(data)).convert("RGB")
                    files |= {
                        folder / "frames" / label / f"{stem}-{number}.jpg": burst(photo, random)
                        for number in range(FRAMES)
                    }
                for path, content in files.items():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)


def features_of(dataset: Dataset, folder: Path) -> dict[str, np.ndarray]:
    """Return the frozen network's features of all images, by source."""
    everything = {item.hash for part in dataset.items.values() for item in part}
    taught = dataset.redivided(dict.fromkeys(everything, "train"))
    photos = Photos(taught, ("train",), 3, 1, 10**6, None)
    found = frozen_features("efficientnet_lite0", (SIDE, SIDE), photos, (1 / 128, 0), folder)[RUNG]
    return {source: row for (_, source), row in zip(photos.places, found, strict=True)}


def pairs_apart(frames: Frames, chosen: Sequence[int], sides: Mapping[str, str]) -> tuple[int, int]:
    """Return how many pairs of frames of one scene there are, and how many of them are in different splits."""
    by_scene: dict[int, list[str]] = defaultdict(list)
    for index in chosen:
        by_scene[int(frames.scenes[index])].append(sides[frames.hashes[index]])
    pairs = [pair for splits in by_scene.values() for pair in combinations(splits, 2)]
    return len(pairs), sum(one != other for one, other in pairs)


def arrived(frames: Frames, order: Sequence[int], content: Mapping[str, str], links: Sequence[Link]) -> Sides:
    """Return the sides of frames that arrive on DAYS days, each day's update after the other."""
    sides: Sides = {}
    for day in range(1, DAYS + 1):
        here = {frames.hashes[index]: int(frames.classes[index]) for index in order[: len(order) * day // DAYS]}
        known = [link for link in links if link.first in here and link.second in here]
        sides = updated(sides, Newcomers(here, {one: content[one] for one in here}, SHARES), known)
    return sides


def accuracy(frames: Frames, taught: np.ndarray, asked: Sequence[np.ndarray]) -> list[float]:
    """Fit on some pictures, and return the accuracy on each of several others."""
    mean = frames.features[taught].mean(axis=0)
    scale = float((frames.features[taught] - mean).std())
    with threadpool_limits(1):
        fitted = regression(1.0, 200).fit((frames.features[taught] - mean) / scale, frames.classes[taught])
        return [float(fitted.score((frames.features[one] - mean) / scale, frames.classes[one])) for one in asked]


def draw(frames: Frames, links: Sequence[Link], seed: int) -> dict[str, Any]:
    """Draw scenes, divide their frames by content alone and with groups, and return the pairs apart and the accuracies of both."""
    random = np.random.default_rng(seed)
    made = np.unique(frames.scenes[~frames.original])
    classes = {int(scene): int(frames.classes[np.flatnonzero(frames.scenes == scene)[0]]) for scene in made}
    scenes = [
        scene
        for label in sorted(set(classes.values()))
        for scene in random.permutation([one for one, other in classes.items() if other == label])[:DRAWN].tolist()
    ]
    within = np.isin(frames.scenes, scenes)
    order = random.permutation(np.flatnonzero(within & ~frames.original))
    content = dict(
        zip(
            frames.hashes,
            random.choice(list(SHARES), len(frames.hashes), p=list(SHARES.values())).tolist(),
            strict=True,
        )
    )
    fresh = np.flatnonzero(~within & frames.original)
    row: dict[str, Any] = {"seed": seed}
    ways = {"content": content, "groups": splits_of(arrived(frames, order.tolist(), content, links))}
    for way, sides in ways.items():
        pairs, apart = pairs_apart(frames, order.tolist(), sides)
        splits = np.array([sides[frames.hashes[index]] for index in order])
        claimed, true = accuracy(frames, order[splits == "train"], (order[splits == "test"], fresh))
        row |= {f"{way}_apart": apart, f"{way}_claimed": claimed, f"{way}_true": true, "pairs": pairs}
        row[f"{way}_test"] = float(np.mean(splits == "test"))
    return row


def read_frames(folder: Path) -> tuple[Frames, list[Link], dict[str, float]]:
    """Return all pictures with their features, the links that the search finds among the frames, and the processor seconds of it."""
    burst_set, photo_set = (
        open_dataset(DataRecipe(source=str(folder / name)), for_training=False) for name in ("frames", "photos")
    )
    started = time.process_time()
    links = find_links(burst_set, missing=None, progress=lambda *_: None, note=print)
    middle = time.process_time()
    find_links(burst_set, missing=None, progress=lambda *_: None, note=print)
    seconds = {"first": round(middle - started, 1), "again": round(time.process_time() - middle, 1)}
    rows = []
    for dataset, original in ((burst_set, False), (photo_set, True)):
        features = features_of(dataset, folder / "features")
        for item in (item for part in dataset.items.values() for item in part):
            stem = Path(item.source).stem
            scene = stem if original else stem.rpartition("-")[0]
            rows.append(
                (item.hash, f"{dataset.labels[item.label]}/{scene}", item.label, original, features[item.source])
            )
    hashes, scenes, classes, originals, values = zip(*rows, strict=True)
    numbers = np.unique(scenes, return_inverse=True)[1]
    return Frames(list(hashes), numbers, np.array(classes), np.array(originals), np.stack(values)), links, seconds


def main() -> None:
    """Draw, print a table and write the figures."""
    made = parser(__doc__, "leaks")
    made.add_argument("--data", default="trash-photos.zip", help="a zip of NAME/CLASS/*.jpg, below $EDGECNN_DATA")
    made.add_argument("--draws", type=int, default=100, help="draws (default: 100)")
    arguments = made.parse_args()
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # the search begins from scratch
        write_photos(archive, Path(folder), 1)
        frames, links, seconds = read_frames(Path(folder))
    rows = [draw(frames, links, seed) for seed in range(1, arguments.draws + 1)]
    settings = {
        "data": arguments.data, "scenes": len(np.unique(frames.scenes[~frames.original])), "frames": int((~frames.original).sum()),
        "search_cpu_seconds": seconds, "drawn": DRAWN, "days": DAYS,
    }  # fmt: skip
    finish(arguments.out, {**about("leaks", **settings), "draws": rows}, HEADINGS, rows_of(rows))


HEADINGS = ("divided", "pairs of one scene in two splits", "draws with one", "claimed", "on other scenes", "difference")


def rows_of(draws: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table: the two ways, the mean of all draws, and from where to where 95 % of the differences lie."""
    rows: list[tuple[str, ...]] = []
    for way, title in (("content", "by content alone"), ("groups", "bursts in one split")):
        claimed, true = (np.array([row[f"{way}_{key}"] for row in draws]) for key in ("claimed", "true"))
        low, high = np.percentile(100 * (claimed - true), (2.5, 97.5))
        apart = [row[f"{way}_apart"] for row in draws]
        rows.append(
            (
                title,
                f"{sum(apart):,} of {sum(row['pairs'] for row in draws):,}",
                f"{sum(map(bool, apart))} of {len(draws)}",
                f"{claimed.mean():.1%}",
                f"{true.mean():.1%}",
                f"{100 * (claimed - true).mean():+.1f} ({low:+.1f} to {high:+.1f})",
            )
        )
    return rows


if __name__ == "__main__":
    main()
