"""A float model as a frozen TensorFlow graph, the form in which a run stores a model that edgecnn did not train."""

from collections.abc import Sequence
from typing import Any, Protocol

from edgecnn.networks.keras import tf

INPUT = "pixels"
OUTPUT = "edgecnn_logits"


class FloatModel(Protocol):
    """The interface that exports need: a Keras model or a `FrozenModel`."""

    input_shape: tuple[int | None, ...]
    variables: Sequence[Any]

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Map float32 pixels (batch, height, width, channels) to logits (batch, num_classes)."""


class FrozenModel(tf.Module):
    """A tf.compat.v1.GraphDef without variables, from node INPUT to node OUTPUT. Shapes start with None."""

    def __init__(self, graph_def: Any) -> None:
        super().__init__()
        self.graph_def = graph_def
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
        ends = (imported.graph.get_tensor_by_name(f"{name}:0") for name in (INPUT, OUTPUT))
        self._function = imported.prune(*ends)
        self.input_shape = tuple(self._function.inputs[0].shape)
        self.output_shape = tuple(self._function.outputs[0].shape)

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Map float32 pixels to logits. `training` exists for Keras's sake and has no effect."""
        return self._function(pixels)

    def count_params(self) -> int:
        constants = (node.attr["value"].tensor for node in self.graph_def.node if node.op == "Const")
        floats = [item for item in constants if item.dtype == tf.float32.as_datatype_enum and item.tensor_shape.dim]
        return sum(tf.TensorShape(item.tensor_shape).num_elements() for item in floats)

    def to_bytes(self) -> bytes:
        return self.graph_def.SerializeToString(deterministic=True)

    @staticmethod
    def from_bytes(data: bytes) -> "FrozenModel":
        return FrozenModel(tf.compat.v1.GraphDef.FromString(data))
