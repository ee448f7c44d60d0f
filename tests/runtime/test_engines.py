"""Choosing and opening engines: the requested engine runs, or an error gives the reason."""

import os
import subprocess
import sys

import numpy as np
import pytest

from edgecnn.errors import EngineError, ProviderError, UnknownNameError
from edgecnn.runtime import engines
from edgecnn.runtime.engines import (
    ENGINES,
    FEATURES,
    engines_for,
    first_installed,
    offering,
    open_engine,
    split_outputs,
)
from edgecnn.runtime.engines.tflite import TFLiteEngine
from edgecnn.runtime.model import Model


@pytest.fixture
def only(monkeypatch):
    """Return `only`: after `only("litert")`, only LiteRT seems to be installed."""
    return lambda *names: monkeypatch.setattr(engines, "is_installed", lambda name: name in names)


def test_order_of_the_automatic_choice(only):
    assert engines_for("tflite") == ["litert", "tflite_runtime"]
    assert engines_for("onnx") == ["onnxruntime"]
    only("litert", "tflite_runtime", "onnxruntime")
    assert first_installed(list(ENGINES)) == "litert"
    only("tflite_runtime", "onnxruntime")
    assert first_installed(list(ENGINES)) == "tflite_runtime"


def test_unknown_engine():
    with pytest.raises(UnknownNameError, match="Did you mean 'litert'"):
        open_engine("liteRT", b"", "tflite")


def test_engine_for_another_format():
    with pytest.raises(EngineError, match=r"onnxruntime runs \.onnx models.*litert or tflite_runtime"):
        open_engine("onnxruntime", b"", "tflite")


@pytest.mark.parametrize("name", list(ENGINES))
def test_not_installed_gives_the_pip_command(only, name):
    only()
    with pytest.raises(EngineError, match=f"{name} is not installed") as error:
        open_engine(name, b"", ENGINES[name].format)
    assert ENGINES[name].install in str(error.value)


def test_none_installed_gives_every_pip_command(only):
    only()
    with pytest.raises(EngineError) as error:
        open_engine(None, b"", "tflite")
    assert all(ENGINES[name].install in str(error.value) for name in engines_for("tflite"))


def test_a_32_bit_system_is_reported_as_unsupported(only, monkeypatch):
    only()
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(EngineError, match="32-bit"):
        open_engine(None, b"", "tflite")


def test_installed_but_broken(only, monkeypatch):
    only("litert")

    def broken(name):
        raise ImportError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr(engines.importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"libfoo\.so.*pip install ai-edge-litert"):
        open_engine("litert", b"", "tflite")


def test_threads():
    with pytest.raises(EngineError, match=r"at least 1.* received 0"):
        open_engine("litert", b"", "tflite", num_threads=0)


def test_provider_that_the_engine_lacks():
    with pytest.raises(ProviderError, match="--engine onnxruntime"):
        open_engine("litert", b"", "tflite", provider="cuda")
    with pytest.raises(ProviderError, match="Did you mean 'cuda'"):
        offering(["onnxruntime"], "cudda")
    assert offering(list(ENGINES), "cuda") == ["onnxruntime"]
    assert offering(list(ENGINES), None) == list(ENGINES)


def test_numpy_2_with_tflite_runtime_is_reported_before_it_fails(only, monkeypatch):
    only("tflite_runtime")
    monkeypatch.delitem(sys.modules, "edgecnn.runtime.engines.tflite_runtime", raising=False)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(EngineError, match=r"numpy below 2, .*numpy 2\.4\.6.*pip install 'numpy<2'"):
        open_engine("tflite_runtime", b"", "tflite")


class TestLiteRT:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

    def test_tensors_are_read_from_the_file(self, tflite_models):
        engine = open_engine(None, tflite_models["int8"], "tflite")
        assert (engine.name, engine.format, engine.provider) == ("litert", "tflite", "XNNPACK")
        assert engine.version[0].isdigit()
        assert (engine.input.shape, engine.input.dtype, engine.input.zero_point) == ((1, 8, 8, 3), np.int8, 0)
        assert engine.input.scale == pytest.approx(1 / 128)
        assert engine.output.scale > 0
        assert open_engine("litert", tflite_models["float32"], "tflite").output.scale == 0
        for provider, computes in (("builtin", "built-in kernels"), ("reference", "reference kernels")):
            assert open_engine("litert", tflite_models["int8"], "tflite", provider=provider).provider == computes

    @pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
    def test_any_number_of_images(self, tflite_models, pixels, kind):
        engine = open_engine("litert", tflite_models[kind], "tflite")
        batch = {"int8": (pixels ^ 128).view(np.int8), "uint8": pixels, "float32": pixels.astype(np.float32) / 128 - 1}[
            kind
        ]
        together = engine.run(batch)
        assert together.shape == (6, 3) and together.dtype == np.dtype(kind)
        assert np.array_equal(together, np.concatenate([engine.run(batch[index : index + 1]) for index in range(6)]))
        assert len(np.unique(together, axis=0)) > 1
        assert engine.run(batch[:0]).shape == (0, 3)

    def test_a_view_of_an_array_is_read_correctly(self, tflite_models, pixels):
        engine = open_engine("litert", tflite_models["uint8"], "tflite")
        backwards = pixels[::-1, :, ::-1]
        assert np.array_equal(engine.run(backwards), engine.run(np.ascontiguousarray(backwards)))

    def test_no_model(self):
        with pytest.raises(EngineError, match="cannot open the model"):
            open_engine("litert", b"not a model at all", "tflite")

    def test_opening_prints_no_information(self, root):
        """In a new process, because LiteRT reports a new delegate only once, possibly in the middle of a progress bar."""
        code = (
            "from edgecnn import files; from edgecnn.runtime import Classifier; files.stderr_is_ours = True\n"
            "print(Classifier.load('models/digits/digits.edgecnn', engine='litert').about)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
        assert "XNNPACK" in result.stdout and result.stderr == ""

    def test_other_engine_output_is_shown(self, tflite_models, capfd, monkeypatch):
        from ai_edge_litert.interpreter import Interpreter

        class Loud(TFLiteEngine):
            name, version = "loud", "1"

        def interpreter(**arguments):
            os.write(2, b"INFO: Created a delegate.\nWARNING: it has a problem.\n")
            return Interpreter(**arguments)

        monkeypatch.setattr("edgecnn.files.stderr_is_ours", True)
        Loud(interpreter, tflite_models["int8"], 1)
        assert capfd.readouterr().err == "WARNING: it has a problem.\n"

    def test_a_name_that_is_not_utf_8(self, tflite_models, capfd):
        model = tflite_models["int8"]
        with pytest.raises(EngineError, match="cannot open the model: it is damaged: a name in it is not UTF-8"):
            open_engine("litert", model.replace(b"images", b"im\xffges"), "tflite").provider  # noqa: B018 - it is read
        assert capfd.readouterr() == ("", "")

    def test_a_name_that_moves_the_cursor(self, tflite_models, capfd):
        """The interpreter names an unknown operator in the error and on standard error."""
        import flatbuffers
        from tensorflow.lite.python import schema_py_generated as schema

        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(tflite_models["float32"], 0))
        model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32  # CUSTOM
        model.operatorCodes[0].customCode = b"\x1b[2J\nedgecnn: all is well"
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        with pytest.raises(EngineError, match="cannot open the model") as error:
            open_engine("litert", bytes(builder.Output()), "tflite")
        assert str(error.value).isprintable() and "[2J" in str(error.value)
        assert capfd.readouterr() == ("", "")

    def test_a_model_that_fails_while_running(self, tflite_models, pixels, monkeypatch):
        engine = open_engine("litert", tflite_models["uint8"], "tflite")
        for error in (RuntimeError("Node number 3 (ADD) failed to invoke."), ValueError("oh"), MemoryError()):

            def invoke(error=error):
                raise error

            monkeypatch.setattr(engine._interpreter, "invoke", invoke)
            for batch in (pixels, pixels[:1]):
                with pytest.raises(EngineError, match=r"^litert .* cannot run the model: ."):
                    engine.run(batch)

    def test_compiled_model_is_never_imported(self, tflite_models):
        open_engine("litert", tflite_models["int8"], "tflite")
        assert not [name for name in sys.modules if name.startswith("ai_edge_litert") and "compiled" in name]


class TestONNXRuntime:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

    @pytest.mark.parametrize("batch", ["batch", 1])
    @pytest.mark.parametrize("element", ["int8", "uint8"])
    def test_any_number_of_images(self, make_onnx, pixels, batch, element):
        zero_points = {"int8": (0, -7), "uint8": (128, 121)}[element]
        model = make_onnx(element, batch, zero_point=zero_points[0], output_zero_point=zero_points[1])
        engine = open_engine(None, model, "onnx")
        assert (engine.name, engine.provider, engine.input.shape[0]) == (
            "onnxruntime",
            "cpu",
            -1 if batch == "batch" else 1,
        )
        assert (engine.input.scale, engine.input.zero_point) == (pytest.approx(1 / 128), zero_points[0])
        assert (engine.output.scale, engine.output.zero_point) == (0.25, zero_points[1])
        batch_of = (pixels ^ 128).view(np.int8) if element == "int8" else pixels
        expected = np.rint((pixels.astype(np.float64) / 128 - 1).mean(axis=(1, 2)) * 4 / 0.25) + zero_points[1]
        assert np.array_equal(engine.run(batch_of), expected)
        assert engine.run(batch_of[:0]).shape == (0, 3)

    def test_float(self, make_onnx, pixels):
        engine = open_engine("onnxruntime", make_onnx("float32"), "onnx", num_threads=2)
        real = pixels.astype(np.float32) / 128 - 1
        assert engine.output.scale == 0
        assert np.allclose(engine.run(real), real.mean(axis=(1, 2)) * 4, atol=1e-5)

    def test_metadata(self, make_onnx, contract):
        """The file's metadata on its scales. A quantized model without it has no scales, and no bundle accepts it."""
        without = open_engine("onnxruntime", make_onnx(metadata=False), "onnx")
        assert (without.input.scale, without.output.scale) == (0.0, 0.0)
        with pytest.raises(EngineError, match="input has scale 0 and zero point 0"):
            Model(without, contract)
        for text in ("{", "[]", "3", '{"input": 3}', '{"input": {"scale": "x", "zero_point": 0}}', "[" * 100_000):
            with pytest.raises(EngineError):
                open_engine("onnxruntime", make_onnx(metadata=text), "onnx")

    def test_refused_models(self, make_onnx):
        with pytest.raises(EngineError, match="cannot open the model"):
            open_engine("onnxruntime", make_onnx()[:-40], "onnx")
        with pytest.raises(EngineError, match="reads 4 images at a time"):
            open_engine("onnxruntime", make_onnx(batch=4), "onnx")

    def test_damaged_models_print_nothing(self, make_onnx, capfd):
        """ONNX Runtime's own fallback printed four lines to standard output, among the results."""
        model = make_onnx()
        for damaged in (model.replace(b"pixels", b"pix\xffls"), model.replace(b"Transpose", b"Tr\xffnspose")):
            assert damaged != model
            with pytest.raises(EngineError, match="not UTF-8"):
                open_engine("onnxruntime", damaged, "onnx")
        assert capfd.readouterr() == ("", "")

    def test_a_model_that_fails_while_running(self, pixels, capfd):
        """An impossible reshape, which shows only once a batch arrives."""
        onnx = pytest.importorskip("onnx", reason="test models are made with onnx")
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            [helper.make_node("Reshape", ["pixels", "shape"], ["logits"])],
            "impossible",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 8, 8, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 5])],
            [numpy_helper.from_array(np.array([-1, 5]), "shape")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        engine = open_engine("onnxruntime", model.SerializeToString(), "onnx")
        with pytest.raises(EngineError, match=r"^onnxruntime .* cannot run the model: .*Reshape") as error:
            engine.run(pixels.astype(np.float32))
        assert len(str(error.value).splitlines()) == 1
        assert capfd.readouterr() == ("", "")

    def test_any_exception_is_reported(self, make_onnx, monkeypatch):
        """Its exceptions have no base class other than Exception."""
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        assert len(kinds) >= 10
        for kind in [*kinds, RuntimeError, IndexError, MemoryError]:

            def session(*_, kind=kind, **__):
                raise kind("oh")

            with monkeypatch.context() as patch:
                patch.setattr(onnxruntime, "InferenceSession", session)
                with pytest.raises(EngineError, match="cannot open the model: oh"):
                    open_engine("onnxruntime", make_onnx(), "onnx")

    def test_an_input_type_that_is_not_for_pixels(self, make_onnx, monkeypatch):
        from edgecnn.runtime.engines import onnxruntime as module

        monkeypatch.delitem(module.TYPES, "tensor(int8)")
        with pytest.raises(EngineError, match=r"'pixels' is tensor\(int8\)"):
            open_engine("onnxruntime", make_onnx(), "onnx")

    def test_cuda_that_is_missing(self, make_onnx):
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has CUDA")
        with pytest.raises(ProviderError, match="pip install onnxruntime-gpu"):
            open_engine("onnxruntime", make_onnx(), "onnx", provider="cuda")

    def test_cuda_that_falls_back_is_an_error_with_the_reason(self, make_onnx, monkeypatch):
        """With the CUDA package but no CUDA libraries, ONNX Runtime prints the reason and continues on the CPU."""
        import os

        import onnxruntime

        real = onnxruntime.InferenceSession

        def session(model, options, providers, **kwargs):
            assert providers == ["CUDAExecutionProvider"]
            os.write(2, b"libcublasLt.so.12: cannot open shared object file\n")
            return real(model, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr("edgecnn.files.stderr_is_ours", True)
        with pytest.raises(ProviderError, match=r"runs on CPUExecutionProvider.*libcublasLt\.so\.12"):
            open_engine("onnxruntime", make_onnx(), "onnx", provider="cuda")


def test_a_second_output_is_the_features_or_the_model_is_refused():
    assert split_outputs(["image"], ["scores"], ["scores"]) == ("scores", None)
    assert split_outputs(["image"], ["scores", "vector"], ["scores", FEATURES]) == ("scores", "vector")
    for inputs, outputs in (
        (1, ["scores", "boxes"]),
        (2, ["scores", FEATURES]),
        (1, []),
        (1, ["scores", FEATURES, "boxes"]),
    ):
        with pytest.raises(EngineError):
            split_outputs(["image"] * inputs, outputs, outputs)


def test_onnxruntime_leaves_no_database_of_events_behind(root, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    environment = {
        name: text for name, text in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    command = [sys.executable, "-c", "import edgecnn.runtime.engines.onnxruntime"]
    subprocess.run(command, cwd=root, env={**environment, "HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())
