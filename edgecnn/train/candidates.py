"""Choosing a network for photos: features of frozen networks, last layers fitted to them, and the rules that select by held-out answers."""

import copy
import io
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecnn.data import Dataset, Progress
from edgecnn.data.decoding import balanced
from edgecnn.data.folds import stratified
from edgecnn.files import read_npz, sha256, write_atomic
from edgecnn.networks.blocks import frozen_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import folded, real_input
from edgecnn.networks.pretrained import build_backbone, is_backbone, source_of
from edgecnn.recipe import NetworkRecipe
from edgecnn.run_info import Candidate
from edgecnn.train.ranges import CODES, narrow, on_grid, round_matrix
from edgecnn.versions import processors

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # candidates for the inverse regularisation strength (scikit-learn's C)

FOLDS = 5
SAMPLE = 2_000
"""Cross-validation of the strength: at most FOLDS stratified folds, fewer if the smallest class is smaller, on at most SAMPLE images."""


def regression(strength: float, iterations: int = 500) -> "LogisticRegression":
    """Return a logistic regression to fit. It does not warn if it stops before it has converged: its answers are good enough then."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    return LogisticRegression(C=strength, max_iter=iterations)


def choose_strength(features: np.ndarray, classes: np.ndarray, seed: int) -> float:
    """Return the value of STRENGTHS with the best log-likelihood in stratified cross-validation.

    `features` are float (n, length) of magnitude about 1, `classes` int (n,).
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit

    strength = STRENGTHS[1]
    folds = min(FOLDS, int(np.bincount(classes).min()))
    if folds < 2:
        return strength
    chosen = np.arange(len(classes))
    if len(classes) > SAMPLE:
        draw = StratifiedShuffleSplit(1, train_size=SAMPLE, random_state=seed)
        chosen = next(draw.split(features, classes))[0]
        folds = max(2, min(folds, int(np.bincount(classes[chosen]).min())))
    search = GridSearchCV(
        regression(strength), {"C": STRENGTHS}, cv=StratifiedKFold(folds, shuffle=True, random_state=seed), refit=False,
        scoring="neg_log_loss",
    )  # fmt: skip
    return float(search.fit(features[chosen], classes[chosen]).best_params_["C"])


MOST_ITERATIONS = 200

SPAN = 1e-10  # directions in which features vary by less than this share of their largest variance are left out

MOVED_DAMPING = 0.1  # how strongly moved weights stay near the others, as a share of the features' mean sum of squares

ABSENT = 20.0  # how far below all others the logit of a class stays that has no image in training


class Layer(NamedTuple):
    """A dense layer: weights (features, classes) and bias (classes,), float64."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        values: np.ndarray = (features @ self.weights + self.bias).astype(np.float32)
        return values


class Images(NamedTuple):
    """Features (n, length), classes (n,) and weights (n,) of images; `num_classes` classes exist, of which some may have no image."""

    features: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    num_classes: int

    def some(self, chosen: np.ndarray) -> "Images":
        return Images(self.features[chosen], self.classes[chosen], self.weights[chosen], self.num_classes)


def fit(images: Images, strength: float) -> Layer:
    """Fit the layer. All features share one scale: otherwise one that hardly varies would get a weight too large for int8."""
    features, classes, shares, count = images
    mean = features.mean(axis=0)
    centred = (features - mean).astype(np.float64)
    scale = max(float(centred.std()), 1e-12)
    present = np.unique(classes)
    weights, bias = np.zeros((features.shape[1], count)), np.zeros(count)
    if len(present) > 1:
        values, basis = centred / scale, None
        if 2 * len(values) <= values.shape[1]:  # few photos: the same layer in a fraction of the time
            values, basis = spanned(values)
        fitted = regression(strength, MOST_ITERATIONS).fit(values, classes, shares)
        own, offsets = (fitted.coef_.T if basis is None else basis @ fitted.coef_.T) / scale, fitted.intercept_
        if len(present) == 2:  # scikit-learn gives the log-odds of the second class
            own, offsets = np.concatenate([-own, own], axis=1) / 2, np.array([-offsets[0], offsets[0]]) / 2
        weights[:, present], bias[present] = own, offsets - mean @ own
    absent = np.setdiff1d(np.arange(count), present)
    bias[absent] = (features @ weights + bias).min() - ABSENT
    return Layer(weights, bias)


def spanned(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of features (n, length), float64, in an orthonormal basis (length, dimensions), which holds them all.

    A layer fitted to the coordinates is the same, since its weights are sums of photos.
    """
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > SPAN * values[-1]
    roots = np.sqrt(values[kept])
    return vectors[:, kept] * roots, features.T @ (vectors[:, kept] / roots)


def nearest_layer(layer: Layer, before: np.ndarray, after: np.ndarray) -> Layer:
    """Return the layer nearest to `layer` whose logits for some features differ least from its own for these photos' features `before`.

    Features are (n, length). Another logistic regression on the same photos would agree with this layer on fewer others.
    """
    mean = after.mean(axis=0, dtype=np.float64)
    centred = after - mean
    logits = before @ layer.weights
    products = centred.T @ centred
    damping = MOVED_DAMPING * max(float(np.mean(np.diag(products))), 1e-12)
    missing = centred.T @ (logits - logits.mean(axis=0)) - products @ layer.weights
    weights = layer.weights + np.linalg.solve(products + damping * np.eye(len(mean)), missing)
    return Layer(weights, layer.bias + logits.mean(axis=0) - mean @ weights)


def parts(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training indices, held-out indices) for each fold of `folds`, int (n,)."""
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def held_out(images: Images, folds: np.ndarray) -> tuple[np.ndarray, float, list[Layer]]:
    """Return each image's logits by the layer fitted without its fold, float32 (n, num_classes), the likeliest strength, and the layers
    in the order of `parts`."""
    from threadpoolctl import threadpool_limits

    best: tuple[np.ndarray, float, list[Layer]] = (np.empty(0), 0.0, [])
    least = np.inf
    # small matrices: BLAS's own threads would wait for each other
    with threadpool_limits(1), ThreadPoolExecutor(processors()) as pool:
        for strength in STRENGTHS:
            layers = list(pool.map(lambda part, strength=strength: fit(images.some(part[0]), strength), parts(folds)))
            logits = np.empty((len(folds), images.num_classes), np.float32)
            for (_, held), layer in zip(parts(folds), layers, strict=True):
                logits[held] = layer.logits(images.features[held])
            loss = float(np.mean(images.weights * log_losses(logits, images.classes)))
            if loss >= least:  # it falls and then rises, and the weakest regularization takes longest
                break
            best, least = (logits, strength, layers), loss
    return best


def log_losses(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits) of the true classes, in nats, float64 (n,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    values: np.ndarray = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(classes)), classes]
    return values


class Int8Layer(NamedTuple):
    """A layer whose weights lie on the codes of one `step`, and the range of its logits' codes."""

    layer: Layer
    step: float
    ends: tuple[float, float]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits of an int8 file for features that are the values of codes: float32 (n, classes)."""
        values: np.ndarray = on_grid(self.layer.logits(features), *self.ends).astype(np.float32)
        return values


def quantize(layer: Layer, features: np.ndarray) -> Int8Layer:
    """Round a layer's weights so that its products with the features are preserved, as `edgecnn.train.ranges` rounds any kernel."""
    step = max(float(np.abs(layer.weights).max()) / CODES, 1e-12)
    values = features.astype(np.float64)
    codes = round_matrix(layer.weights, np.array(step), values.T @ values)
    return Int8Layer(Layer(codes * step, layer.bias), step, narrow(layer.logits(features)))


SMALLEST = 96  # side at which photos are first decoded, to find the readable ones

BATCH = 8

HASHES = "hashes"


class Photos:
    """At most `count` readable photos of some splits: their places, hashes, groups and classes."""

    def __init__(
        self, dataset: Dataset, splits: Sequence[str], channels: int, seed: int, count: int, progress: Progress | None
    ) -> None:
        self.dataset, self.channels, self.progress = dataset, channels, progress
        loaded = dataset.load(
            splits, height=SMALLEST, width=SMALLEST, channels=channels, stage="train", progress=progress
        )
        hashes = {(split, item.source): item.hash for split in splits for item in dataset.items[split]}
        places = [(split, source) for split in splits for source in loaded[split].sources]
        classes = np.concatenate([loaded[split].classes for split in splits])
        self.places, self.classes = places, classes
        self.hashes = [hashes[place] for place in places]
        self.groups = [dataset.split_groups[one].group if one in dataset.split_groups else one for one in self.hashes]
        self._draw(count, seed)

    def some(self, count: int, seed: int) -> "Photos":
        """Return at most `count` of these photos, drawn like these."""
        fewer = copy.copy(self)
        fewer._draw(count, seed)
        return fewer

    def _draw(self, count: int, seed: int) -> None:
        drawn = np.sort(balanced(self.classes, count, seed))
        self.places = [self.places[index] for index in drawn]
        self.hashes = [self.hashes[index] for index in drawn]
        self.groups = [self.groups[index] for index in drawn]
        self.classes = self.classes[drawn]

    def at_size(
        self, places: Sequence[tuple[str, str]], shape: tuple[int, int, int], progress: Progress | None = None
    ) -> np.ndarray:
        """Decode photos as uint8, each of `shape` (height, width, channels), in the given order."""
        by_split = {split: [source for one, source in places if one == split] for split, _ in places}
        pixels = {
            split: iter(self.dataset.at_size(split, sources, shape, stage="train", progress=progress))
            for split, sources in by_split.items()
        }
        return np.stack([next(pixels[split]) for split, _ in places])


def frozen_features(
    family: str,
    size: tuple[int, int],
    photos: Photos,
    reading: tuple[float, int],
    kept: Path,
    options: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Return each rung's features of the photos, float32 (n, length). The folder `kept` caches them; missing ones are computed.

    A backbone's file, with the `options` of its recipe, is a family of one.

    `size` is the input's (height, width), `reading` the scale and zero point of its code. Raises NetworkError or ModuleNotFoundError
    like `pretrained.read_weights`.
    """
    source, label = source_of(family if is_backbone(family) else f"{family}_"), Path(family).name
    assert source is not None
    key = sha256(f"{source.sha256 or options} {size} {photos.channels} {reading} {BATCH}".encode())[:12]
    path = kept / f"{label}-{size[0]}x{size[1]}-{key}.npz"
    rows, values = read_features(path)
    missing = {one: index for index, one in enumerate(photos.hashes) if one not in rows}
    if missing:
        fresh = computed(family, size, photos, list(missing.values()), reading, options or {})
        values = {rung: np.concatenate([*([values[rung]] if rows else []), more]) for rung, more in fresh.items()}
        rows |= {one: len(rows) + number for number, one in enumerate(missing)}
        write_features(path, rows, values)
    chosen = [rows[one] for one in photos.hashes]
    return {rung: found[chosen].astype(np.float32) for rung, found in values.items()}


def computed(
    family: str,
    size: tuple[int, int],
    photos: Photos,
    indices: Sequence[int],
    reading: tuple[float, int],
    options: Mapping[str, str],
) -> dict[str, np.ndarray]:
    shape = (*size, photos.channels)
    if is_backbone(family):
        body = folded(build_backbone(Path(family), *shape, 2, options))
        network = keras.Model(body.inputs, {Path(family).name: body.layers[-1].input})
    else:
        network = frozen_network(family, photos.channels)
    forward = tf.function(lambda images: network(real_input(images, *reading)))
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(indices), BATCH):
        part = indices[start : start + BATCH]
        images = photos.at_size([photos.places[index] for index in part], shape)
        # batches of one shape: the network is traced once, and an image's features do not depend on the number of images
        padded = np.concatenate([images, np.zeros((BATCH - len(part), *shape), np.uint8)])
        for rung, output in forward(tf.constant(padded)).items():
            found[rung].append(output.numpy()[: len(part)].astype(np.float16))
        if photos.progress:
            photos.progress(f"features of {Path(family).name} at {size[1]}x{size[0]}", start + len(part), len(indices))
    return {rung: np.concatenate(values) for rung, values in found.items()}


def read_features(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Return each image's row by its hash, and each rung's features. Both are empty if the file is missing or unusable."""
    values = read_npz(path)
    rows = {one: row for row, one in enumerate(values.pop(HASHES, np.array([])).tolist())}
    return (rows, values) if all(len(one) == len(rows) for one in values.values()) else ({}, {})


def write_features(path: Path, rows: Mapping[str, int], values: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{HASHES: np.array(list(rows), np.str_), **values})
    write_atomic(path, buffer.getvalue())


SIDES = {"efficientnet_lite0": (96, 128, 160, 192, 224), "efficientnet_lite2": (160, 224, 260)}
"""Candidate input sides, in pixels, for each family of networks, if the recipe limits the network."""

USUAL = {"efficientnet_lite0": (160, 224), "efficientnet_lite2": (260,)}
"""The same without a limit: each side takes a pass over the photos."""

MOST = 2_000  # photos that choose, at most; balanced by class


CLOSE_LOSS, CLOSE_SHARE = 0.005, 0.01
"""How far behind the best a candidate may be: in nats of log loss, and as a share of photos. The cheapest within both limits is chosen."""

ROOM = 1.04
"""Safety factor on the predicted size of the int8 file, which is within 4 % of the real one."""


def sides_of(family: str, network: NetworkRecipe) -> tuple[tuple[int, int], ...]:
    """Return the candidate (height, width) pairs: the recipe's if it sets either side, else those of SIDES or USUAL."""
    if network.height or network.width:
        height, width = network.height or network.width, network.width or network.height
        return ((height, width),)
    limited = network.max_kb or network.max_macs or network.max_ms
    return tuple((side, side) for side in (SIDES if limited else USUAL)[family])


def fits_budget(candidate: Candidate, network: NetworkRecipe) -> bool:
    """Return whether a candidate is within the recipe's budget, as far as that is known without running it."""
    bytes_fit = network.max_kb is None or ROOM * candidate.int8_bytes <= 1_000 * network.max_kb
    return bytes_fit and (network.max_macs is None or candidate.macs <= network.max_macs)


def folds_of(classes: np.ndarray, groups: Sequence[str], seed: int) -> np.ndarray:
    """Return the fold of each photo, int (n,): stratified by class; photos of one group share a fold."""
    folds = np.zeros(len(classes), int)
    for number, held in enumerate(stratified(classes, groups, FOLDS, seed)):
        folds[held] = number
    return folds


def by_cost(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.ms or 0.0, candidate.macs, candidate.int8_bytes


def ranked_candidates(
    candidates: Sequence[Candidate], answers: Sequence[np.ndarray], classes: np.ndarray, weights: np.ndarray
) -> list[Candidate]:
    """Return candidates, lowest log loss first, with their accuracy and distance from the first.

    `answers` holds each candidate's logits for the same held-out photos (n, num_classes) of `classes`, (n,). `weights`, (n,), average 1:
    they make all classes count the same if a set is unbalanced.
    """
    right = [weights * (logits.argmax(axis=1) == classes) for logits in answers]
    losses = [weights * log_losses(logits, classes) for logits in answers]
    accuracies = [float(item.mean()) for item in right]
    means = [float(item.mean()) for item in losses]
    order = sorted(
        range(len(candidates)), key=lambda one: (round(means[one], 9), -accuracies[one], *by_cost(candidates[one]))
    )
    found = []
    for index in order:
        behind, error = distance_of(right[order[0]] - right[index])
        close = behind <= CLOSE_SHARE and means[index] - means[order[0]] <= CLOSE_LOSS
        found.append(
            replace(
                candidates[index],
                accuracy=min(accuracies[index], 1.0),
                log_loss=means[index],
                behind=behind,
                behind_error=error,
                close=close,
            )
        )
    return found


def distance_of(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences (n,) and its standard error."""
    return float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))


def cheapest_close(ranked: Sequence[Candidate]) -> Candidate:
    """Return the cheapest of compared candidates that are not clearly behind the best."""
    return min((one for one in ranked if one.close), key=by_cost)
