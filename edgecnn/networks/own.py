"""A user's own network: a function of a Python file, named as FILE.py:FUNCTION. The file is executed.

The function has the signature of edgecnn's own networks, and returns a functional model of tf_keras that ends in logits:

    from tf_keras import Input, Model, layers

    def build(height, width, channels, num_classes):
        inputs = Input((height, width, channels))
        x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
        x = layers.GlobalAveragePooling2D()(x)
        return Model(inputs, layers.Dense(num_classes)(x))

A run keeps a copy of this one file: it may import installed packages, but no file next to it. Dropout and other layers that
draw random numbers make a resumed run end with other weights than an uninterrupted one.
"""

import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecnn.errors import NetworkError, nearest

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


class OwnNetwork(NamedTuple):
    """The file and its function, as in FILE.py:FUNCTION."""

    file: Path
    function: str

    @property
    def label(self) -> str:
        """Its name in messages, without the folder."""
        return f"{self.file.name}:{self.function}"

    @property
    def short(self) -> str:
        """Its name in a run folder's."""
        return f"{self.file.stem}-{self.function}"


def own_network(name: str | None) -> OwnNetwork | None:
    """Read a network's name as FILE.py:FUNCTION; None if it is not of that form, or there is no name yet.

    Raises:
        NetworkError: for a file without a function, or a function without a file.
    """
    file, colon, function = (name or "").rpartition(":")
    if name and name.endswith(".py"):
        raise NetworkError(
            f"{name} names a file without a function. Write {name}:build if the function is called build."
        )
    if not colon:
        return None
    if not file.endswith(".py") or not function.isidentifier():
        raise NetworkError(f"a network of your own is written FILE.py:FUNCTION; received {name!r}.")
    return OwnNetwork(Path(file), function)


def read_source(own: OwnNetwork) -> bytes:
    """Return the file's bytes.

    Raises:
        NetworkError: if it cannot be read.
    """
    try:
        return own.file.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read the network {own.file}: {error.strerror or error}.") from None


def load_function(own: OwnNetwork) -> Callable[..., Any]:
    """Execute the file and return its function.

    Raises:
        NetworkError: if the file cannot be read or executed, or has no such function.
    """
    import edgecnn.networks.keras  # noqa: F401  so that the file's own imports find Keras 2

    source = read_source(own)
    module = types.ModuleType("edgecnn_own_network")
    module.__file__ = str(own.file)
    try:
        exec(compile(source, str(own.file), "exec"), module.__dict__)
    except Exception as error:
        raise _raised(error, own, "executing it") from error
    function = getattr(module, own.function, None)
    if not callable(function):
        defined = [key for key, value in vars(module).items() if isinstance(value, types.FunctionType)]
        hint = nearest(own.function, defined) if defined else "It defines no functions."
        raise NetworkError(f"{own.file} has no function {own.function!r}. {hint}")
    return function


def build_own(
    own: OwnNetwork, height: int, width: int, channels: int, num_classes: int, options: Mapping[str, str]
) -> "keras.Model":
    """Call a user's function and check what it returns.

    Args:
        own: the file and its function.
        height, width, channels: the input's shape.
        num_classes: length of the logits.
        options: passed on by keyword.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to logits (batch, num_classes).

    Raises:
        NetworkError: if the function raises, does not return a functional tf_keras model of that input and output, or returns one
            that ends in softmax.
    """
    from edgecnn.networks.keras import keras

    function = load_function(own)
    keras.backend.reset_uids()
    try:
        model = function(height, width, channels, num_classes, **options)
    except Exception as error:
        raise _raised(error, own, f"called with ({height}, {width}, {channels}, {num_classes})") from error
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    _check_kind(model, own)
    _check_ends(model, own, (height, width, channels), num_classes)
    return model


def _raised(error: Exception, own: OwnNetwork, when: str) -> NetworkError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(own.file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f", line {line}" if line else ""
    text = (str(error).strip().splitlines() or [""])[0]
    return NetworkError(f"{own.label}{where}: {type(error).__name__} when {when}: {text}")


def _check_kind(model: Any, own: OwnNetwork) -> None:
    from edgecnn.networks.keras import keras

    if type(model).__module__.partition(".")[0] == "keras" or any(
        base.__module__.startswith("keras.") for base in type(model).__mro__
    ):
        raise NetworkError(
            f"{own.label} returned a Keras 3 model, which does not support quantization-aware training.\n"
            "Import Keras from tf_keras instead: from tf_keras import Input, Model, layers"
        )
    if not isinstance(model, keras.Model):
        raise NetworkError(f"{own.label} returned {type(model).__name__}, expected a functional tf_keras model.")
    if not getattr(model, "_is_graph_network", False):
        raise NetworkError(
            f"{own.label} returned the subclassed model {type(model).__name__}, expected a functional one: "
            "tf_keras.Model(inputs, outputs)."
        )


def _check_ends(model: "keras.Model", own: OwnNetwork, shape: tuple[int, int, int], num_classes: int) -> None:
    from edgecnn.networks.keras import keras

    if len(model.inputs) != 1 or tuple(model.inputs[0].shape) != (None, *shape):
        received = ", ".join(str(tuple(entry.shape)) for entry in model.inputs)
        raise NetworkError(f"{own.label}: the input is {received}, expected {(None, *shape)}.")
    if len(model.outputs) != 1 or tuple(model.outputs[0].shape) != (None, num_classes):
        received = ", ".join(str(tuple(output.shape)) for output in model.outputs)
        raise NetworkError(
            f"{own.label}: the output is {received}, expected {(None, num_classes)}: one logit for each class."
        )
    for layer in model.layers:
        if isinstance(layer, keras.layers.Lambda):
            raise NetworkError(
                f"{own.label} has the Lambda layer {layer.name}, which a file of the model can hold only as code. "
                "Call TensorFlow's functions directly, as in x = tf.math.cos(x)."
            )
    last = model.outputs[0].node.layer  # of Keras 2's symbolic tensors
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if activation == "softmax" or type(last).__name__ == "Softmax":
        raise NetworkError(
            f"{own.label} ends in softmax (layer {last.name}), expected logits: the loss and the runtime apply softmax themselves. "
            "Leave it out."
        )
