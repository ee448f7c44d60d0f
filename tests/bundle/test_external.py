"""A model whose values are in another file is refused: no hash covers them."""

import dataclasses

import pytest

from edgecnn.bundle.external import INNER, has_external_data
from edgecnn.bundle.read import parse_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.errors import BundleError, EngineError
from edgecnn.runtime.engines import open_engine

onnx = pytest.importorskip("onnx", reason="the models are made with onnx")


def external(tensor, location="secret.bin"):
    """Move a tensor's values to another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def places(model):
    """Yield a name and a new tensor for each place in a model that can hold a tensor, three levels deep."""
    node = model.graph.node.add(name="a node", op_type="If")
    inner = node.attribute.add(name="then_branch").g
    yield "initializer", model.graph.initializer.add()
    yield "sparse initializer", model.graph.sparse_initializer.add().values
    yield "constant", node.attribute.add(name="value").t
    yield "constants", node.attribute.add(name="values").tensors.add()
    yield "inner initializer", inner.initializer.add()
    yield "inner constant", inner.node.add().attribute.add().sparse_tensors.add().indices
    yield "function", model.functions.add().node.add().attribute.add().graphs.add().initializer.add()
    yield "training", model.training_info.add().algorithm.initializer.add()


def test_the_fields_match_onnx():
    """Every message that leads to a tensor, through each of its fields."""
    fields, waiting = {}, [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name not in fields:
            fields[message.name] = {field.number: field.message_type for field in message.fields if field.message_type}
            waiting += fields[message.name].values()
    leading: set[str] = set()
    found = {"TensorProto"}
    while found != leading:
        leading = found
        found = leading | {
            name for name, inner in fields.items() if any(item.name in leading for item in inner.values())
        }
    short = {
        name: name.removesuffix("Proto").removesuffix("Info").removesuffix("Tensor").lower() or "tensor"
        for name in leading
    }
    expected = {
        short[name]: {number: short[item.name] for number, item in fields[name].items() if item.name in leading}
        for name in leading
    }
    assert expected == INNER


@pytest.mark.parametrize("index", range(8))
def test_external_data_is_detected_anywhere(make_onnx, index):
    model = onnx.load_from_string(make_onnx())
    model.graph.doc_string = "its location is not another file's"
    tensors = list(places(model))
    assert not has_external_data(model.SerializeToString())
    external(tensors[index][1])
    assert has_external_data(model.SerializeToString()), tensors[index][0]


def test_bytes_that_cannot_be_parsed_are_refused(make_onnx):
    data = make_onnx()
    assert has_external_data(data[:4] + b"ORTM" + data[8:]), "ONNX Runtime's own format"
    for damage in (b"\x0alocation", b"\x0blocation", b"\xff" * 11 + b"location", b"\x38\x01location"):
        assert has_external_data(damage)


def test_neither_an_engine_nor_a_bundle_accepts_it(make_onnx, content, tmp_path, monkeypatch):
    """ONNX Runtime would read the file from the working directory."""
    model = onnx.load_from_string(make_onnx())
    external(model.graph.initializer[0])
    data = model.SerializeToString()
    with pytest.raises(EngineError, match="values in another file"):
        open_engine("onnxruntime", data, "onnx")
    manifest, files = content
    entry = dataclasses.replace(manifest.models[0], file="models/int8.onnx", format="onnx")
    manifest = dataclasses.replace(manifest, models=(entry, *manifest.models[1:]), defaults={})
    files = {**files, entry.file: data}
    del files[manifest.models[0].file.replace("onnx", "tflite")]
    with pytest.raises(BundleError, match=r"models/int8\.onnx has values in another file"):
        write_bundle(tmp_path / "a.edgecnn", manifest, files)
    write_bundle(tmp_path / "a.edgecnn", manifest, {**files, entry.file: make_onnx()})
    assert parse_bundle((tmp_path / "a.edgecnn").read_bytes(), tmp_path).manifest.models[0] == entry
