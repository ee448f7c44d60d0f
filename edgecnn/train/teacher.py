"""A trained network that teaches another one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecnn.errors import RunError
from edgecnn.files import sha256
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import model_from_bytes, real_input
from edgecnn.recipe import Recipe
from edgecnn.run_info import TaughtBy
from edgecnn.runs import open_run
from edgecnn.tables import Struct
from edgecnn.train.float_phase import build_at
from edgecnn.train.origin import local_recipe


class Teacher(Struct):
    """`logits` maps a step's uint8 images, and the number of steps before it, to float32 logits (n, num_classes) in a graph. `described`
    goes into `run.json`."""

    logits: Callable[[Any, Any], Any]
    described: TaughtBy


def open_teacher(recipe: Recipe, shape: tuple[int, int, int], labels: tuple[str, ...]) -> Teacher | None:
    """Load the float model of the run named by `teacher.run`; None without a teacher. Raises RunError if it is missing or does not fit."""
    if not recipe.teacher:
        return None
    run = open_run(Path(recipe.teacher.run))
    data = run.read(run.float_model, "train")
    info = run.info
    found = (info.input.height, info.input.width, info.input.channels)
    classes = info.data.labels
    if found != shape or classes != labels:
        raise RunError(
            f"teacher.run: {run.path} has the input {found} and {len(classes)} classes, {', '.join(classes[:5])} …; "
            f"expected {shape} and {len(labels)} classes, {', '.join(labels[:5])} …, in this order."
        )
    scale, zero_point = run.recipe.input_scale, run.recipe.input_zero_point
    model = model_from_bytes(data)
    if recipe.train.precision != "float32" and not run.imported:
        weights, network = model.get_weights(), local_recipe(run.recipe, run).network
        model = build_at(recipe.train.precision, network, shape, len(labels))
        model.set_weights(weights)

    def logits(images: Any, step: Any) -> Any:
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
