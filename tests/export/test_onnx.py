"""ONNX files, and the quantization of others' files."""

import functools
import itertools
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are read with onnx")
pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecnn.bundle.manifest import InputContract
from edgecnn.errors import ExportError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path, onnx_int8
from edgecnn.export import onnx as onnx_export
from edgecnn.export.given import quantization
from edgecnn.export.onnx_int8 import FOLD, fold
from edgecnn.export.tflite import int8 as tflite_int8
from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.pixels import to_codes, to_real
from edgecnn.recipe import Recipe
from edgecnn.runtime.engines import open_engine
from edgecnn.train.loop import Batches
from edgecnn.train.phases import fake_quantize
from edgecnn.train.ranges import calibrate
from edgecnn.verify.golden import golden_images
from edgecnn.verify.model_files import open_model_file

layers = keras.layers
IN_FLOAT = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "GlobalAveragePool",
    "AveragePool",
    "Relu",
    "Concat",
}
"""Operators that must not remain between float tensors once ONNX Runtime has fused the graph."""


@functools.cache
def images_of(shape):
    """Return 64 images, from flat to noise: on pure noise, random weights would answer the same for all."""
    size = dict(zip(("height", "width", "channels"), shape, strict=True))
    contract = InputContract(**size, fit="crop", scale=1 / 128, zero_point=0)
    return np.concatenate([golden_images(contract, seed) for seed in (1, 2)])


def with_larger_weights(model):
    """Scale a model's kernels up so that not all sigmoids are near one half."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(3 * layer.kernel)
    return model


def trained_quantized(name, shape, options=None):
    """Return a calibrated fake-quantized network with random weights."""
    keras.utils.set_random_seed(4)
    return calibrated(with_larger_weights(build_network(name, *shape, 10, options)), shape)


def calibrated(model, shape):
    """Return a network's fake-quantized form, its ranges calibrated on 64 images."""
    recipe = Recipe()
    images = images_of(shape)
    data = Batches(images=images, classes=np.zeros(len(images), np.int64), batch_size=16, seed=1, flip=False, shift=0)
    model = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    with patch("edgecnn.train.ranges.CALIBRATION_BATCHES", 10):  # this is quicker, and the weights are random anyway
        calibrate(model, recipe, data)
    return model


def assign_range(model, ending, value):
    """Set the variables whose name ends this way, one end of the activation ranges, to a value."""
    chosen = [variable for variable in model.variables if variable.name.endswith(ending)]
    assert chosen, f"no variable ends in {ending}: {[variable.name for variable in model.variables]}"
    for variable in chosen:
        variable.assign(value)


def clips(tflite):
    """Return the Clip nodes of a TFLite file converted to ONNX."""
    return [node for node in onnx.load_from_string(onnx_export.int8(tflite)).graph.node if node.op_type == "Clip"]


def post_quantized(model, io=tf.int8):
    """Return the int8 TFLite file of any Keras model with random weights, calibrated on random images."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    real = to_real(images_of(model.input_shape[1:]), 1 / 128, 0)
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in real)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = io
    return converter.convert()


def small(build, shape=(12, 12, 3)):
    """Return a Keras model: the image goes through `build`, then to five logits, unless `build` returns a vector."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input(shape)
    x = build(inputs)
    return keras.Model(inputs, x if len(x.shape) == 2 else layers.Dense(5)(layers.Flatten()(x)))


def codes_of(engine, images):
    """Return an engine's output as int8 codes in int32."""
    outputs = engine.run(images if engine.input.dtype == np.uint8 else to_codes(images))
    return outputs.astype(np.int32) - (128 if outputs.dtype == np.uint8 else 0)


def built_in(tflite, images):
    """Return the int8 codes from LiteRT's built-in kernels, without XNNPACK."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=tflite, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    codes = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], to_codes(image)[np.newaxis])
        interpreter.invoke()
        codes.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].astype(np.int32))
    return np.array(codes)


def compared(tflite, images):
    """Return the ONNX and TFLite engines and the largest difference in codes for each image."""
    engines = [
        open_engine("onnxruntime", onnx_export.int8(tflite), "onnx"),
        open_engine("litert", tflite, "tflite"),
    ]
    ours, theirs = (codes_of(engine, images) for engine in engines)
    assert len(np.unique(theirs)) > 20, "an output that hardly varies would prove nothing"
    return engines, np.abs(ours - theirs).max(axis=1)


def optimised(data, tmp_path):
    """Return the graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimised.onnx").graph


NETWORKS = [
    ("article", (20, 24, 3)),
    pytest.param("article", (16, 16, 1), marks=pytest.mark.slow),
    pytest.param("resnet8", (32, 32, 3), marks=pytest.mark.slow),
    pytest.param("resnet8", (17, 23, 1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_int8_reproduces_the_tflite_files_codes_and_runs_in_integers(name, shape, tmp_path):
    tflite = tflite_int8(trained_quantized(name, shape))
    (ours, theirs), difference = compared(tflite, images_of(shape))
    # one of two kernels may round a tie the other way: one code, and rarely
    assert difference.max() <= 1
    assert np.mean(difference == 0) > 0.9
    assert (ours.input.dtype, ours.input.scale, ours.input.zero_point) == (np.uint8, 1 / 128, 128)
    assert ours.output.scale == pytest.approx(theirs.output.scale)
    assert ours.output.zero_point == theirs.output.zero_point + 128
    stated = ((ours.input.scale, ours.input.zero_point), (ours.output.scale, ours.output.zero_point))
    assert stated == quantization(onnx_export.int8(tflite)), "the metadata matches the graph"

    operators = Counter(node.op_type for node in optimised(onnx_export.int8(tflite), tmp_path).node)
    assert not IN_FLOAT - {"Concat"} & set(operators), operators
    assert operators["QLinearConv"] == (3 if name == "article" else 9)
    assert operators["QGemm"] == (2 if name == "article" else 1)
    assert operators["QLinearAdd"] == (0 if name == "article" else 3)
    assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == 0, operators


def test_the_file_is_valid_deterministic_and_takes_any_batch(finished_run):
    tflite = export_path(finished_run, "tflite", "int8").read_bytes()
    data = export_path(finished_run, "onnx", "int8").read_bytes()
    assert onnx_export.int8(tflite) == data
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == onnx_int8.OPSET
    entry = model.graph.input[0].type.tensor_type
    assert entry.elem_type == model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_param or size.dim_value for size in entry.shape.dim] == ["batch", 8, 8, 1]

    read = {name for node in model.graph.node for name in node.input} | {"logits"}
    assert all(set(node.output) <= read for node in model.graph.node), "a node that nobody reads"
    assert {item.name for item in model.graph.initializer} <= read

    int8 = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8}
    readers = Counter(name for node in model.graph.node for name in node.input if name in int8)
    # on x86 without VNNI, ONNX Runtime 1.32 refuses shared ones: it turns them into uint8 so that sums do not saturate
    assert int8 and set(readers.values()) == {1}

    contract = input_contract(finished_run)
    images = images_of((contract.height, contract.width, contract.channels))[:7]
    engine = open_engine("onnxruntime", data, "onnx")
    together = engine.run(images)
    assert together.shape == (7, 10)
    np.testing.assert_array_equal(together, np.concatenate([engine.run(images[i : i + 1]) for i in range(7)]))


def block(x):
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu")(x)
    return layers.SeparableConv2D(12, 5, padding="same", activation="relu")(x)


def branches(x):
    x = layers.Conv2D(6, 1, activation="relu")(x)
    left, right = layers.Conv2D(4, 3, padding="same")(x), layers.Conv2D(5, (1, 3), padding="same", activation="tanh")(x)
    return layers.Concatenate()([left, right, x])


def moved(x):
    """Max pooling of the input, a reshape, and padding along channels."""
    x = layers.Reshape((3, 12, 3))(layers.MaxPooling2D(2)(x))
    return layers.Conv2D(4, 3)(tf.pad(x, [[0, 0], [0, 0], [1, 0], [0, 2]]))


def averaged(x):
    x = layers.AveragePooling2D(3, 2, "same")(layers.Conv2D(7, 3)(x))
    return layers.Flatten()(layers.AveragePooling2D(5)(x))


def squeezed(x):
    x = layers.Conv2D(8, 3, activation="relu")(x)
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, gate])


OPERATORS = {
    "strides, ReLU6, depthwise and separable": (block, {}),
    "max pooling first, reshape, padding along channels": (moved, {}),
    "four channels": (block, {"shape": (9, 11, 4)}),
    "two channels": (block, {"shape": (9, 11, 2)}),
    "concatenation, 1x1, tanh": (branches, {}),
    "gating by a product": (squeezed, {}),
    "padding": (lambda x: layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (2, 1)))(x)), {}),
    "constants": (lambda x: layers.Conv2D(8, 3)(layers.Rescaling([0.5, 1.5, 1.0], [0.1, 0.0, -0.2])(x)), {}),
    "difference": (lambda x: layers.Subtract()([layers.Conv2D(4, 3)(x), layers.Conv2D(4, 3)(x)]), {}),
    "uneven average pooling, logits by average pooling": (averaged, {}),
    "uneven max pooling": (lambda x: layers.MaxPooling2D(3, 2, "same")(layers.Conv2D(4, 3)(x)), {}),
    "average pooling first": (lambda x: layers.Conv2D(4, 3)(layers.AveragePooling2D(2)(x)), {}),
    "a grouped convolution": (lambda x: layers.Conv2D(8, 3, groups=2)(x), {"shape": (12, 12, 4)}),
    "no bias": (lambda x: layers.Conv2D(8, 3, use_bias=False)(x), {}),
    "ReLU by itself": (lambda x: layers.ReLU(6.0)(layers.MaxPooling2D(2)(layers.Conv2D(6, 3)(x))), {}),
    "logits by global pooling": (lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(7, 3)(x)), {}),
}
BY_DEFAULT = (
    "strides, ReLU6, depthwise and separable", "max pooling first, reshape, padding along channels", "concatenation, 1x1, tanh",
    "gating by a product", "uneven average pooling, logits by average pooling",
)  # fmt: skip


@pytest.mark.parametrize(
    "build, options",
    [pytest.param(*case, marks=() if name in BY_DEFAULT else pytest.mark.slow) for name, case in OPERATORS.items()],
    ids=OPERATORS,
)
def test_every_operator_reproduces_the_tflite_files_codes(build, options):
    model = small(build, **options)
    tflite = post_quantized(model)
    (ours, theirs), difference = compared(tflite, images_of(model.input_shape[1:]))
    assert difference.max() <= 1
    assert (ours.input.scale, ours.output.scale) == pytest.approx((theirs.input.scale, theirs.output.scale))
    assert (ours.input.zero_point, ours.output.zero_point) == (
        theirs.input.zero_point + 128,
        theirs.output.zero_point + 128,
    )


def test_softmax_inside_and_uint8_outside():
    model = small(lambda x: layers.Softmax()(layers.Dense(5, kernel_initializer="he_normal")(layers.Flatten()(x))))
    tflite = post_quantized(model, tf.uint8)
    ours, theirs = (
        open_engine(None, data, format_).run(images_of(model.input_shape[1:])).astype(int)
        for data, format_ in ((onnx_export.int8(tflite), "onnx"), (tflite, "tflite"))
    )
    assert np.abs(ours - theirs).max() <= 1


def test_relu6_ends_at_6_even_if_its_codes_go_further():
    """Its range ends at 9, and activations go beyond 6: without the bound, or with a different one, outputs change."""
    shape = (12, 12, 3)
    model = small(
        lambda x: layers.GlobalAveragePooling2D()(layers.ReLU(6.0, name="bounded")(layers.Conv2D(8, 3)(x))), shape
    )
    kernel = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D)).kernel
    kernel.assign(12 * kernel)
    model = calibrated(model, shape)
    assign_range(model, "bounded/output_max:0", 9.0)
    tflite = tflite_int8(model)
    (clip,) = clips(tflite)
    (bound,) = [
        int(onnx.numpy_helper.to_array(item))
        for item in onnx.load_from_string(onnx_export.int8(tflite)).graph.initializer
        if item.name == clip.input[2]
    ]
    assert bound == round(6 / 9 * 255)
    _, difference = compared(tflite, images_of(shape))
    assert difference.max() <= 1


def test_relu_is_free_if_the_smallest_code_is_zero_and_a_clip_otherwise():
    """A calibrated range begins at 0 after ReLU; if it is moved off 0, the ReLU needs a Clip."""
    shape = (12, 12, 3)
    model = calibrated(small(lambda x: layers.Conv2D(4, 3, activation="relu")(x), shape), shape)
    free = onnx.load_from_string(onnx_export.int8(tflite_int8(model)))
    assert not [node for node in free.graph.node if node.op_type in ("Clip", "Relu")]
    assign_range(model, "post_activation_min:0", -0.2)
    assert len(clips(tflite_int8(model))) == 1


def test_an_operator_without_a_translation_is_named():
    tflite = post_quantized(small(lambda x: layers.Conv2DTranspose(3, 3)(x)))
    with pytest.raises(ExportError, match=r"holds TRANSPOSE_CONV, which edgecnn cannot convert to ONNX int8"):
        onnx_export.int8(tflite)


def test_a_float_file_is_refused_and_names_the_tensor(finished_run):
    with pytest.raises(ExportError, match=r"is FLOAT32 with 0 scales, expected INT8 with one scale"):
        onnx_export.int8(export_path(finished_run, "tflite", "float32").read_bytes())


def test_an_image_to_image_model_is_refused():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ExportError, match="expected one image to one vector"):
        onnx_export.int8(post_quantized(keras.Model(inputs, layers.Conv2D(4, 3)(inputs))))


def convolve(image, kernel, pads):
    """Convolve (channels, height, width) with (outputs, channels, height, width)."""
    top, left, bottom, right = pads
    padded = np.pad(image.astype(int), ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, kernel.astype(int))


def test_a_folded_convolution_adds_up_the_same_integers():
    random = np.random.default_rng(3)
    folded = 0
    for width, columns, left, right in itertools.product((8, 11, 12, 16), (1, 2, 3, 5, 8), range(4), range(4)):
        out_width = width + left + right - columns + 1
        if out_width < 1 or max(left, right) >= columns:
            continue
        kernel = random.integers(-127, 128, (3, 2, 2, columns), np.int8)
        result = fold(kernel, [0, left, 1, right], width, out_width)
        if width % FOLD or out_width % FOLD:
            assert result is None
            continue
        image = random.integers(-128, 128, (2, 5, width), np.int8)
        groups = image.reshape(2, 5, width // FOLD, FOLD).transpose(3, 0, 1, 2).reshape(FOLD * 2, 5, -1)
        outputs = convolve(groups, *result)
        outputs = outputs.reshape(FOLD, 3, 5, -1).transpose(1, 2, 3, 0).reshape(3, 5, -1)
        np.testing.assert_array_equal(outputs, convolve(image, kernel, [0, left, 1, right]))
        folded += 1
    assert folded > 20


@pytest.mark.parametrize("raw", [True, False], ids=["raw data", "typed data"])
@pytest.mark.parametrize(("element", "zero_point"), [("int8", -128), ("int8", 127), ("uint8", 0), ("uint8", 255)])
def test_input_and_output(make_onnx, raw, element, zero_point):
    model = make_onnx(
        element, raw=raw, scale=0.0078125, zero_point=zero_point, output_scale=0.1, output_zero_point=zero_point
    )
    assert quantization(model) == ((0.0078125, zero_point), (float(np.float32(0.1)), zero_point))


def test_a_float_file_has_no_scales(make_onnx):
    assert quantization(make_onnx("float32")) == ((0.0, 0), (0.0, 0))


def test_default_zero_point_and_per_channel_scales(make_onnx):
    model = onnx.ModelProto.FromString(make_onnx())
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    del quantize.input[2]
    assert quantization(model.SerializeToString())[1] == (0.25, 0)
    scale = next(item for item in model.graph.initializer if item.name == "out_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "out_scale"))
    assert quantization(model.SerializeToString())[1] == (0.0, 0)


def test_a_file_without_metadata_is_compared_using_its_graph(make_onnx, tmp_path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(make_onnx("uint8", zero_point=128, output_zero_point=5, metadata=False))
    opened = open_model_file(path)
    assert (opened.input.scale, opened.input.zero_point) == (1 / 128, 128)
    assert (opened.output.scale, opened.output.zero_point) == (0.25, 5)
