"""The cost of a training, estimated from a few timed steps on random images. Nothing is trained and nothing is written."""

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

WARM_UP = 2
"""Steps that do not count: the first ones trace the graph."""

STEPS = 8
"""Steps that are timed."""


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """A phase's epochs and steps an epoch, and what was timed: median seconds a step, images/s, seconds an epoch and the phase.

    Where a teacher's answers are remembered, "float, remembered" is the part of the float phase that uses these.
    Validation is not included, nor the decoding of the images at the start of a run.
    """

    phase: str
    epochs: int
    steps: int
    step_s: float
    images_per_s: float
    epoch_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a training would cost. `checkpoint_bytes` is the size of the float phase's checkpoint."""

    cost: NetworkCost
    checkpoint_bytes: int
    phases: tuple[PhaseCost, ...]

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(phase.total_s for phase in self.phases)


def dry_run(
    recipe: Recipe,
    shape: tuple[int, int, int],
    labels: tuple[str, ...],
    train_images: int,
    steps: int = STEPS,
) -> DryRun:
    """Build a recipe's network, time a few steps of each of its phases, and tell what the whole would take.

    Args:
        recipe: the settled recipe.
        shape: (height, width, channels) of the input.
        labels: the classes.
        train_images: images of the training split.
        steps: steps to time in each phase.

    Raises:
        NetworkError, RunError: as the phases' parts do.
    """
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
        phases.append(
            time_phase(Qat(recipe, teacher, validation, reference, batches).phase, batches, train_images, steps)
        )
    return DryRun(cost=cost, checkpoint_bytes=checkpoint_bytes, phases=tuple(phases))


def time_phase(phase: Phase, batches: Batches, train_images: int, steps: int) -> PhaseCost:
    """Time steps of a phase, the making of their batches included.

    Args:
        phase: freshly built; its steps train at a rate of zero.
        batches: made-up images, one batch or more.
        train_images: images of the real training split.
        steps: how many to time.
    """
    times = []
    stream = batches.endless(phase.name)
    for index in range(WARM_UP + steps):
        started = time.perf_counter()
        images, classes = next(stream)
        loss, _ = phase.step(images, classes, 0.0)
        float(loss)  # waits for the step
        if index >= WARM_UP:
            times.append(time.perf_counter() - started)
    step_s = statistics.median(times)
    count = max(1, train_images // batches.batch_size)
    return PhaseCost(
        phase=phase.name,
        epochs=phase.epochs,
        steps=count,
        step_s=step_s,
        images_per_s=batches.batch_size / step_s,
        epoch_s=count * step_s,
        total_s=phase.epochs * count * step_s,
    )
