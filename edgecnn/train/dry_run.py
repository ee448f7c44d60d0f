"""The cost of training, estimated from a few timed steps on random images. Nothing is trained or written."""

import dataclasses
import statistics
import time
from dataclasses import dataclass

import numpy as np

from edgecnn.networks.describe import NetworkCost, describe
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import predictor
from edgecnn.recipe import Recipe
from edgecnn.train.float_phase import float_phase, to_float32
from edgecnn.train.loop import Batches, Phase
from edgecnn.train.qat_phase import Qat
from edgecnn.train.teacher import open_teacher
from edgecnn.train.train import qat_batches, source_size, training_batches

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
    recipe: Recipe, shape: tuple[int, int, int], labels: tuple[str, ...], train_images: int, steps: int = 8
) -> DryRun:
    """Build a settled recipe's network, time a few steps of each phase, and estimate the cost of the whole training."""
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
