"""Importing models that edgecnn did not train, ONNX, Keras 2 and Keras 3 files and SavedModels, as frozen graphs that end in logits.

Keras 3 reads its own files here, alongside the Keras 2 of `edgecnn.networks.keras`. Remove this when everything uses Keras 3.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.errors import ExportError, NetworkError, first_line
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.onnx_model import conversion
from edgecnn.networks.own import refuse_code
from edgecnn.networks.predict import INPUT, OUTPUT, FrozenModel

KINDS = "an ONNX file (.onnx), a Keras file (.keras, .h5) or a SavedModel folder"
TO_ONNX = """\
  import torch
  model = ...  # for example torchvision.models.resnet18(num_classes=10), timm.create_model("...", num_classes=10), or your own class
  model.load_state_dict(torch.load("model.pt", weights_only=True))
  model.eval()
  torch.onnx.export(model, torch.zeros(1, 3, 224, 224), "model.onnx", dynamo=False, opset_version=17)"""
"""What writes an ONNX file from weights in PyTorch."""

LOAD_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, tf.errors.OpError),
)

SAME_VALUES = ("Identity", "StopGradient", "Reshape", "Squeeze")


Check = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], float]
Layers = Callable[[tuple[np.ndarray, np.ndarray] | None], "keras.Model"]


class SourceModel(NamedTuple):
    """A model as read: its function of float32 pixels, and the input shape and dtype.

    `program` runs it, and `output` has the shape and dtype of what it gives. `check` compares its answers to images (n, height, width,
    channels) with those of the file's own program, given what turns images into what the model reads; None if the file has no other
    program than the one that read it. `cut` is whether a softmax or sigmoid is removed already. `layers` builds it as a Keras model of
    layers, for pixels that it is given as a factor and an offset per channel. `macs` counts the multiply-accumulates of an image; 0 if
    unknown. `frozen` is the graph that `read_model` makes of it.
    """

    call: Callable[[Any], Any]
    shape: tuple[int | None, ...]
    dtype: str
    what: str
    program: str = ""
    output: Any = None
    check: Check | None = None
    cut: bool = False
    layers: Layers | None = None
    macs: int = 0
    frozen: Any = None


def read_model(path: Path, size: tuple[int, int] | None = None) -> SourceModel:
    """Read a model that edgecnn did not train. `size` is the (height, width) of an ONNX file's input that leaves them open.

    A TensorFlow graph's operators can access files, so read only models that you trust.
    Raises ExportError if it cannot be read, or does not map one image to one vector; NetworkError if it contains Python code.
    """
    with quiet_stderr():
        try:
            opened = open_source(path, size)
            frozen, cut = _freeze(opened)
        except (ExportError, NetworkError):
            raise
        except LOAD_ERRORS as error:
            raise ExportError(
                f"cannot read the model {path}: {first_line(error)}. Expected {KINDS} without custom layers: with some, write a "
                "SavedModel with the program that has them, model.export('saved_model'), and import that folder."
            ) from error
    return opened._replace(frozen=frozen, cut=cut or opened.cut)


def with_range(model: FrozenModel, read: tuple[Any, Any], given: tuple[float, int]) -> FrozenModel:
    """Return a model that reads pixels in the `given` range; a first layer converts them to the range that it `read` before."""
    factor, offset = conversion(read, given)
    source = SourceModel(lambda pixels: model(pixels * factor + offset), model.input_shape, "float32", "")
    return _freeze(source)[0]


PICKLED = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors")


def open_source(path: Path, size: tuple[int, int] | None = None) -> SourceModel:
    """Open a model file of another program than edgecnn. Errors as in `read_model`, and LOAD_ERRORS."""
    if path.suffix == ".onnx" and path.is_file():
        return _open_onnx(path, size)
    if size:
        raise ExportError(
            f"--size is for ONNX files that leave their image's size open, and {path} is not one. Leave it out."
        )
    if path.suffix in PICKLED and path.exists():
        raise ExportError(
            f"{path} is PyTorch's own format, which only its own program can read. Write an ONNX file there, then import that:\n{TO_ONNX}"
        )
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ExportError(f"{path} is not a SavedModel: it has no saved_model.pb. Expected {KINDS}.")
        return _open_saved_model(path)
    if not path.is_file():
        raise ExportError(f"no model at {path}. Expected {KINDS}.")
    version = _keras_version(path)
    refuse_code(path, str(path))
    library: Any = keras
    if version.startswith("3."):
        import keras as keras3

        library = keras3
    model = library.models.load_model(path, compile=False)
    _require_one(path, model.inputs, model.outputs)
    entry = model.inputs[0]
    dtype = getattr(entry.dtype, "name", entry.dtype)
    program, output = f"keras {library.__version__}", model.outputs[0]

    def call(pixels: Any) -> Any:
        return model(pixels, training=False)

    return SourceModel(call, tuple(entry.shape), dtype, f"Keras {version}", program, output)


def _open_onnx(path: Path, size: tuple[int, int] | None) -> SourceModel:
    from edgecnn.networks.onnx_model import build, read_onnx
    from edgecnn.networks.onnx_parity import require_same

    file = read_onnx(path)
    built = build(file, str(path), size)
    return SourceModel(
        lambda pixels: built.model(pixels, training=False),
        tuple(built.model.input_shape),
        "float32",
        f"ONNX, opset {max(item.version for item in file.opset_import if not item.domain)}",
        check=lambda images, real: require_same(built, file, str(path), images, real),
        cut=bool(built.cut),
        layers=lambda reading: build(file, str(path), size, reading).model,
        macs=built.macs,
    )


def layers_of(model: FrozenModel) -> "keras.Model":
    """Return a frozen graph as a Keras model of layers, by way of ONNX. Raises ExportError if an operator has no layer."""
    import onnx

    from edgecnn.export.onnx import float32
    from edgecnn.networks.onnx_model import build

    return build(onnx.ModelProto.FromString(float32(model)), "the graph").model


def _keras_version(path: Path) -> str:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    import h5py

    if not h5py.is_hdf5(path):
        raise ExportError(f"{path} is neither a .keras nor a .h5 file. Expected {KINDS}.")
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ExportError(f"{path} holds only weights, expected a whole model. Save it with model.save(...).")
        version = file.attrs.get("keras_version", "2, or older")
        return version.decode() if isinstance(version, bytes) else str(version)  # bytes in files of Keras 2.2


def _open_saved_model(path: Path) -> SourceModel:
    loaded = tf.saved_model.load(str(path))
    if "serving_default" not in loaded.signatures:
        raise ExportError(f"{path} has no signature 'serving_default'. Save it with model.export(...).")
    signature = loaded.signatures["serving_default"]
    entries, outputs = signature.structured_input_signature[1], signature.structured_outputs
    _require_one(path, entries, outputs)
    ((name, entry),) = entries.items()
    ((output, given),) = outputs.items()

    def call(pixels: Any, loaded: Any = loaded) -> Any:  # keeps `loaded` alive, which owns the variables
        return signature(**{name: pixels})[output]

    return SourceModel(call, tuple(entry.shape), entry.dtype.name, "SavedModel", f"tensorflow {tf.__version__}", given)


def _require_one(path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, expected one input, an image, and one output, a vector."
        )


def _freeze(opened: SourceModel) -> tuple[FrozenModel, bool]:
    """Turn a model into a graph without variables, remove a final softmax, and return whether there was one."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    sides = opened.shape[1:]
    if len(sides) != 3 or not all(sides) or sides[2] not in (1, 3):
        raise ExportError(
            f"the model reads {opened.shape}, expected (None, height, width, 1 or 3) with a fixed height and width."
        )
    if opened.dtype != "float32":
        raise ExportError(f"the model reads {opened.dtype}, expected float32 pixels. Remove the cast at its beginning.")

    @tf.function(input_signature=[tf.TensorSpec((None, *sides), tf.float32, name=INPUT)])
    def forward(pixels):
        return opened.call(pixels)

    function = convert_variables_to_constants_v2(forward.get_concrete_function())
    tensor = function.outputs[0]
    if tensor.shape.rank != 2 or tensor.shape[1] is None:
        raise ExportError(f"the model's output has the shape {tuple(tensor.shape)}, expected (None, num_classes).")
    last = tensor
    while last.op.type in SAME_VALUES:
        last = last.op.inputs[0]
    cut = last.op.type == "Softmax"
    if cut:
        tensor = last.op.inputs[0]
    graph_def = function.graph.as_graph_def()
    end = graph_def.node.add(name=OUTPUT, op="Identity", input=[tensor.name])
    end.attr["T"].type = tf.float32.as_datatype_enum
    return FrozenModel(tf.compat.v1.graph_util.extract_sub_graph(graph_def, [OUTPUT])), cut


def refuse_scores(outputs: np.ndarray) -> None:
    """Raise ExportError if a model's outputs, float32 (n, num_classes), are scores that sum to 1 instead of logits."""
    if len(outputs) and outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, rtol=0, atol=1e-3):
        raise ExportError(
            "the model's outputs sum to 1: it ends in a softmax that is not TensorFlow's own and cannot be removed. "
            "Save the model without it, ending in logits."
        )
