"""Grad-CAM of the float model: where it is taken, what it is, and how alike the maps of a run are."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError, RunError
from edgecnn.networks import NETWORKS, build_network
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_from_bytes
from edgecnn.networks.pretrained import source_of
from edgecnn.runs import FLOAT_MODEL, Run
from edgecnn.runtime.occlusion import occlusion
from edgecnn.verify.gradcam import MapCorrelation, feature_map, gradcam, int8_model, run_gradcam, summarized
from edgecnn.verify.statistics import rank_correlation

layers = keras.layers
SCALE, ZERO_POINT = 1 / 128, 0


BACKBONES = [name for name in NETWORKS if source_of(name)]
SIZES = {
    **{name: [(16, 16, 1), (32, 32, 3), (96, 64, 3)] for name in NETWORKS},
    **{name: [(96, 64, 3)] for name in BACKBONES},  # their maps are 32 times smaller than the input
}


CASES = [(name, shape) for name, shapes in SIZES.items() for shape in shapes]
BY_DEFAULT = [(name, (32, 32, 3)) for name in NETWORKS] + [(BACKBONES[0], (96, 64, 3))]


@pytest.mark.parametrize(
    ("name", "shape"), [pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow) for case in CASES]
)
def test_the_feature_map_of_every_network_is_what_its_head_reads(name, shape):
    model = build_network(name, *shape, 5)
    found = feature_map(model)
    readers = [type(node.outbound_layer).__name__ for node in found.node.layer.outbound_nodes]
    assert readers in (["GlobalAveragePooling2D"], ["Flatten"])
    assert type(found.node.layer).__name__ in ("ReLU", "Conv2D", "Add", "BatchNormalization")
    (map_,) = gradcam(model, SCALE, ZERO_POINT)(np.zeros((1, *shape), np.uint8), np.array([4]))
    assert map_.shape == shape[:2] and map_.dtype == np.float32


def head(x, inputs):
    return keras.Model(inputs, layers.Dense(3)(x))


def test_a_pooling_before_the_head_is_passed_over():
    inputs = keras.Input((8, 8, 1))
    features = layers.Conv2D(4, 3, name="last")(inputs)
    x = layers.Dropout(0.5)(layers.Flatten()(layers.MaxPooling2D(2)(features)))
    assert feature_map(head(x, inputs)).node.layer.name == "last"


def test_a_map_of_one_pixel_is_passed_over():
    inputs = keras.Input((4, 4, 1))
    features = layers.Conv2D(4, 3, name="last")(inputs)
    x = layers.Flatten()(layers.Conv2D(4, 2)(features))
    assert feature_map(head(x, inputs)).node.layer.name == "last"


def test_a_network_with_another_inside():
    inner_input = keras.Input((8, 8, 1))
    inner = keras.Model(inner_input, layers.Conv2D(4, 3, activation="relu")(inner_input))
    inputs = keras.Input((8, 8, 1))
    model = head(layers.GlobalAveragePooling2D()(inner(inputs)), inputs)
    (map_,) = gradcam(model, SCALE, ZERO_POINT)(np.full((1, 8, 8, 1), 200, np.uint8), np.array([0]))
    assert map_.shape == (8, 8)


def test_a_network_without_a_feature_map():
    inputs = keras.Input((8, 8, 1))
    with pytest.raises(NetworkError, match="no feature map of rows and columns"):
        feature_map(head(layers.Flatten()(inputs), inputs))


def test_it_is_the_sum_of_the_maps_by_their_mean_gradients():
    """For an average and a dense layer the mean gradient of a channel is its weight over the number of pixels."""
    inputs = keras.Input((6, 6, 1))
    features = layers.Conv2D(4, 1, activation="relu")(inputs)
    model = head(layers.GlobalAveragePooling2D()(features), inputs)
    images = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 1), np.uint8)
    maps = keras.Model(inputs, features)((images.astype(np.float32) - 128) / 128).numpy()
    classes = np.array([2, 0, 1])
    weights = model.layers[-1].get_weights()[0][:, classes].T / 36
    expected = np.maximum(0, (maps * weights[:, None, None]).sum(axis=3))
    assert gradcam(model, SCALE, ZERO_POINT)(images, classes) == pytest.approx(expected, abs=1e-6)


def test_where_only_one_place_matters_it_is_seen():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((32, 32, 1))
    features = layers.MaxPooling2D(2)(layers.Conv2D(1, 3, padding="same", activation="relu")(inputs))
    features = layers.Conv2D(1, 3, padding="same", activation="relu")(features)
    model = head(layers.GlobalAveragePooling2D()(features), inputs)
    for layer in model.layers:
        layer.set_weights([np.abs(weights) for weights in layer.get_weights()])
    image = np.zeros((1, 32, 32, 1), np.uint8)
    image[0, 20:26, 4:10] = 255
    (map_,) = gradcam(model, SCALE, ZERO_POINT)(image, np.array([1]))
    inside = np.zeros((32, 32), bool)
    inside[15:31, :15] = (
        True  # what two convolutions and a pooling reach, and a pixel more by the enlarging between cells
    )
    assert map_[22, 6] > 0.5 * map_.max() > 0 and not map_[~inside].any()


def digits(count):
    datasets = pytest.importorskip("sklearn.datasets")
    return (datasets.load_digits().images[:count] * 255 / 16).astype(np.uint8)[..., np.newaxis]


def test_weights_drawn_at_random_change_both_maps(finished_run):
    """Adebayo et al. 2018: a map that stays the same shows the image, not what the model has learned."""
    from edgecnn.export.tflite import RepresentativeDataset, int8_post_training
    from edgecnn.runtime.engines import open_engine
    from edgecnn.runtime.model import Model

    images = digits(60)
    model, labels = int8_model(finished_run), finished_run.info.data.labels
    keras.utils.set_random_seed(1)
    other = keras.models.clone_model(model_from_bytes(finished_run.read(FLOAT_MODEL, "train")))
    data = int8_post_training(other, RepresentativeDataset(images, SCALE, ZERO_POINT))
    untrained = Model(open_engine(None, data, "tflite"), model.contract)
    trained_maps = [occlusion(model, image, labels) for image in images]
    classes = np.array([item.index for item in trained_maps])
    pairs = [
        ([item.map for item in trained_maps], [occlusion(untrained, image, labels).map for image in images]),
        (run_gradcam(finished_run)(images, classes), gradcam(other, SCALE, ZERO_POINT)(images, classes)),
    ]
    for trained, random in pairs:
        found = summarized([rank_correlation(*pair) for pair in zip(trained, random, strict=True)])
        assert found.images - found.undefined >= 30 and found.median < 0.4
        itself = summarized([rank_correlation(map_, map_) for map_ in trained])
        assert itself.median == pytest.approx(1)


def test_the_rank_correlation_of_a_runs_maps(finished_run, edgecnn):
    result = edgecnn("explain", "--sample", "40", "--run", finished_run.path, "--json")
    assert result.code == 0 and f"run {finished_run.path}" in result.err
    found = MapCorrelation(**json.loads(result.out))
    assert found.images == 40 and found.undefined < 40
    assert -1 <= found.lower_quartile <= found.median <= found.upper_quartile <= 1
    text = edgecnn("explain", "--sample", "40", "--run", finished_run.path).out
    assert f"on 40 test images: rank correlation {found.median:.2f} in the median" in text
    more = edgecnn("explain", "--sample", "100000", "--run", finished_run.path, "--json")
    assert json.loads(more.out)["images"] == finished_run.info.data.split_sizes["test"]


def test_images_of_a_run_have_both_maps(own_run, edgecnn, tmp_path):
    from PIL import Image

    Image.fromarray(digits(1)[0, :, :, 0]).save(tmp_path / "zero.png")
    result = edgecnn("explain", "zero.png", "--run", "runs/latest", "--json")
    line = json.loads(result.out)
    assert result.code == 0 and np.array(line["gradcam"]).shape == np.array(line["map"]).shape == (8, 8)
    with Image.open(line["picture"]) as picture:
        assert picture.size == (3 * 256 + 2 * 8, 256)
    bundled = json.loads(
        edgecnn("explain", "zero.png", "--model", own_run.file("tiny.edgecnn"), "--json", "--force").out
    )
    assert bundled["map"] == line["map"] and bundled["score"] == line["score"], "the device has the same map"


def test_of_an_imported_model_only_the_device_map_is_there(own_run, edgecnn, tmp_path):
    from PIL import Image

    own_run.file("float.pb").write_bytes(b"")
    assert Run(own_run.path).imported
    with pytest.raises(RunError, match="Grad-CAM is not available"):
        run_gradcam(own_run)
    assert edgecnn("explain", "--sample", "5").code == RunError.exit_code
    Image.fromarray(digits(1)[0, :, :, 0]).save(tmp_path / "zero.png")
    result = edgecnn("explain", "zero.png", "--run", "runs/latest", "--json")
    assert result.code == 0 and "there is no Grad-CAM of it" in result.err and "gradcam" not in json.loads(result.out)


def test_a_run_without_an_int8_export(own_run, edgecnn):
    own_run.file("model-int8.tflite").unlink()
    result = edgecnn("explain", "--sample", "5")
    assert result.code == RunError.exit_code and "edgecnn export" in result.err


def test_correlation_of_maps_that_rank_nothing():
    assert summarized([None, None]) == MapCorrelation(
        images=2, undefined=2, lower_quartile=None, median=None, upper_quartile=None
    )
    found = summarized([0.0, None, 1.0, 0.5])
    assert (found.images, found.undefined, found.median) == (4, 1, 0.5)
    assert (found.lower_quartile, found.upper_quartile) == (0.25, 0.75)
