"""A user's own network, FILE.py:FUNCTION, whose file is executed, and the Python code in Keras files, which is refused.

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

import io
import json
import traceback
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecnn.errors import NetworkError, nearest

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


TRUSTED = ("keras", "tf_keras", "tensorflow_model_optimization", "builtins")
"""Packages from which a model's parts may come."""

COMPUTING = ("math", "nn", "image", "linalg", "signal", "bitwise", "quantization", "__operators__", "keras")
"""Modules of TensorFlow whose functions only compute. Of the functions in `tf` itself, all but CALLING only compute."""

OLD = ("compat.v1.transpose", "compat.v1.gather")
"""Keras's names of tf.transpose and tf.gather."""

CALLING = ("function", "numpy_function", "py_function", "load_library", "load_op_library")


def refuse_code(file: Path | bytes, name: str) -> None:
    """Check that a .keras or HDF5 file contains only data: no Lambda, foreign package or function that touches files.

    Raises NetworkError, starting with `name` and naming the layer, if the file holds code.
    """
    for part in _parts(json.loads(_config(file) or "null")):
        if found := _code(part):
            raise NetworkError(
                f"{name} holds Python code ({found}), which would run on this machine with your rights. edgecnn does not load it.\n"
                "Build the model without it. If you trust the file, export it with the program that made it, to ONNX, or to a SavedModel: "
                "model.export('saved_model')"
            )


def _config(file: Path | bytes) -> str | bytes | None:
    import h5py

    opened: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    if zipfile.is_zipfile(opened):
        with zipfile.ZipFile(opened) as archive:
            return archive.read("config.json") if "config.json" in archive.namelist() else None
    if isinstance(file, Path) and not h5py.is_hdf5(file):
        return None
    with h5py.File(opened, "r") as content:
        return content.attrs.get("model_config")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    for item in waiting:
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _code(part: dict[str, Any]) -> str | None:
    """Return a description of the code in one object of a model's config; None if it holds no code."""
    kind, config = str(part.get("class_name", "")).rpartition(">")[2], part.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    if kind in ("Lambda", "__lambda__"):
        return f"the layer {name!r}, a Lambda" if name else "a lambda"
    module = part.get("module")
    if kind and module is not None and str(module).partition(".")[0] not in TRUSTED:
        return f"{kind} of the module {module}"
    if kind in ("TFOpLambda", "SlicingOpLambda") and isinstance(config, dict):
        function = str(config.get("function"))
        package = "" if function in OLD else function.rpartition(".")[0]
        if package.partition(".")[0] not in COMPUTING if package else function in CALLING:
            return f"the layer {name!r}, which calls tf.{function}"
    return None


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
