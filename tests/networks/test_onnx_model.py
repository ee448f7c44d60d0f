"""ONNX classifiers as Keras models: each answers as ONNX Runtime does, or the message names what is wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecnn.errors import ExportError
from edgecnn.export.imported import read_model
from edgecnn.networks import onnx_model
from edgecnn.networks.keras import tf
from edgecnn.networks.onnx_model import build, read_onnx
from edgecnn.networks.onnx_parity import require_same
from edgecnn.networks.predict import ELEMENTS, PIXELS, images_at_once
from edgecnn.stages.import_ import operators_of

SIDE = 13  # odd, so that paddings before and after differ
RANDOM = np.random.default_rng(1)


def weights(name, *shape, scale=0.5):
    return numpy_helper.from_array(RANDOM.normal(scale=scale, size=shape).astype(np.float32), name)


def numbers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


class File:
    """A graph under construction: each call of `add` reads the last output."""

    def __init__(self, shape=("n", 3, SIDE, SIDE), elem_type=TensorProto.FLOAT, opset=17):
        self.entry = helper.make_tensor_value_info("x", elem_type, shape)
        self.nodes, self.initializers, self.last, self.opset, self.outputs = [], [], "x", opset, 1

    def add(self, op, *more, inputs=None, outputs=1, **attributes):
        names = [getattr(item, "name", item) for item in more]
        self.initializers += [item for item in more if not isinstance(item, str)]
        made = [f"{op.lower()}{len(self.nodes)}.{place}" for place in range(outputs)]
        given = (inputs or [self.last]) + names
        self.nodes.append(helper.make_node(op, given, made, name=f"/{op}_{len(self.nodes)}", **attributes))
        self.last = made[0]
        return made[0] if outputs == 1 else made

    def conv(self, channels, filters, kernel=3, bias=False, **attributes):
        name = f"w{len(self.nodes)}"
        more = [weights(f"{name}b", filters)] if bias else []
        shape = (filters, channels // attributes.get("group", 1), kernel, kernel)
        return self.add("Conv", weights(name, *shape), *more, **attributes)

    def end(self, channels, classes=4):
        self.add("GlobalAveragePool")
        self.add("Flatten")
        return self.add("Gemm", weights("fc", classes, channels), weights("fcb", classes), transB=1)

    def model(self):
        outputs = [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "net", [self.entry], outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def same(file, size=None, sides=(SIDE, SIDE), channels=3):
    model = file.model() if isinstance(file, File) else file
    built = build(model, "net.onnx", size)
    images = RANDOM.normal(size=(3, *sides, channels)).astype(np.float32)
    assert require_same(built, model, "net.onnx", images) < 1e-4
    return built


def layers(built):
    return [type(layer).__name__ for layer in built.model.layers]


def test_convolutions_with_every_padding_stride_and_group():
    file = File()
    file.conv(3, 8, strides=[2, 2], pads=[1, 1, 1, 1], bias=True)
    file.add(
        "BatchNormalization",
        *(weights(name, 8) for name in "sbm"),
        numpy_helper.from_array(np.full(8, 2, np.float32), "v"),
    )
    file.add("Clip", numpy_helper.from_array(np.float32(0), "low"), numpy_helper.from_array(np.float32(6), "high"))
    file.conv(8, 16, group=8, pads=[1, 0, 2, 1])
    file.conv(16, 12, group=4, dilations=[2, 2], pads=[2, 2, 2, 2])
    file.conv(12, 6, kernel=1, strides=[1, 2], auto_pad="SAME_LOWER")
    file.add("HardSwish")
    file.end(6)
    built = same(file)
    assert {"DepthwiseConv2D", "BatchNormalization", "ReLU"} <= set(layers(built))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil", [0, 1])
def test_a_padded_pool_over_negative_values_with_and_without_ceil_mode(op, ceil):
    file = File()
    file.conv(3, 4)  # 11 x 11, of both signs
    file.add(op, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=ceil)
    file.add(op, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=ceil)
    file.end(4)
    same(file)


def test_an_average_that_counts_its_padding():
    file = File()
    file.add("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    file.end(3)
    same(file)


def test_a_channel_shuffle_and_a_split_keep_each_channel_in_its_place():
    file = File()
    file.conv(3, 8)
    first, second = file.add("Split", numbers("halves", 4, 4), outputs=2, axis=1)
    joined = file.add("Concat", second, inputs=[first], axis=1)
    file.add("Reshape", numbers("split", 0, 2, 4, 11, 11), inputs=[joined])
    file.add("Transpose", perm=[0, 2, 1, 3, 4])
    file.add("Reshape", numbers("whole", 0, -1, 11, 11))
    file.conv(8, 5, group=1)
    file.end(5)
    assert len([name for name in layers(same(file)) if name == "TFOpLambda"]) <= 3  # two parts and one transpose


def test_a_dense_layer_after_pixels_takes_their_order_and_needs_no_transpose():
    file = File()
    file.conv(3, 6, strides=[3, 3])
    file.add("Relu")
    file.add("Flatten")
    file.add("Gemm", weights("first", 96, 5))  # without a bias
    file.add("Relu")
    file.add("MatMul", weights("second", 5, 4))
    built = same(file)
    assert not operators_of(built.model)
    assert "Gemm_3" in [layer.name for layer in built.model.layers], "layers have the nodes' names"


def test_attention_over_pixels():
    file = File()
    file.conv(3, 8, strides=[3, 3])  # 4 x 4
    file.add("Reshape", numbers("tokens", 0, 8, 16))
    tokens = file.add("Transpose", perm=[0, 2, 1])
    scale, bias = weights("ln", 8), weights("lnb", 8)
    tokens = file.add("LayerNormalization", scale, bias, inputs=[tokens], axis=-1)
    file.add("MatMul", weights("qkv", 8, 24), inputs=[tokens])
    file.add("Reshape", numbers("heads", 1, 16, 3, 2, 4))
    file.add("Transpose", perm=[2, 0, 3, 1, 4])
    query, key, value = (
        file.add("Gather", numpy_helper.from_array(np.int64(i), f"i{i}"), inputs=["transpose6.0"]) for i in range(3)
    )
    turned = file.add("Transpose", inputs=[key], perm=[0, 1, 3, 2])
    file.add("MatMul", turned, inputs=[query])
    file.add("Softmax", axis=-1)
    file.add("MatMul", value)
    file.add("Transpose", perm=[0, 2, 1, 3])
    mixed = file.add("Reshape", numbers("merged", 1, 16, 8))
    file.add("Add", tokens, inputs=[mixed])
    file.add("ReduceMean", axes=[1], keepdims=0)
    file.add("Gemm", weights("fc", 8, 3))
    same(file)


def test_a_normalization_over_all_pixels_and_channels_and_a_constant_of_each():
    file = File()
    file.conv(3, 4, strides=[3, 3])  # 4 x 4
    file.add("LayerNormalization", weights("ln", 4, 4, 4), weights("lnb", 4, 4, 4), axis=1)
    file.add("Mul", weights("columns", 4))
    file.add("Add", weights("rows", 4, 4, 1))
    file.end(4)
    same(file)


def test_norms_of_channels_that_are_expanded_and_a_picture_that_is_resized_back_and_forth():
    file = File()
    x = file.conv(3, 4, strides=[2, 2])  # 6 x 6
    file.add("InstanceNormalization", weights("s", 4), weights("b", 4))
    file.add("Resize", numbers("larger", 1, 4, 9, 7), inputs=["instancenormalization1.0", "", ""], mode="linear")
    file.add("Resize", numbers("back", 1, 4, 6, 6), inputs=["resize2.0", "", ""], mode="linear")
    y = file.add("Add", x)
    norm = file.add("ReduceL2", axes=[2, 3])
    norm = file.add("Expand", numbers("shape", 1, 4, 6, 6), inputs=[norm])
    file.add("Div", norm, inputs=[y])
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    file.add("Resize", scales, inputs=["div7.0", ""], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    file.add("GlobalAveragePool")
    flat = file.add("Flatten")
    file.add("Squeeze", numbers("first", 0), inputs=[flat])
    file.add("Gather", numpy_helper.from_array(np.array([[3, 1, 2, 0]]), "turned"))
    file.add("Gemm", weights("fc", 3, 4), transB=1)
    same(file)


def test_gelu_and_hard_swish_written_out_become_one_operator():
    file = File()
    x = file.conv(3, 4)
    scalar = {
        name: numpy_helper.from_array(np.float32(number), name)
        for name, number in {"r": 2**0.5, "one": 1, "half": 0.5}.items()
    }
    file.add("Div", scalar["r"])
    file.add("Erf")
    gate = file.add("Add", scalar["one"])
    file.add("Mul", gate, inputs=[x])
    y = file.add("Mul", scalar["half"])
    file.add("HardSigmoid", inputs=[y], alpha=1 / 6, beta=0.5)
    file.add("Mul", y)
    file.end(4)
    built = same(file)
    assert "nn.gelu" in operators_of(built.model).values()


@pytest.mark.parametrize(("shape", "size"), [((1, SIDE, SIDE, 3), None), (("n", 3, "h", "w"), (SIDE, SIDE))])
def test_channels_last_and_an_open_size(shape, size):
    file = File(shape)
    if shape[-1] == 3:
        file.add("Transpose", perm=[0, 3, 1, 2])
    file.conv(3, 4, pads=[1, 1, 1, 1])
    file.end(4)
    same(file, size)


def test_a_softmax_is_taken_off_and_one_sigmoid_becomes_two_classes():
    for op, classes in (("Softmax", 4), ("LogSoftmax", 4), ("Sigmoid", 1)):
        file = File()
        file.conv(3, 4)
        file.end(4, classes)
        file.add(op)
        built = same(file)
        assert built.cut == op
        assert built.model.output_shape == (None, max(classes, 2))


def refused(file, *words, size=None):
    with pytest.raises(ExportError) as error:
        build(file.model() if isinstance(file, File) else file, "net.onnx", size)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_operators_that_are_not_supported_are_named_together():
    file = File()
    file.conv(3, 4)
    file.add("Celu")
    file.add("Celu")
    file.add("Thing", domain="com.mine")
    file.end(4)
    refused(file, "2 Celu ('/Celu_1', '/Celu_2')", "1 com.mine.Thing")


def test_files_that_are_no_classifier():
    several = File()
    several.conv(3, 4)
    several.end(4)
    model = several.model()
    model.graph.output.append(helper.make_tensor_value_info("conv0.0", TensorProto.FLOAT, None))
    refused(model, "2 outputs", "not a classifier")
    for classes, op, words in ((1, None, "regression"), (3, "Sigmoid", "3 sigmoids")):
        file = File()
        file.conv(3, 4)
        file.end(4, classes)
        if op:
            file.add(op)
        refused(file, words)
    pixels = File()
    pixels.conv(3, 4)
    refused(pixels, "expected one logit per class")
    for shape, kind, words in (
        (("n", "c", SIDE, SIDE), TensorProto.FLOAT, "an open number of channels"),
        ((1, 3, SIDE, SIDE), TensorProto.UINT8, "uint8"),
        ((1, 3, "h", "w"), TensorProto.FLOAT, "--size"),
        ((1, 30), TensorProto.FLOAT, "2 axes"),
    ):
        file = File(shape, kind)
        file.end(3)
        refused(file, words)
    old = File(opset=6)
    old.end(3)
    refused(old, "opset 6, expected 7 to")


def test_what_would_take_too_much_memory_is_refused():
    bomb = File()
    bomb.add("ConstantOfShape", inputs=[bomb.initializers.append(numbers("huge", 2**20, 2**20)) or "huge"])
    bomb.add("Add", "x")
    bomb.end(3)
    refused(bomb, "too large")
    deep = File((1, 3, 1024, 1024))
    deep.conv(3, 5, kernel=1)
    deep.end(5)
    refused(deep, "elements")
    wide = File((1, 3, 1025, 8))
    wide.end(3)
    refused(wide, "more than 1,024 pixels")
    long = File()
    for _ in range(701):
        long.add("Relu")
    refused(long, "701 nodes that depend on the image")
    slow = File((1, 3, 256, 256))
    slow.conv(3, 64, kernel=63, pads=[31] * 4)
    slow.end(64)
    refused(slow, "multiply-accumulates")


@pytest.mark.guard
def test_nodes_that_become_several_layers_each_are_counted_as_layers():
    padded = File()
    for _ in range(690):
        padded.conv(3, 3, kernel=2, pads=[1, 1, 0, 0])
    padded.end(3)
    refused(padded, "one behind the other")


def test_the_longest_chain_of_layers_builds_also_where_the_calls_are_deep():
    file = File()
    for _ in range(690):
        file.add("Relu")
    file.end(3)

    def within(calls):
        return within(calls - 1) if calls else build(file.model(), "net.onnx")

    assert len(within(100).model.layers) > 690


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_with_large_tensors_answers_fewer_images_at_once(tmp_path, frozen):
    file = File((1, 3, 64, 64))
    file.conv(3, 1000, kernel=1)
    file.end(1000)
    onnx.save(file.model(), tmp_path / "net.onnx")
    model = read_model(tmp_path / "net.onnx").frozen if frozen else build(file.model(), "net.onnx").model
    assert images_at_once(model, (500, 64, 64, 3)) == ELEMENTS // (64 * 64 * 1000) < 10
    small = File((1, 3, 64, 64))
    small.end(3)
    onnx.save(small.model(), tmp_path / "net.onnx")
    model = read_model(tmp_path / "net.onnx").frozen if frozen else build(small.model(), "net.onnx").model
    assert images_at_once(model, (500, 64, 64, 3)) == PIXELS // 64**2


def test_constants_that_double_again_and_again_are_refused():
    doubling = File()
    doubling.add("Concat", "x1", inputs=[doubling.initializers.append(numbers("x1", *range(4096))) or "x1"], axis=0)
    for _ in range(30):
        doubling.add("Concat", doubling.last, axis=0)
    doubling.add("Cast", to=TensorProto.FLOAT)
    doubling.add("Mul", "x")
    doubling.end(3)
    refused(doubling, "too ")


def test_more_files_that_are_no_classifier_and_the_oldest_and_newest_that_are(tmp_path):
    two = File()
    two.conv(3, 4)
    two.end(4)
    model = two.model()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, (1, 2)))
    refused(model, "2 inputs")
    loop = File()
    loop.conv(3, 4)
    loop.add("Loop", inputs=["", "", loop.last], body=helper.make_graph([], "body", [], []))
    loop.end(4)
    refused(loop, "1 Loop")
    for opset in (7, onnx.defs.onnx_opset_version()):
        file = File(opset=opset)
        file.conv(3, 4)
        file.add("Relu")
        file.end(4)
        build(file.model(), "net.onnx")
    newer = File(opset=onnx.defs.onnx_opset_version() + 1)
    newer.end(3)
    refused(newer, "Export it with opset 17")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x80\x04\x95" + b"a pickle" * 9)
    with pytest.raises(ExportError, match="not an ONNX file"):
        read_onnx(path)
    with path.open("wb") as file:
        file.truncate(2**31)  # without a block on the disk
    with pytest.raises(ExportError, match="2,048 MiB"):
        read_onnx(path)


def test_a_loop_damage_and_half_floats(tmp_path):
    half = File()
    half.conv(3, 4)
    half.initializers[0].CopyFrom(
        numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float16), half.initializers[0].name)
    )
    half.end(4)
    refused(half, "FLOAT16")
    good = File()
    good.conv(3, 4)
    good.end(4)
    path = tmp_path / "net.onnx"
    path.write_bytes(good.model().SerializeToString()[:-20])
    with pytest.raises(ExportError):
        build(read_onnx(path), "net.onnx")
    path.write_bytes(b"PK\x03\x04 not onnx")
    with pytest.raises(ExportError, match="not an ONNX file"):
        read_onnx(path)


@pytest.fixture
def external(tmp_path):
    """Return a function that writes a file with its first weights in another file of this name, and the other file's path."""

    def write(location, **more):
        file = File()
        file.conv(3, 4)
        file.end(4)
        model = file.model()
        tensor = model.graph.initializer[0]
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(len(data)), **more}.items():
            tensor.external_data.add(key=key, value=value)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "net.onnx", data

    return write


def test_values_in_a_file_next_to_the_model(external, tmp_path):
    path, data = external("net.onnx.data")
    (tmp_path / "net.onnx.data").write_bytes(data)
    same(read_onnx(path))
    (tmp_path / "net.onnx.data").write_bytes(data[:-1])
    with pytest.raises(ExportError, match="too short"):
        read_onnx(path)
    (tmp_path / "net.onnx.data").unlink()
    (tmp_path / "secret").write_bytes(data)
    (tmp_path / "net.onnx.data").symlink_to("secret")
    with pytest.raises(ExportError, match="links are not followed"):
        read_onnx(path)
    for location in ("../net.onnx.data", "/etc/passwd", "sub/net.onnx.data"):
        path, _ = external(location)
        with pytest.raises(ExportError, match="in the model's folder"):
            read_onnx(path)


def test_a_network_that_differs_is_refused_with_its_first_node(monkeypatch):
    file = File()
    file.conv(3, 4)
    file.add("Elu")
    file.end(4)
    wrong = onnx_model.OPERATORS | {"Elu": onnx_model.OPERATORS["Relu"]}
    monkeypatch.setattr(onnx_model, "OPERATORS", wrong)
    model = file.model()
    built = build(model, "net.onnx")
    images = RANDOM.normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    with pytest.raises(ExportError, match="first node that differs is Elu '/Elu_1'"):
        require_same(built, model, "net.onnx", images)


def test_outputs_that_are_not_numbers_are_refused():
    file = File()
    file.conv(3, 4)
    file.add("Sqrt")  # of negative values
    file.end(4)
    model = file.model()
    with pytest.raises(ExportError, match="not numbers"):
        require_same(build(model, "net.onnx"), model, "net.onnx", np.ones((2, SIDE, SIDE, 3), np.float32))


def test_weights_of_pytorch_are_refused_with_the_lines_that_write_onnx(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ExportError, match=r"torch\.onnx\.export"):
        read_model(path)


def test_a_file_becomes_a_graph_with_the_same_logits(tmp_path):
    file = File()
    file.conv(3, 4)
    file.end(4)
    file.add("Softmax")
    path = tmp_path / "net.onnx"
    onnx.save(file.model(), path)
    found = read_model(path)
    images = RANDOM.normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    assert found.cut and found.what == "ONNX, opset 17"
    given = []
    assert found.check(images, lambda part: given.append(len(part)) or part) < 1e-4 and given
    built = build(read_onnx(path), "net.onnx")
    np.testing.assert_allclose(found.frozen(tf.constant(images)).numpy(), built.model(images).numpy(), atol=1e-5)
