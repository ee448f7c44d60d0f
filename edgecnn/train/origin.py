"""What a run begins with: the user's own network, trained weights, a head fitted to a frozen body, and a teacher.

A user's network and trained weights are copied into the run folder, so the run can continue after the originals are changed or deleted.

For a head, the int8 body is calibrated and rounded once, on all photos without their labels. Only the last layer differs between folds.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.data import Progress
from edgecnn.data.decoding import balanced
from edgecnn.errors import NetworkError, RunError
from edgecnn.files import sha256, write_atomic
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.own import own_network, read_source
from edgecnn.networks.predict import model_from_bytes, predictor, real_input
from edgecnn.networks.pretrained import is_backbone, load_weights, read_backbone, read_weights
from edgecnn.recipe import Recipe, Settled
from edgecnn.run_info import OwnFile, StartedFrom, TaughtBy
from edgecnn.runs import BACKBONE, FLOAT_MODEL, INFO, INIT_MODEL, NETWORK_FILE, Run, open_run, trained_run
from edgecnn.tables import Struct
from edgecnn.train import candidates
from edgecnn.train.phases import build_at, fake_quantize, set_batch_norm
from edgecnn.train.ranges import measure, round_in_turn, set_logits_range, widen
from edgecnn.train.settle import own_weights, starts_trained

BATCH = 100

SAMPLE = 2_000  # images, at most, that choose the regularization; balanced by class


def take_body(model: "keras.Model", trained: "keras.Model") -> None:
    """Copy a trained network's weights, except the last layer's. Raises NetworkError, which names the first layer that differs."""
    mine, theirs = ([layer for layer in network.layers if layer.weights] for network in (model, trained))
    for layer, other in zip(mine[:-1], theirs[:-1], strict=False):
        shapes = [[tuple(weight.shape) for weight in item.weights] for item in (layer, other)]
        if type(layer).__name__ != type(other).__name__ or shapes[0] != shapes[1]:
            raise NetworkError(
                f"cannot start from that network: its layer {other.name} has weights {shapes[1]}, but {layer.name} here has {shapes[0]}. "
                "Use that network's name, options, channels and input size; they are the defaults if you set none."
            )
    if len(mine) != len(theirs):
        raise NetworkError(
            f"cannot start from that network: it has {len(theirs)} layers with weights, but this one has {len(mine)}. "
            "Use that network's name and input size; they are the defaults if you set none."
        )
    for layer, other in zip(mine[:-1], theirs[:-1], strict=True):
        layer.set_weights(other.get_weights())


def fit_head(
    model: "keras.Model",
    recipe: Settled,
    images: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit the network's last layer, if it is dense, by logistic regression on the features of uint8 images, which must cover all classes.

    `weights` are those of the images, (n,); by default all weigh the same.

    The regularization is that with the highest likelihood on held-out images, as in `edgecnn.train.candidates`.
    """
    head = model.layers[-1]
    if type(head) is not keras.layers.Dense:
        return
    features = compute_features(keras.Model(model.inputs, head.input), recipe, images, progress)
    shares = np.ones(len(classes)) if weights is None else weights
    layer = fit_layer(candidates.Images(features, classes, shares, head.units), recipe.seed)
    head.set_weights([layer.weights.astype(np.float32), layer.bias.astype(np.float32)][: len(head.get_weights())])


def fit_layer(images: candidates.Images, seed: int) -> candidates.Layer:
    """Fit a layer with the strength that is likeliest for held-out images, at most SAMPLE."""
    drawn = images.some(np.sort(balanced(images.classes, SAMPLE, seed)))
    strength = candidates.STRENGTHS[1]
    if np.bincount(drawn.classes).max() > 1:  # otherwise no class can be divided
        folds = candidates.folds_of(drawn.classes, list(map(str, range(len(drawn.classes)))), seed)
        _, strength, _ = candidates.held_out(drawn, folds)
    return candidates.fit(images, strength)


def compute_features(body: "keras.Model", recipe: Settled, images: np.ndarray, progress: Progress | None) -> np.ndarray:
    predict = predictor(body, recipe.input_scale, recipe.input_zero_point, BATCH)
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(predict(images[start : start + BATCH]))
        if progress:
            progress("computing features", min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts)


MEASURED, FEATURE_BATCH = 128, 32  # photos that set the int8 body's ranges, and per batch

ROUNDED = 64  # photos that guide the rounding


class Trained(NamedTuple):
    """A float and a fake-quantized model, and each photo's answers by layers fitted without its fold.

    `float_logits` and `int8_logits` are float32 (n, num_classes); `features` are those of the int8 body, float32 (n, length).
    """

    model: Any
    student: Any
    float_logits: np.ndarray
    int8_logits: np.ndarray
    features: np.ndarray


def train_head(
    model: "keras.Model",
    recipe: Settled,
    pixels: np.ndarray,
    images: candidates.Images,
    folds: np.ndarray,
    features_of: Callable[["keras.Model"], np.ndarray],
    progress: Progress,
) -> Trained:
    """Fit the last layer of a network with trained weights to uint8 pixels (n, height, width, channels) and their float features.

    `features_of` returns the features of the pixels that a fake-quantized model's int8 file computes, as the values of their codes.
    """
    float_logits, strength, of_folds = candidates.held_out(images, folds)
    layer = candidates.fit(images, strength)
    model.layers[-1].set_weights([layer.weights.astype(np.float32), layer.bias.astype(np.float32)])
    student = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    drawn = pixels[balanced(images.classes, MEASURED, recipe.seed)]
    factors = widen(student, measure(student, model, recipe, np.array_split(drawn, -(-len(drawn) // FEATURE_BATCH))))
    progress("int8 body", 1, 3)
    round_in_turn(student, model, recipe, pixels[balanced(images.classes, ROUNDED, recipe.seed)], factors)
    progress("int8 body", 2, 3)
    codes = features_of(student)
    progress("int8 body", 3, 3)
    int8_logits = np.empty_like(float_logits)
    for (kept, held), of_fold in zip(candidates.parts(folds), of_folds, strict=True):
        int8_logits[held] = int8_layer(of_fold, images.features[kept], codes[kept]).logits(codes[held])
    set_int8_layer(student, int8_layer(layer, images.features, codes))
    set_batch_norm(student, trainable=True)
    return Trained(model, student, float_logits, int8_logits, codes)


def int8_layer(layer: candidates.Layer, features: np.ndarray, codes: np.ndarray) -> candidates.Int8Layer:
    """Return the layer that gives a float layer's logits on the values of the int8 body's codes, both (n, length), rounded."""
    return candidates.quantize(candidates.nearest_layer(layer, features, codes), codes)


def set_int8_layer(student: "keras.Model", int8: candidates.Int8Layer) -> None:
    """Give a fake-quantized model's last layer these weights, their step and the range of its logits."""
    wrapper = student.layers[-1]
    wrapper.layer.bias.assign(int8.layer.bias.astype(np.float32))
    (kernel, _, ends), *_ = wrapper._weight_vars
    kernel.assign(int8.layer.weights.astype(np.float32))
    reach = np.float32(int8.step * 127)
    ends["min_var"].assign(np.full(ends["min_var"].shape, -reach))
    ends["max_var"].assign(np.full(ends["max_var"].shape, reach))
    set_logits_range(student, *int8.ends)


def local_recipe(recipe: Settled, run: Run | None) -> Settled:
    """Return the recipe with the user's own network, if any, read from the run's copy of its file. Makes that copy if it is missing."""
    network = recipe.network
    if run is None or not network.file:
        return recipe
    own = own_network(network.name)
    copy = run.file(NETWORK_FILE if own else BACKBONE)
    if not copy.exists():
        data = read_source(own) if own else read_backbone(Path(network.name), network.options.get("sha256")).data
        write_atomic(copy, data)
    name = f"{copy.resolve()}:{own.function}" if own else str(copy.resolve())
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, name=name))


@dataclass(frozen=True)
class Start:
    """Trained weights to start from: what the run records about them, and a function that loads them into all of a network but its head."""

    recorded: StartedFrom
    give: Callable[["keras.Model"], None]


def open_start(recipe: Settled, run: Run | None) -> Start | None:
    """Return the trained weights that a settled recipe starts from: a run's, or the network's ImageNet weights. None means random weights.

    A run's weights are copied into this run. Raises RunError if it has none or read its images differently, and ModuleNotFoundError or
    NetworkError like `pretrained.read_weights`.
    """
    if not starts_trained(recipe):
        return None
    source = own_weights(recipe)
    if source is None:
        weights = init_weights(recipe, run)
        recorded = StartedFrom(run=Path(recipe.init.source or "").name, sha256=sha256(weights))
        return Start(recorded, lambda model: take_body(model, model_from_bytes(weights)))
    if is_backbone(recipe.network.name):
        recorded = StartedFrom(run=source.title, sha256=recipe.network.options["sha256"])
        return Start(recorded, lambda model: None)  # the network comes with its weights
    state = read_weights(source)
    recorded = StartedFrom(run=f"{source.title} ({source.distribution})", sha256=source.sha256, licence=source.licence)
    return Start(recorded, lambda model: load_weights(model, state))


def init_weights(recipe: Settled, run: Run | None) -> bytes:
    copy = run.file(INIT_MODEL) if run else None
    if copy and copy.exists():
        return copy.read_bytes()
    source = trained_run(Path(recipe.init.source or ""))
    expected, received = ((item.input_scale, item.input_zero_point) for item in (recipe, source.recipe))
    if expected != received:
        raise RunError(
            f"init.source: {source.path} was trained on inputs of scale {received[0]:g} and zero point {received[1]}, but this network "
            f"reads scale {expected[0]:g} and zero point {expected[1]}. Leave out network.input_range and input_scale to use the run's."
        )
    weights = source.read(FLOAT_MODEL, "train")
    if copy:
        write_atomic(copy, weights)
    return weights


def own_file(recipe: Recipe, run: Run | None) -> OwnFile | None:
    """Return what `run.json` records about a user's own network, from the run's copy if it exists. None for a built-in network."""
    own = own_network(recipe.network.name)
    if own is None:
        return None
    copy = run.file(NETWORK_FILE) if run else own.file
    return OwnFile(file=own.label, sha256=sha256(copy.read_bytes() if copy.exists() else read_source(own)))


def changed_origins(recipe: Recipe, run: Run) -> list[str]:
    """List for messages the originals that still exist but have changed since the run began."""
    if not run.file(INFO).exists():
        return []
    info, changed = run.info, []
    own = own_network(recipe.network.name)
    if own and own.file.exists() and not (info.network and sha256(read_source(own)) == info.network.sha256):
        changed.append(f"the network {own.label}")
    weights = Path(recipe.init.source or "") / FLOAT_MODEL
    if recipe.init.source and weights.exists() and not (info.init and sha256(weights.read_bytes()) == info.init.sha256):
        changed.append(f"the weights of {recipe.init.source}")
    return changed


class Teacher(Struct):
    """`logits` maps a step's uint8 images, and the number of steps before it, to float32 logits (n, num_classes) in a graph. `described`
    goes into `run.json`."""

    logits: Callable[[Any, Any], Any]
    described: TaughtBy


def open_teacher(recipe: Settled, shape: tuple[int, int, int], labels: tuple[str, ...]) -> Teacher | None:
    """Load the float model of the run named by `teacher.run`; None without a teacher. Raises RunError if it is missing or does not fit.

    A teacher whose input has another height or width gets the student's images resized to it, bilinear. It computes in the precision in
    which it was trained.
    """
    if not recipe.teacher:
        return None
    run = open_run(Path(recipe.teacher.run))
    if run.reference:
        raise RunError(
            f"teacher.run: {run.path} holds {run.reference}, which edgecnn cannot train with. Import its float model instead."
        )
    data = run.read(run.float_model, "train")
    info = run.info
    found = (info.input.height, info.input.width, info.input.channels)
    classes = info.data.labels
    if found[2] != shape[2] or classes != labels:
        raise RunError(
            f"teacher.run: {run.path} has {found[2]}-channel images and {len(classes)} classes, {', '.join(classes[:5])} …; "
            f"expected {shape[2]}-channel images and {len(labels)} classes, {', '.join(labels[:5])} …, in this order."
        )
    scale, zero_point = run.recipe.input_scale, run.recipe.input_zero_point
    precision = run.recipe.train.precision
    model = model_from_bytes(data)
    if precision != "float32" and not run.imported:
        weights, network = model.get_weights(), local_recipe(run.settled, run).network
        model = build_at(precision, network, found, len(labels))
        model.set_weights(weights)

    def logits(images: Any, step: Any) -> Any:
        if found != shape:
            images = tf.image.resize(images, found[:2], antialias=True)
        return tf.cast(model(real_input(images, scale, zero_point), training=False), tf.float32)

    return Teacher(logits=logits, described=TaughtBy(name=run.name, sha256=sha256(data)))


def remembered(teacher: Teacher, steps: int, size: int, num_classes: int) -> Teacher:
    """Return a teacher that caches its answers to batches that repeat every `steps` steps. The cache is per device and not checkpointed."""
    answers = tf.Variable(tf.zeros((steps, size, num_classes)), trainable=False)
    known = tf.Variable(tf.zeros(steps, tf.bool), trainable=False)

    def logits(images: Any, step: Any) -> Any:
        place = step % steps

        def ask() -> Any:
            found = teacher.logits(images, step)
            answers[place].assign(found)
            known[place].assign(True)
            return found

        return tf.cond(tf.gather(known, place), lambda: tf.gather(answers, place), ask)

    return replace(teacher, logits=logits)
