"""The training stage: turns data and a recipe into a run with a float and a fake-quantized model; and what that would cost."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from edgecnn.data import Dataset, Progress, Split
from edgecnn.data.dataset import write_known
from edgecnn.data.decoding import class_weights, equal_weights, some, weight_of_class
from edgecnn.data.folds import fold_infos
from edgecnn.errors import RecipeError, RunError
from edgecnn.files import write_atomic
from edgecnn.labels import plural
from edgecnn.networks.blocks import NetworkCost, describe
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import folded, model_bytes, model_from_bytes, predictor
from edgecnn.recipe import NEVER, Recipe, Settled
from edgecnn.run_info import Asked, InputSize, Int8Method, RunInfo, Tuning, Validation
from edgecnn.runs import FLOAT_MODEL, INFO, QAT_MODEL, ROUNDED_MODEL, TUNING, Run
from edgecnn.train import Workers, distribute
from edgecnn.train.best import Int8, Rival, Score, better_method, score
from edgecnn.train.loop import Batches, Checkpoint, History, Phase, Report, load_checkpoint, run_phase, write_history
from edgecnn.train.origin import fit_head, local_recipe, open_start, open_teacher, own_file, remembered
from edgecnn.train.phases import Qat, float_phase, is_enough, to_float32
from edgecnn.train.ranges import plain_kernels, round_kernels
from edgecnn.train.settle import starts_trained
from edgecnn.versions import library_versions

SEEN = 200  # training images that substitute for an empty validation split

LARGER = 1.4
"""Side of the photos from which crops are taken, relative to the input. The mean crop, 70 % of the area, is then reduced by a sixth."""


def input_shape(recipe: Recipe, dataset: Dataset) -> tuple[int, int, int]:
    """Return the network's (height, width, channels): the recipe's, or the data's if the recipe leaves them open."""
    network = recipe.network
    height, width, channels = dataset.shape
    return network.height or height, network.width or width, network.channels or channels


def input_line(recipe: Settled, dataset: Dataset) -> str:
    height, width, channels = input_shape(recipe, dataset)
    return f"input: {width}x{height} pixels (width x height), {plural(channels, 'channel')}"


def load_splits(recipe: Settled, dataset: Dataset, progress: Progress | None = None) -> dict[str, Split]:
    """Decode the training and validation images at the network's size. Raises DatasetError like `Dataset.load`."""
    height, width, channels = input_shape(recipe, dataset)
    splits = ("train", "validation")
    return dataset.load(splits, height=height, width=width, channels=channels, stage="train", progress=progress)


def train(
    recipe: Settled,
    dataset: Dataset,
    run: Run | None,
    report: Report,
    data_progress: Progress | None = None,
    int8: Int8 | None = None,
    workers: Workers | None = None,
    head: Callable[[], np.ndarray] | None = None,
) -> RunInfo:
    """Train a run to its end, from its checkpoint if it has one. The weights equal those of an uninterrupted run.

    Writes `run.json` and the list of images, a checkpoint and the history after each epoch, `float.h5`, and finally `qat.h5`: the best
    epoch by the rule of `edgecnn.train.best`. If fine-tuning has lost to the head (`RunInfo.head_ships`), it ends without either of these
    models: `stages.last_layer` makes them. `run` is None for every worker but the first: they write nothing and return after the float
    phase. Without `int8` the fake-quantized model itself is scored. `head` returns the validation images' logits by the last layer that
    fine-tuning has to beat, by default the one it starts from. `workers` share the float phase; call `announce` before TensorFlow is
    imported.

    Raises RecipeError if several machines would start from a trained network, RunError if the teacher has changed since the run began
    or the trained network is missing, and NetworkError, TrainingError, DatasetError, OutputError and ClusterError like its parts.
    """
    training = Training(recipe, dataset, run, report, data_progress, workers)
    info = training.info
    if workers:
        distribute.check_same(training.strategy, workers, recipe, info)
    if run:
        begin(run, info)
        write_known(run, dataset)
    training.train_float(head)
    if run is None:
        return info
    if tuning := training.tuning:
        info = dataclasses.replace(info, tuning=tuning, flip=training.batches.flip, seconds=training.seconds)
        run.write_info(info)
    if info.head_ships:
        return info
    chosen = training.train_int8(run, int8)
    write_history(run, training.history)
    shipped = chosen.validation.qat if chosen.method == "qat" else chosen.validation.ptq
    info = dataclasses.replace(
        info,
        state="trained",
        flip=training.batches.flip,
        seconds=training.seconds,
        validation_accuracy=(shipped or chosen.validation.float).accuracy,
        int8=chosen,
    )
    run.write_info(info)
    return info


class Training:
    """A training in progress: the state that its phases share. Arguments and errors as in `train`."""

    def __init__(
        self,
        recipe: Settled,
        dataset: Dataset,
        run: Run | None,
        report: Report,
        data_progress: Progress | None,
        workers: Workers | None,
    ) -> None:
        tf.config.experimental.enable_op_determinism()
        self.strategy = distribute.open_strategy(workers)
        distribute.check_batch(recipe.train.batch_size, self.strategy)
        if workers and starts_trained(recipe):
            raise RecipeError(
                "several machines cannot train a network that starts from trained weights: such a start is meant for few images. "
                "Leave out --workers or --init."
            )
        self.run, self.report, self.workers, self.data_progress = run, report, workers, data_progress
        self.shape = input_shape(recipe, dataset)
        self.num_classes = len(dataset.labels)
        self.splits = load_splits(recipe, dataset, data_progress)
        used = {name: len(split.classes) for name, split in self.splits.items()}
        photos = TrainingPhotos(self.splits, recipe.seed)
        self.validation = (photos.images, photos.classes)
        self.start = open_start(recipe, run)
        own = own_file(recipe, run)
        self.recipe = local_recipe(recipe, run)
        train = self.splits["train"]
        images, rows_columns = train.images, source_size(self.recipe, self.shape)
        if rows_columns != self.shape[:2]:
            size = (*rows_columns, self.shape[2])
            images = dataset.at_size("train", train.sources, size, stage="train", progress=data_progress)
        self.batches = training_batches(self.recipe, images, train.classes, self.shape[:2])
        guide = open_teacher(self.recipe, self.shape, tuple(dataset.labels))
        if guide and self.batches.views and not self.strategy:
            steps, count = self.batches.views * self.batches.count, min(self.batches.batch_size, len(images))
            guide = remembered(guide, steps, count, self.num_classes)
        self.history: History = ()
        self.checkpoint: Checkpoint | None = None
        logits = guide.logits if guide else None
        rule = recipe.train.class_weights if dataset.own else "none"
        self.weights = class_weights(train.classes, rule)
        of_class = weight_of_class(train.classes, self.num_classes, rule)
        balanced = not np.all(self.weights == 1)
        self.of_validation = equal_weights(self.validation[1]) if balanced else np.ones(len(self.validation[1]))
        compared = self.recipe.train.head_may_ship and used["validation"]
        self.rival = (
            Rival(
                self.validation[1],
                self.of_validation,
                self.num_classes,
                self.recipe.train.epochs,
                self.batches.count,
            )
            if compared
            else None
        )
        self.model, self.phase = float_phase(
            self.recipe, self.shape, self.num_classes, self.validation, logits, self.strategy, of_class, self.rival
        )
        height, width, channels = self.shape
        self.info = RunInfo(
            state="training",
            data=dataset.info(used),
            input=InputSize(height=height, width=width, channels=channels),
            parameters=self.model.count_params(),
            versions=library_versions(),
            network=own,
            init=self.start.recorded if self.start else None,
            teacher=guide.described if guide else None,
            folds=fold_infos(run) if run and recipe.train.folds else (),
            tuning=run.stored(TUNING, Tuning) if run and recipe.train.folds else None,
        )

    @property
    def tuning(self) -> Tuning | None:
        """The verdict between fine-tuned model and head, after the float phase or by folds; None if there is no rival."""
        if self.rival and self.float_is_done:  # the checkpoint of the next phase does not hold their answers
            assert self.run
            return self.run.info.tuning
        return self.rival.verdict() if self.rival else self.info.tuning

    @property
    def seconds(self) -> float:
        return round(sum(row["seconds"] for row in self.history), 1)

    def train_float(self, head: Callable[[], np.ndarray] | None = None) -> None:
        """Train the float phase to its end, from the run's checkpoint, from trained weights and a fitted head, or from random weights."""
        self.checkpoint = load_checkpoint(self.run) if self.run else None
        self.history = self.checkpoint.history if self.checkpoint else ()
        self.float_is_done = self.checkpoint is not None and self.checkpoint.phase == "qat"
        if self.workers:
            state = distribute.from_first(self.strategy, self.workers, self.phase, self.checkpoint)
            self.checkpoint, self.float_is_done = state
        if self.float_is_done:
            return
        with distribute.cluster_errors(self.workers):
            if self.start and self.checkpoint is None:
                self.start.give(self.model)
                training = self.splits["train"].images, self.batches.classes, self.weights
                fit_head(self.model, self.recipe, *training, self.data_progress)
                self.phase.take_start()
                if self.rival:
                    self.rival.begin(head() if head else self.float_answers())
            if self.recipe.train.tuning != NEVER:
                self.run_phase(self.phase, self.batches)

    def train_int8(self, run: Run, int8: Int8 | None) -> Int8Method:
        """Write the float model, train the quantization-aware phase to its end, and choose how to make the int8 models."""
        recipe, (images, classes) = self.recipe, self.validation
        if self.float_is_done:
            teacher = model_from_bytes(run.read(FLOAT_MODEL, "train"))
        else:
            teacher = to_float32(self.model, recipe, self.shape, self.num_classes)
            write_atomic(run.file(FLOAT_MODEL), model_bytes(teacher))
        reference = predictor(teacher, recipe.input_scale, recipe.input_zero_point)(images)
        logits = int8.post_training(teacher, self.splits["train"], images) if int8 else None
        ptq = None if logits is None else score(logits, reference, classes, weights=self.of_validation)
        qat = None
        if recipe.qat.method != "ptq" and not is_enough(recipe, ptq):
            batches = qat_batches(recipe, self.batches, self.splits["train"].images)
            qat = Qat(recipe, teacher, self.validation, reference, batches, int8, self.of_validation)
            if not self.float_is_done:
                qat.begin()
            self.run_phase(qat.phase, batches)
            write_atomic(run.file(QAT_MODEL), model_bytes(qat.finish()))
        return choice(cast(Asked, recipe.qat.method or "auto"), qat, ptq, score(reference, reference, classes))

    def float_answers(self) -> np.ndarray:
        """Return the float model's logits on the validation images, float32 (n, num_classes)."""
        return predictor(self.model, self.recipe.input_scale, self.recipe.input_zero_point)(self.validation[0])

    def run_phase(self, phase: Phase, batches: Batches) -> None:
        self.history = run_phase(phase, batches, self.run, self.history, self.checkpoint, self.report)


def source_size(recipe: Settled, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the (rows, columns) of the float phase's images for an input. Photos are LARGER, because crops are taken from them."""
    height, width, _ = shape
    return (round(LARGER * height), round(LARGER * width)) if recipe.train.augment == "photo" else (height, width)


def training_batches(recipe: Settled, images: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> Batches:
    """Return the float phase's batches of uint8 images (n, rows, columns, channels) of `source_size` and their classes (n,)."""
    views = (recipe.teacher.views if recipe.teacher else None) or 0
    return Batches(
        images=images,
        classes=classes,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        flip=recipe.train.flip != "no",
        shift=recipe.train.shift,
        alternating=recipe.train.flip == "alternating",
        cutout=recipe.train.cutout or 0,
        photo=size if recipe.train.augment == "photo" else None,
        robust=recipe.train.robust,
        views=views if views < recipe.train.epochs else 0,
    )


def qat_batches(recipe: Settled, batches: Batches, images: np.ndarray) -> Batches:
    """Return the quantization-aware phase's batches: at input size, without cutout, repeats or photo augmentation."""
    return dataclasses.replace(batches, images=images, batch_size=recipe.qat.batch_size, cutout=0, views=0, photo=None)


def begin(run: Run, info: RunInfo) -> None:
    """Write what is known when a run's training begins or continues. Raises RunError if it began with another teacher."""
    before = run.info.teacher if run.file(INFO).exists() else info.teacher
    if before != info.teacher:
        one, other = (f"{item.name}, SHA-256 {item.sha256[:12]}" if item else "none" for item in (before, info.teacher))
        raise RunError(
            f"the teacher of {run.path} has changed since the run began (then {one}; now {other}). "
            "Restore the first one, or train a new run."
        )
    if run.file(INFO).exists():
        info = dataclasses.replace(info, tuning=run.info.tuning)
    run.write_info(info)
    run.make_latest()


def choice(asked: Asked, qat: Qat | None, ptq: Score | None, reference: Score) -> Int8Method:
    """Choose how to make the int8 models, and return the run's record of the choice."""
    best, calibrated, nearest = (qat.best.score, qat.calibrated, qat.nearest) if qat else (None, None, None)
    method, decided_by = better_method(asked, best, ptq)
    return Int8Method(
        asked=asked,
        method=method,
        decided_by=decided_by,
        epoch=qat.best.epoch if qat else None,
        rounding=qat.rounding if qat else None,
        learning_rate=qat.learning_rate if qat else None,
        validation=Validation(
            n=reference.n,
            float=reference.figures(),
            calibrated=calibrated.figures() if calibrated else None,
            qat=best.figures() if best else None,
            qat_nearest=nearest.figures() if nearest else None,
            ptq=ptq.figures() if ptq else None,
        ),
    )


class TrainingPhotos:
    """A run's training photos, and those to choose by: validation photos, or without them training photos."""

    def __init__(self, splits: Mapping[str, Split], seed: int) -> None:
        self.train = splits["train"]
        validation = splits["validation"] if len(splits["validation"].classes) else some(self.train, SEEN, seed)
        self.images, self.classes = validation.images, validation.classes


def distil(run: Run, recipe: Settled, photos: TrainingPhotos, int8: Int8, report: Report) -> Int8Method:
    """Train the quantization-aware phase of a run's float model to its end, and choose how its int8 models are made.

    `recipe` is settled. Only the choice looks at labels: the loss compares the two networks' answers.
    """
    teacher = model_from_bytes(run.read(FLOAT_MODEL, "import"))
    reference, logits = choosing_answers(teacher, recipe, photos, int8)
    ptq = None if logits is None else score(logits, reference, photos.classes)
    images = photos.train.images
    batches = qat_batches(recipe, training_batches(recipe, images, photos.train.classes, images.shape[1:3]), images)
    qat = Qat(recipe, teacher, (photos.images, photos.classes), reference, batches, int8)
    qat.begin()
    run_phase(qat.phase, batches, run, (), None, report)
    write_atomic(run.file(QAT_MODEL), model_bytes(qat.finish()))
    return choice("auto", qat, ptq, score(reference, reference, photos.classes))


def round_weights(run: Run, recipe: Settled, photos: TrainingPhotos, int8: Int8) -> Int8Method:
    """Round the kernels of a run's float model for its int8 file, which is quantized after training, if that validates better."""
    model = model_from_bytes(run.read(FLOAT_MODEL, "import"))
    reference, logits = choosing_answers(model, recipe, photos, int8)
    assert logits is not None  # the recipe has no other method, so a failure is an error
    nearest = best = score(logits, reference, photos.classes)
    rounded = folded(model)
    numbers = recipe.input_scale, recipe.input_zero_point
    round_kernels(rounded, photos.train.images, *numbers, recipe.seed, plain_kernels(rounded))
    _, after = choosing_answers(rounded, recipe, photos, int8)
    assert after is not None
    found = score(after, reference, photos.classes)
    if found.better_than(nearest):
        best = found
        write_atomic(run.file(ROUNDED_MODEL), model_bytes(rounded))
    return Int8Method(
        asked="ptq",
        method="ptq",
        decided_by=None,
        epoch=None,
        rounding="nearest" if best is nearest else "gptq",
        validation=Validation(
            n=nearest.n,
            float=score(reference, reference, photos.classes).figures(),
            qat=None,
            ptq=best.figures(),
            ptq_nearest=nearest.figures(),
        ),
    )


def choosing_answers(
    model: "keras.Model", recipe: Settled, photos: TrainingPhotos, int8: Int8
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the logits of a float model, and of its int8 file by post-training quantization, on the photos to choose by."""
    predict = predictor(model, recipe.input_scale, recipe.input_zero_point)
    return predict(photos.images), int8.post_training(model, photos.train, photos.images)


WARM_UP = 2  # untimed steps: the first ones trace the graph


@dataclass(frozen=True)
class PhaseCost:
    """A phase's cost without validation. "float, remembered" is the part that reuses a teacher's remembered answers."""

    phase: str
    epochs: int
    steps: int
    step_s: float
    images_per_s: float
    epoch_s: float
    total_s: float


@dataclass(frozen=True)
class DryRun:
    cost: NetworkCost
    checkpoint_bytes: int
    phases: tuple[PhaseCost, ...]

    @property
    def total_s(self) -> float:
        return sum(phase.total_s for phase in self.phases)


def dry_run(
    recipe: Settled, shape: tuple[int, int, int], labels: tuple[str, ...], train_images: int, steps: int = 8
) -> DryRun:
    """Build a settled recipe's network, time a few steps of each phase, and estimate the cost of the whole training. A last layer that is
    not fine-tuned has no phase."""
    tf.config.experimental.enable_op_determinism()
    random = np.random.default_rng(recipe.seed)
    count = min(max(recipe.train.batch_size, recipe.qat.batch_size), train_images)
    images, classes = random.integers(0, 256, (count, *shape), np.uint8), random.integers(0, len(labels), count)
    sources = random.integers(0, 256, (count, *source_size(recipe, shape), shape[2]), np.uint8)
    validation = (images[:1], classes[:1])
    batches = training_batches(recipe, sources, classes, shape[:2])
    batches = dataclasses.replace(batches, batch_size=min(batches.batch_size, count))
    guide = open_teacher(recipe, shape, labels)
    phases = []
    model, phase = float_phase(recipe, shape, len(labels), validation, guide.logits if guide else None)
    cost, checkpoint_bytes = describe(model), sum(variable.numpy().nbytes for variable in phase.variables)
    if recipe.train.tuning == NEVER:
        return DryRun(cost, checkpoint_bytes, ())
    if batches.views:
        asked = dataclasses.replace(phase, epochs=batches.views)
        phases.append(time_phase(asked, batches, train_images, steps))
        _, phase = float_phase(recipe, shape, len(labels), validation)
        phase = dataclasses.replace(phase, name="float, remembered", epochs=phase.epochs - asked.epochs)
    phases.append(time_phase(phase, batches, train_images, steps))
    if recipe.qat.method != "ptq":
        teacher = to_float32(model, recipe, shape, len(labels))
        batches = qat_batches(recipe, batches, images)
        batches = dataclasses.replace(batches, batch_size=min(batches.batch_size, count))
        reference = predictor(teacher, recipe.input_scale, recipe.input_zero_point)(validation[0])
        phase = Qat(recipe, teacher, validation, reference, batches).phase
        phases.append(time_phase(phase, batches, train_images, steps))
    return DryRun(cost, checkpoint_bytes, tuple(phases))


def time_phase(phase: Phase, batches: Batches, train_images: int, steps: int) -> PhaseCost:
    """Time the steps of a freshly built phase at a learning rate of zero. The time includes making the batches."""
    times = []
    stream = batches.endless(phase.name)
    for index in range(WARM_UP + steps):
        started = time.perf_counter()
        images, classes = next(stream)
        loss, _ = phase.step(images, classes, 0.0)
        float(loss)  # waits for the step
        if index >= WARM_UP:
            times.append(time.perf_counter() - started)
    step_s, count = statistics.median(times), max(1, train_images // batches.batch_size)
    epoch_s = count * step_s
    speed = batches.batch_size / step_s
    return PhaseCost(phase.name, phase.epochs, count, step_s, speed, epoch_s, phase.epochs * epoch_s)
