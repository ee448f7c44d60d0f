"""The float phase on several machines or GPUs. Each replica trains on its slice of every batch, and the gradients are summed.

Every worker makes the same batches from the same seeds, so data order and batches match those of a single process. Worker 0 keeps the
run and continues alone after the float phase. The other workers write nothing and take their state from worker 0.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecnn.errors import ClusterError, RecipeError
from edgecnn.files import canonical_json, sha256
from edgecnn.networks.keras import keras, tf
from edgecnn.recipe import Recipe
from edgecnn.run_info import RunInfo
from edgecnn.runs import without_folders
from edgecnn.tables import to_json
from edgecnn.train import Workers
from edgecnn.train.loop import Checkpoint, Phase


@functools.cache
def open_strategy(workers: Workers | None) -> Any:
    """Return the distribution strategy: over the workers, else over this machine's GPUs if it has several, else None.

    Call it before a network is built. It waits for all workers and raises ClusterError if they do not connect.
    """
    if workers:
        with cluster_errors(workers):
            return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(tf.config.list_logical_devices("GPU")) > 1 else None


@contextlib.contextmanager
def cluster_errors(workers: Workers | None) -> Iterator[None]:
    """Turn TensorFlow's error for a lost worker into a ClusterError. Without workers, let it pass."""
    try:
        yield
    except tf.errors.OpError as error:
        if workers is None:
            raise
        lines = error.message.splitlines()
        reason = next((line for line in lines if "Collective ops is aborted by" in line), lines[0])
        raise ClusterError(
            f"a worker was lost: {reason[:300]}\nThe last finished epoch is kept. Start all workers again, worker 0 with --resume."
        ) from None


def check_batch(batch_size: int, strategy: Any) -> None:
    if strategy and batch_size % strategy.num_replicas_in_sync:
        raise RecipeError(
            f"train.batch_size must be a multiple of the {strategy.num_replicas_in_sync} replicas that share a batch; received {batch_size}"
        )


def synchronize_batch_norm(model: "keras.Model") -> None:
    """Make BatchNorm layers compute statistics over the whole batch instead of one replica's slice."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized, layer.fused = True, False  # a fused kernel sees only its own slice


class Copies:
    """A variable's copies on this process's devices, read and written without contacting other workers."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def numpy(self) -> Any:
        return self.parts[0].numpy()

    def assign(self, value: Any) -> None:
        for part in self.parts:
            part.assign(value)


def copies(strategy: Any, variables: Sequence[Any]) -> list[Any]:
    return [Copies(strategy.experimental_local_results(variable)) if strategy else variable for variable in variables]


def local(strategy: Any, variable: Any) -> Any:
    """Return this process's first copy of a variable, which a graph may read."""
    return strategy.experimental_local_results(variable)[0] if strategy else variable


def stepper(
    strategy: Any, update: Callable[[Any, Any], tuple[Any, Any]], before: Callable[[Any], Any]
) -> Callable[[np.ndarray, np.ndarray, float], tuple[Any, Any]]:
    """Return a step that calls `before` with the rate, then `update` on each replica's slice, and sums loss and right answers."""

    @tf.function(reduce_retracing=True)
    def train_step(images, classes, learning_rate):
        before(learning_rate)
        if strategy is None:
            return update(images, classes)
        shares = strategy.run(update, (images, classes))
        return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, share, axis=None) for share in shares)

    def placed(values: np.ndarray) -> Any:
        if strategy is None:
            return tf.constant(values)
        size = len(values) // strategy.num_replicas_in_sync

        def of(context: Any) -> Any:
            first = context.replica_id_in_sync_group * size
            return tf.constant(values[first : first + size])

        return strategy.experimental_distribute_values_from_function(of)

    def step(images: np.ndarray, classes: np.ndarray, learning_rate: float):
        return train_step(placed(images), placed(classes), tf.constant(learning_rate, tf.float32))

    return step


def add_up(strategy: Any, workers: Workers, array: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all workers. Shape and dtype must match on all of them. Raises ClusterError if a worker is lost."""
    devices = strategy.num_replicas_in_sync // len(workers.addresses)

    @tf.function
    def summed(value):
        def replica(value):
            context = tf.distribute.get_replica_context()
            first = tf.cast(context.replica_id_in_sync_group % devices == 0, value.dtype)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, value * first)

        return strategy.experimental_local_results(strategy.run(replica, (value,)))[0]

    with cluster_errors(workers):
        return summed(tf.constant(array)).numpy()


def from_first(
    strategy: Any, workers: Workers, phase: Phase, checkpoint: Checkpoint | None
) -> tuple[Checkpoint | None, bool]:
    """Return worker 0's checkpoint, from which all continue, and whether the phase is done. Raises ClusterError if a worker is lost."""
    likes = [np.asarray(variable.numpy()) for variable in phase.variables]
    state = np.zeros(2 + sum(like.size for like in likes))  # float64 holds float32 and counts exactly
    if checkpoint and checkpoint.phase == phase.name:
        state[1] = checkpoint.epoch
        state[2:] = np.concatenate([array.ravel() for array in checkpoint.arrays])
    elif checkpoint:
        state[0] = 1
    state = add_up(strategy, workers, state)
    done, epoch = bool(state[0]), int(state[1])
    if workers.first or not epoch:
        return checkpoint, done
    parts = np.split(state[2:], np.cumsum([like.size for like in likes])[:-1])
    arrays = tuple(part.astype(like.dtype).reshape(like.shape) for part, like in zip(parts, likes, strict=True))
    return Checkpoint(phase=phase.name, epoch=epoch, arrays=arrays, history=()), done


def check_same(strategy: Any, workers: Workers, recipe: Recipe, info: RunInfo) -> None:
    """Check that all workers have the same recipe and images, whatever their paths. On a mismatch, each raises ClusterError."""
    bare = without_folders(recipe)
    bare = replace(bare, data=replace(bare.data, source=""), teacher=bare.teacher and replace(bare.teacher, run=""))
    table = np.zeros((len(workers.addresses), 32), np.int32)
    given = (bare, info.data.fingerprint, info.versions, info.network, info.init, info.teacher)
    table[workers.index] = list(bytes.fromhex(sha256(canonical_json(to_json(given)).encode())))
    table = add_up(strategy, workers, table)
    other = [workers.addresses[index] for index in np.flatnonzero((table != table[0]).any(axis=1))]
    if other:
        raise ClusterError(
            f"{', '.join(other)}: the recipe, images or versions differ from those of {workers.addresses[0]} (worker 0). "
            "Give all workers the same command, except for --worker, --out and the data's path."
        )
