"""Locating errors: the int8 TFLite file compared with the float Keras model, layer by layer, on the same images."""

from collections.abc import Callable

import numpy as np

from edgecnn.data import Dataset, Progress
from edgecnn.data.dataset import require_split
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path
from edgecnn.export.flatbuffer import WEIGHTED, Pair, matched
from edgecnn.pixels import to_codes, to_real
from edgecnn.runs import FLOAT_MODEL, Run
from edgecnn.tables import Struct

LAYER_IMAGES = 200
"""Most validation images used. A layer's noise is an average over all its values, so it settles quickly."""

CHUNK = 50
OUTLIER = 8.0
"""Ratio of the largest to the median channel range from which a hint names outlier channels: the median channel loses three bits."""

SATURATED = 0.001
"""Fraction of values at the end of the range from which a hint names saturation."""

HINTS = {
    "per-tensor weights": "weights have one scale for all channels: quantize them per channel",
    "outlier channels": "a few channels set the range of all: equalise or prune them, or add weight decay",
    "saturated range": "values are clipped at the range's end: calibrate longer, on images of every kind",
}


class LayerError(Struct):
    """A layer's error relative to the float model.

    `sqnr_db` is signal to quantization noise in dB, `saturated` the fraction of values at the end of the range, `channel_ratio` the
    largest channel range over the median one, and `hint` the usual fix, or empty.
    """

    layer: str
    operator: str
    sqnr_db: float
    saturated: float
    channel_ratio: float
    hint: str


class LayerErrors(Struct):
    """The layers, worst first, measured on `images` images. `unmatched` names tensors without a Keras layer."""

    images: int
    layers: tuple[LayerError, ...]
    unmatched: tuple[str, ...]


class Noise:
    """Running sums of one layer's signal, noise, saturated values and channel ranges."""

    def __init__(self, channels: int) -> None:
        self.signal = self.noise = 0.0
        self.count = self.saturated = 0
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, real: np.ndarray, codes: np.ndarray, scale: float, zero_point: int) -> None:
        """Add a chunk: float values and codes of the same shape, channels last."""
        error = (codes.astype(np.float64) - zero_point) * scale - real
        self.signal += float(np.sum(np.square(real, dtype=np.float64)))
        self.noise += float(np.sum(np.square(error)))
        limits = np.iinfo(codes.dtype)
        # If zero is the lowest code, that is a ReLU's own floor and nothing is clipped.
        low = codes == limits.min if zero_point > limits.min else np.zeros(codes.shape, bool)
        self.saturated += int(np.sum(low | (codes == limits.max)))
        self.count += codes.size
        axes = tuple(range(real.ndim - 1))
        self.low = np.minimum(self.low, real.min(axis=axes))
        self.high = np.maximum(self.high, real.max(axis=axes))

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in dB: 10 log10(sum real^2 / sum error^2), at most 120."""
        return float(10 * np.log10(max(self.signal, 1e-30) / max(self.noise, self.signal * 1e-12, 1e-30)))

    @property
    def channel_ratio(self) -> float:
        """The largest channel range over the median one, ignoring constant channels."""
        ranges = self.high - self.low
        ranges = ranges[ranges > 0]
        return float(ranges.max() / np.median(ranges)) if len(ranges) else 1.0


def measured_split(run: Run) -> str:
    """Return the split that layers are measured on: validation, or with folds, which leave no validation split, training."""
    return "train" if run.info.folds else "validation"


def layer_errors(run: Run, dataset: Dataset, progress: Progress = lambda what, done, total: None) -> LayerErrors:
    """Measure the error of each layer of a run's int8 TFLite file relative to the float model, on LAYER_IMAGES images of `measured_split`.

    The noise at a layer includes that of all layers before it. Raises RunError if the export is missing or the model has no layers.
    """
    if run.finished:
        raise RunError(
            f"{run.path} holds a finished file, which ships as it is and has no layers here. Import its float model to compare them."
        )
    if run.frozen:
        raise RunError(
            f"{run.path} holds an imported graph, which has no layers to compare with. Import the model again with --qat-epochs 0, "
            "which builds it from layers, and rounds its weights better."
        )
    path = export_path(run, "tflite", "int8")
    data = run.read(path.name, "export", "--format tflite --int8")
    from edgecnn.export.flatbuffer import read
    from edgecnn.networks.keras import keras
    from edgecnn.networks.predict import model_from_bytes

    split = measured_split(run)
    require_split(run, dataset, split)
    loaded = dataset.load((split,), **vars(run.info.input), stage="layers", progress=progress)[split]
    images = loaded.images[:LAYER_IMAGES]
    model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    graph = read(data)
    pairs, unmatched = matched(model, graph)
    if not pairs:
        raise RunError(f"{path} shares no layer names with {run.path}/{FLOAT_MODEL}. Export it again with --force.")
    taps = keras.Model(model.inputs, [model.get_layer(pair.layer).output for pair in pairs])
    contract = input_contract(run)
    sums = [Noise(pair.tensor.shape[-1]) for pair in pairs]
    codes_of = tensors(data, [pair.tensor.index for pair in pairs])
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        real = taps(to_real(chunk, contract.scale, contract.zero_point), training=False)
        real = real if isinstance(real, list) else [real]
        for pair, total, values, codes in zip(pairs, sums, real, codes_of(chunk), strict=True):
            values = values.numpy().reshape(codes.shape)
            if pair.tensor == graph.outputs[0]:
                values, codes = inside_codes(values, codes, float(pair.tensor.scale[0]), int(pair.tensor.zero_point[0]))
            total.add(values, codes, float(pair.tensor.scale[0]), int(pair.tensor.zero_point[0]))
        progress("layers", min(start + CHUNK, len(images)), len(images))
    errors = sorted((layer_error(*item) for item in zip(pairs, sums, strict=True)), key=lambda error: error.sqnr_db)
    return LayerErrors(images=len(images), layers=tuple(errors), unmatched=tuple(unmatched))


def inside_codes(logits: np.ndarray, codes: np.ndarray, scale: float, zero_point: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip logits and their codes just inside the codes' range, which is narrow on purpose (`edgecnn.train.ranges`)."""
    limits = np.iinfo(codes.dtype)
    low, high = limits.min + 1, limits.max - 1
    return np.clip(logits, (low - zero_point) * scale, (high - zero_point) * scale), np.clip(codes, low, high)


def layer_error(pair: Pair, total: Noise) -> LayerError:
    saturated = total.saturated / total.count
    weights = pair.operator.inputs[1] if pair.operator.name in WEIGHTED else None
    causes = {
        # The converter itself chooses per-tensor weights for a dense layer, but not for a convolution.
        "per-tensor weights": weights is not None
        and pair.operator.name != "FULLY_CONNECTED"
        and len(weights.scale) == 1,
        "outlier channels": total.channel_ratio >= OUTLIER,
        "saturated range": saturated >= SATURATED,
    }
    return LayerError(
        layer=pair.layer,
        operator=pair.operator.name,
        sqnr_db=total.sqnr_db,
        saturated=saturated,
        channel_ratio=total.channel_ratio,
        hint=next((HINTS[cause] for cause, applies in causes.items() if applies), ""),
    )


def tensors(data: bytes, indices: list[int]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function from uint8 images to the codes of the tensors with these indices, each (n, …)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=data,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,  # a delegate hides its tensors
    )
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]

    def run(images: np.ndarray) -> list[np.ndarray]:
        rows: list[list[np.ndarray]] = [[] for _ in indices]
        for image in to_codes(images):
            interpreter.set_tensor(entry, image[np.newaxis])
            interpreter.invoke()
            for row, index in zip(rows, indices, strict=True):
                row.append(interpreter.get_tensor(index))
        return [np.concatenate(row) for row in rows]

    return run
