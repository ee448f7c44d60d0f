"""What the float model's answer rests on, by Grad-CAM, and how alike the int8 model's occlusion map is.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (arXiv:1610.02391).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecnn.data import Dataset
from edgecnn.errors import NetworkError, RunError
from edgecnn.export import export_path
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import model_from_bytes, real_input
from edgecnn.region import Region
from edgecnn.runs import FLOAT_MODEL, Run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.occlusion import occlusion
from edgecnn.verify.answers import Progress, input_contract, load_test
from edgecnn.verify.statistics import rank_correlation

GradCAM = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From uint8 images (n, height, width, channels) and the classes to explain, int (n,), to maps, float32 (n, height, width)."""


@dataclass(frozen=True, kw_only=True)
class MapCorrelation:
    """How alike two maps of the same images are: Spearman's rank correlation over an image's pixels, in [-1, 1].

    `images` is how many there were, and `undefined` on how many of them a map has one value throughout, so that it ranks nothing: median
    and quartiles are of the others, and None without any.
    """

    images: int
    undefined: int
    lower_quartile: float | None
    median: float | None
    upper_quartile: float | None


def run_gradcam(run: Run) -> GradCAM:
    """Return Grad-CAM of a run's float model.

    Raises:
        RunError: if the run was imported: its model is a frozen graph, without the layers that Grad-CAM needs.
        NetworkError: as `gradcam` does.
    """
    if run.imported:
        raise RunError(
            f"{run.path} holds an imported model, a frozen graph without Keras layers: Grad-CAM is not available for it. "
            "The occlusion map of its bundle needs none."
        )
    contract = input_contract(run)
    return gradcam(model_from_bytes(run.read(FLOAT_MODEL, "train")), contract.scale, contract.zero_point)


def gradcam(model: Any, scale: float, zero_point: int) -> GradCAM:
    """Return Grad-CAM of a Keras model at its last feature map.

    With A^k the map of channel k, Z its number of pixels and y^c the logit of class c: weight_k = 1/Z sum dy^c / dA^k, and the map is
    ReLU(sum weight_k A^k), enlarged to the input (equations 1 and 2). What speaks against the class is cut off.

    Args:
        model: a tf_keras functional model that ends in logits.
        scale, zero_point: of the code pixel - 128.

    Raises:
        NetworkError: if it has no feature map.
    """
    taps = keras.Model(model.inputs, [feature_map(model), model.outputs[0]])
    size = model.input_shape[1:3]

    @tf.function(reduce_retracing=True)
    def maps(images: Any, classes: Any) -> Any:
        pixels = real_input(images, scale, zero_point)
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            features, logits = taps(pixels, training=False)
            explained = tf.gather(logits, classes, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(explained, features), axis=(1, 2), keepdims=True)
        found = tf.nn.relu(tf.reduce_sum(weights * features, axis=3, keepdims=True))
        return tf.image.resize(found, size)[:, :, :, 0]

    def call(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return maps(tf.constant(images), tf.constant(classes, tf.int32)).numpy()

    return call


def feature_map(model: Any) -> Any:
    """Return the last feature map of a functional model: the tensor that its pooling, flattening or dense head reads.

    It is the output nearest to the model's end that has rows and columns, more than one of either, and is not a pooling's.

    Raises:
        NetworkError: if no layer has such an output.
    """
    for layer in reversed(model.layers):
        output = layer.inbound_nodes[-1].outputs  # not layer.output: a model that is a layer has that of its own graph
        pooled = "Pooling" in type(layer).__name__ or isinstance(layer, keras.layers.InputLayer)
        if (
            not pooled
            and keras.backend.is_keras_tensor(output)
            and len(output.shape) == 4
            and max(output.shape[1:3]) > 1
        ):
            return output
    raise NetworkError(f"the network {model.name} has no feature map of rows and columns, which Grad-CAM needs.")


def int8_model(run: Run, region: Region | None = None) -> Model:
    """Open a run's int8 TFLite export as a device would; it sees the run's own region, or another.

    Raises:
        RunError: if there is none.
        EngineError: if no engine can run it.
    """
    data = run.read(export_path(run, "tflite", "int8").name, "export", "--format tflite --int8")
    contract = input_contract(run)
    if region is not None:
        contract = replace(contract, region=region)
    return Model(open_engine(None, data, "tflite", num_threads=1), contract, len(run.info.data.labels))


def map_correlation(
    run: Run, dataset: Dataset, count: int, progress: Progress = lambda what, done, total: None
) -> MapCorrelation:
    """Compare the occlusion map of a run's int8 TFLite export with Grad-CAM of its float model, on test images.

    Both maps are of the class that the int8 model answers. The images are drawn by the recipe's seed, and choose nothing.

    Args:
        run: with an int8 TFLite export; not an imported one.
        dataset: the run's data.
        count: how many images; all of them if there are fewer.
        progress: called with the images done.

    Raises:
        RunError: if the run was imported, has no such export, or its test split has changed.
        NetworkError: as `gradcam` does.
    """
    explain, model = run_gradcam(run), int8_model(run)
    images = load_test(run, dataset, progress).images
    drawn = np.sort(np.random.default_rng(run.recipe.seed).permutation(len(images))[:count])
    found = []
    for done, index in enumerate(drawn, 1):
        item = occlusion(model, images[index], run.info.data.labels)
        (other,) = explain(item.pixels[np.newaxis], np.array([item.index]))
        found.append(rank_correlation(item.map, other))
        progress("explaining", done, len(drawn))
    return summarized(found)


def summarized(correlations: list[float | None]) -> MapCorrelation:
    """Return median and quartiles of the correlations that are defined."""
    defined = [item for item in correlations if item is not None]
    lower, median, upper = np.quantile(defined, (0.25, 0.5, 0.75)).tolist() if defined else (None, None, None)
    return MapCorrelation(
        images=len(correlations),
        undefined=len(correlations) - len(defined),
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
    )
