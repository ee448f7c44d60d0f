import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError, UnknownNameError
from edgecnn.networks import build_network
from edgecnn.networks.describe import describe


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


def test_article_options():
    model = build_network("article", 32, 32, 3, 10, {"activation": "sigmoid", "pooling": "average"})
    assert kinds(model).count("AveragePooling2D") == 2
    assert [model.layers[index].activation.__name__ for index in (1, 3, 5, 7, 8)] == ["sigmoid"] * 4 + ["linear"]
    assert model.count_params() == 122_570


def test_resnet8_is_mlperf_tinys():
    cost = describe(build_network("resnet8", 32, 32, 3, 10))
    assert cost.parameters == 78_666
    assert cost.macs == 12_501_632


@pytest.mark.parametrize("name", ["article", "resnet8"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (17, 23, 3), (96, 64, 3)])
def test_any_input_size(name, shape):
    model = build_network(name, *shape, 7)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 7)


def test_networks_end_in_logits():
    for name in ("article", "resnet8"):
        assert build_network(name, 32, 32, 3, 10).layers[-1].activation.__name__ == "linear"


def test_too_small_an_input_says_how_large_it_must_be():
    with pytest.raises(NetworkError, match="at least 4x4, received 3x8"):
        build_network("article", 3, 8, 1, 10)
    with pytest.raises(NetworkError, match="at least 18x18"):
        build_network("article", 16, 16, 1, 10, {"padding": "valid"})


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'article'"):
        build_network("artcle", 32, 32, 3, 10)
    with pytest.raises(NetworkError, match="Did you mean 'pooling'"):
        build_network("article", 32, 32, 3, 10, {"poling": "max"})
    with pytest.raises(NetworkError, match="must be one of max, average; received 'min'"):
        build_network("article", 32, 32, 3, 10, {"pooling": "min"})
    with pytest.raises(NetworkError, match="It has none"):
        build_network("resnet8", 32, 32, 3, 10, {"pooling": "max"})
