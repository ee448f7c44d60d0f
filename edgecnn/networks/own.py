"""A user's own network: a function in a Python file, named as FILE.py:FUNCTION. The file is executed.

The function has the signature of the built-in networks and returns a functional tf_keras model that ends in logits:

    from tf_keras import Input, Model, layers

    def build(height, width, channels, num_classes):
        inputs = Input((height, width, channels))
        x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
        x = layers.GlobalAveragePooling2D()(x)
        return Model(inputs, layers.Dense(num_classes)(x))

A run keeps a copy of this one file, which may import installed packages but no file next to it. With Dropout and other layers that
draw random numbers, a resumed run ends with different weights than an uninterrupted one.
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
    """The file and function of FILE.py:FUNCTION. `label` is the name in messages, `short` the name in a run folder's name."""

    file: Path
    function: str

    @property
    def label(self) -> str:
        return f"{self.file.name}:{self.function}"

    @property
    def short(self) -> str:
        return f"{self.file.stem}-{self.function}"


def own_network(name: str | None) -> OwnNetwork | None:
    """Parse a network's name as FILE.py:FUNCTION; None for any other name. Raises NetworkError if the file or function is missing."""
    file, colon, function = (name or "").rpartition(":")
    if name and name.endswith(".py"):
        raise NetworkError(
            f"{name} names a file without a function. Write {name}:build if the function is called build."
        )
    if not colon or function.endswith(".onnx"):
        return None
    if not file.endswith(".py") or not function.isidentifier():
        raise NetworkError(f"write a network of your own as FILE.py:FUNCTION; received {name!r}.")
    return OwnNetwork(Path(file), function)


def read_source(own: OwnNetwork) -> bytes:
    """Return the file's bytes. Raises NetworkError if it cannot be read."""
    try:
        return own.file.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read the network {own.file}: {error.strerror or error}.") from None


def load_function(own: OwnNetwork) -> Callable[..., Any]:
    """Execute the file and return its function. Raises NetworkError if that fails or the function does not exist."""
    import edgecnn.networks.keras  # noqa: F401  so the file's own imports find Keras 2

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
    """Call a user's function with its options as keyword arguments, and check the model it returns."""
    from edgecnn.networks.keras import keras

    function = load_function(own)
    keras.backend.reset_uids()
    try:
        model = function(height, width, channels, num_classes, **options)
    except Exception as error:
        raise _raised(error, own, f"called with ({height}, {width}, {channels}, {num_classes})") from error
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    if fault := _fault(model, (None, height, width, channels), (None, num_classes)):
        raise NetworkError(f"{own.label}{fault}")
    return model


def _raised(error: Exception, own: OwnNetwork, when: str) -> NetworkError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(own.file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f", line {line}" if line else ""
    text = (str(error).strip().splitlines() or [""])[0]
    return NetworkError(f"{own.label}{where}: {type(error).__name__} when {when}: {text}")


def _fault(model: Any, inputs: tuple[int | None, ...], outputs: tuple[int | None, ...]) -> str:
    """Describe what is wrong with a user's model, as the end of a message that begins with its name; "" if it is fine."""
    from edgecnn.networks.keras import keras

    if any(base.__module__.partition(".")[0] == "keras" for base in type(model).__mro__):
        return (
            " returned a Keras 3 model, which does not support quantization-aware training.\n"
            "Import Keras from tf_keras instead: from tf_keras import Input, Model, layers"
        )
    if not isinstance(model, keras.Model):
        return f" returned {type(model).__name__}, expected a functional tf_keras model."
    if not getattr(model, "_is_graph_network", False):
        return f" returned the subclassed model {type(model).__name__}, expected a functional one: tf_keras.Model(inputs, outputs)."
    received = [", ".join(str(tuple(tensor.shape)) for tensor in ends) for ends in (model.inputs, model.outputs)]
    if received[0] != str(inputs):
        return f": the input is {received[0]}, expected {inputs}."
    if received[1] != str(outputs):
        return f": the output is {received[1]}, expected {outputs}, one logit per class."
    for layer in model.layers:
        if isinstance(layer, keras.layers.Lambda):
            return (
                f" has the Lambda layer {layer.name}, which a model file can store only as code. "
                "Call TensorFlow's functions directly, as in x = tf.math.cos(x)."
            )
    last = model.outputs[0].node.layer  # of Keras 2's symbolic tensors
    if getattr(getattr(last, "activation", None), "__name__", "") == "softmax" or type(last).__name__ == "Softmax":
        return (
            f" ends in softmax (layer {last.name}), expected logits. The loss and the runtime apply softmax themselves. "
            "Leave it out."
        )
    return ""
