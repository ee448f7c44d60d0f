import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError, UnknownNameError
from edgecnn.networks import NETWORKS, build_network
from edgecnn.networks.blocks import blocks_of, describe, halvings, is_whole
from edgecnn.networks.keras import keras

FURTHER = {
    "resnet_100kb", "resnet_300kb", "resnet_1000kb", "efficientnet_lite0_270kb", "efficientnet_lite0_1200kb",
    "efficientnet_lite0_4000kb", "efficientnet_lite2_1800kb", "efficientnet_lite2_5600kb",
}  # fmt: skip
"""Larger networks of the same families."""


def each(further):
    """Return all NETWORKS; these are further variants."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in further else name for name in NETWORKS]


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def test_article_is_the_article_layer_by_layer():
    model = build_network("article", 32, 32, 3, 10)
    assert kinds(model) == [
        "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Conv2D", "Flatten", "Dense", "Dense",
    ]  # fmt: skip
    assert [layer.output_shape[1:] for layer in model.layers[1:]] == [
        (30, 30, 32), (15, 15, 32), (13, 13, 64), (6, 6, 64), (4, 4, 64), (1024,), (64,), (10,),
    ]  # fmt: skip
    assert model.count_params() == 122_570


def test_resnet8_is_mlperf_tinys():
    cost = describe(build_network("resnet8", 32, 32, 3, 10))
    assert cost.parameters == 78_666
    assert cost.macs == 12_501_632


@pytest.mark.parametrize("name", each(FURTHER))
@pytest.mark.parametrize(
    "shape",
    [(8, 8, 1), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((28, 28, 1), (17, 23, 3), (96, 64, 3)))],
)
def test_any_input_size(name, shape):
    model = build_network(name, *shape, 7)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 7)


def test_the_stem_reduces_an_inputs_shorter_side_to_about_32():
    for side, times in (
        (8, 0), (28, 0), (32, 0), (45, 0), (46, 1), (64, 1), (90, 1), (91, 2), (128, 2), (181, 2), (182, 3), (224, 3),
    ):  # fmt: skip
        assert halvings(side, 2 * side) == halvings(3 * side, side) == times, side
        assert side < 46 or 22 < side / 2**times < 46


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet_25kb", 2.2e6),
        *(
            pytest.param(name, macs, marks=pytest.mark.slow)
            for name, macs in (("resnet_100kb", 21e6), ("resnet_300kb", 21e6), ("resnet_1000kb", 56e6))
        ),
    ],
)
def test_the_ladders_networks_cost_about_the_same_for_every_input(name, macs):
    assert 0.5 * macs < describe(build_network(name, 28, 28, 1, 10)).macs <= macs
    large = describe(build_network(name, 224, 224, 3, 10)).macs
    assert large < 2 * macs + 4e6, "a stem's halvings cost most of it"


@pytest.mark.parametrize("name", each({name for name in FURTHER if name.startswith("efficientnet")}))
def test_networks_end_in_logits_have_the_size_in_their_names_and_a_batch_norm_directly_follows_its_convolution(name):
    network = build_network(name, 32, 32, 3, 10)
    assert network.layers[-1].activation.__name__ == "linear"
    for layer in network.layers:
        if type(layer).__name__ == "BatchNormalization":
            before = layer.inbound_nodes[0].inbound_layers
            assert type(before).__name__ in ("Conv2D", "DepthwiseConv2D"), layer.name
    if name.endswith("kb"):
        stated = 1000 * int(name.rpartition("_")[2].removesuffix("kb"))
        assert describe(network).int8_bytes == pytest.approx(stated, rel=0.12)


def test_costs_are_counted_by_hand_for_an_input_that_is_not_square():
    inputs = keras.Input((6, 10, 2))
    x = keras.layers.Conv2D(4, (3, 1), (2, 1), "same", name="convolution")(inputs)
    x = keras.layers.ReLU()(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    cost = describe(keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))))
    named = {layer.name: layer for layer in cost.layers}
    convolution, depthwise = named["convolution"], named["depthwise"]
    assert (convolution.shape, convolution.macs, convolution.parameters) == (
        (3, 10, 4),
        3 * 10 * 3 * 2 * 4,
        3 * 2 * 4 + 4,
    )
    assert (depthwise.shape, depthwise.macs, depthwise.parameters) == ((1, 8, 8), 8 * 9 * 8, 9 * 8 + 8)
    assert (cost.macs, cost.parameters) == (720 + 576 + 40, 28 + 80 + 45)
    # weights; three operators with a kernel of 4, 8 and 5 channels; and one without
    assert cost.int8_bytes == (24 + 72 + 40) + 3 * 730 + 24 * (4 + 8 + 5) + 4 * 170


def test_the_backbones_have_the_published_blocks():
    """Filters, kernel and stride of each stage; Lite2 is 1.1 times as wide and 1.2 times as deep as Lite0."""
    for family, stages in {
        "efficientnet_lite0": ((1, 16, 3, 1), (2, 24, 3, 2), (2, 40, 5, 2), (3, 80, 3, 2), (3, 112, 5, 1), (4, 192, 5, 2), (1, 320, 3, 1)),
        "efficientnet_lite2": ((1, 16, 3, 1), (3, 24, 3, 2), (3, 48, 5, 2), (4, 88, 3, 2), (4, 120, 5, 1), (5, 208, 5, 2), (1, 352, 3, 1)),
    }.items():  # fmt: skip
        expected = [
            (filters, kernel, 1 if index else stride)
            for count, filters, kernel, stride in stages
            for index in range(count)
        ]
        assert [block[:3] for block in blocks_of(family)] == expected
        assert [block[3] for block in blocks_of(family)] == [1] + [6] * (len(expected) - 1)
    assert [name for name in NETWORKS if name.startswith("efficientnet") and is_whole(name)] == [
        "efficientnet_lite0_4000kb", "efficientnet_lite2_5600kb",
    ]  # fmt: skip


def test_articles_convolutions_are_unpadded_from_the_smallest_input_that_allows_it():
    """What is flattened has 64 channels: 1 x 2 places of 18 x 22 pixels unpadded, 4 x 5 of 17 x 22 pixels padded."""
    for rows, places in ((18, 1 * 2), (17, 4 * 5)):
        model = build_network("article", rows, 22, 1, 3)
        (flat,) = (layer for layer in model.layers if type(layer).__name__ == "Flatten")
        assert flat.output.shape[1] == 64 * places


def test_an_input_that_is_too_small_reports_the_smallest_size():
    with pytest.raises(NetworkError, match="at least 4x4, received 3x8"):
        build_network("article", 3, 8, 1, 10)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'article'"):
        build_network("artcle", 32, 32, 3, 10)
    with pytest.raises(NetworkError, match="resnet8 has no options, received pooling"):
        build_network("resnet8", 32, 32, 3, 10, {"pooling": "max"})
