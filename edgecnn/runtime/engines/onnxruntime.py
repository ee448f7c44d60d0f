"""ONNX Runtime, on the CPU or, if requested by name, on CUDA."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # otherwise the import writes events to ~/.cache/Microsoft
import onnxruntime

from edgecnn.bundle.file import has_external_data
from edgecnn.errors import EngineError, ProviderError
from edgecnn.runtime.engines import FEATURES, Engine, Tensor, joined_runs, opening, refusal, split_outputs
from edgecnn.versions import read_cpu

ABOUT = f"onnxruntime {onnxruntime.__version__}"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES: dict[str, np.dtype] = {
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(float)": np.dtype(np.float32),
}
METADATA = "edgecnn.quantization"
"""The metadata key for the scale and zero point of input and output. `edgecnn.export.onnx_int8` writes it; ONNX Runtime reports neither."""

ONLY_FATAL = 4
"""A session's log severity. Errors are raised, so they need not go to standard error as well."""

WITHOUT_SATURATION = "session.x64quantprecision"
"""The session entry that converts int8 weights to uint8. With uint8 activations, int8 weights saturate on x86 processors without VNNI
(Intel before Ice Lake, AMD before Zen 4). With VNNI the conversion would only cost time (resnet8: 2.5 times).
"""

VNNI = {"avx512_vnni", "avx_vnni"}


class ONNXRuntime(Engine):
    name = "onnxruntime"
    version = onnxruntime.__version__
    format = "onnx"

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        """Open a model; ProviderError if the session does not run on the provider."""
        self.provider = provider
        self._session = _session(model, num_threads, provider)
        with opening(ABOUT):
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            output, features = split_outputs(inputs, outputs, [item.name for item in outputs])
            quantization = json.loads(self._session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
            self.input = _tensor(inputs[0], quantization.get("input"))
            self.output = _tensor(output, quantization.get("output"))
            self.features = _tensor(features, quantization.get(FEATURES)) if features else None

        if self.input.shape[0] not in (-1, 1):
            raise EngineError(f"the model reads {self.input.shape[0]} images at a time; expected 1 or any number")

    def _run(self, batch: np.ndarray, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Run the model, image by image if it takes one at a time."""
        step = len(batch) if self.input.shape[0] == -1 and len(batch) else 1
        names = [tensor.name for tensor in tensors]
        try:
            runs = [
                self._session.run(names, {self.input.name: batch[start : start + step]})
                for start in range(0, len(batch), step)
            ]
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is about the model
            raise refusal(ABOUT, "run", error) from None
        return joined_runs(runs, tensors)


def _session(model: bytes, num_threads: int, provider: str) -> onnxruntime.InferenceSession:
    requested = PROVIDERS[provider]
    if requested not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"{ABOUT} has no {requested} (it has {', '.join(onnxruntime.get_available_providers())}). "
            "Install it: pip install onnxruntime-gpu, instead of onnxruntime"
        )
    if has_external_data(model):
        raise EngineError(
            "the ONNX model keeps values in another file, which edgecnn does not read. "
            "Move them into the model: onnx.save(onnx.load('model.onnx'), 'whole.onnx')"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_FATAL
    if sums_saturate():
        options.add_session_config_entry(WITHOUT_SATURATION, "1")
    with opening(ABOUT) as printed:
        # its own fallback would print to standard output and open the model a second time
        session = onnxruntime.InferenceSession(model, options, providers=[requested], enable_fallback=0)
        said = printed()
    if requested not in session.get_providers():  # it falls back to the CPU without an error
        raise ProviderError(
            f"{requested} was requested, but the session runs on {', '.join(session.get_providers())}."
            + f" onnxruntime printed: {said.strip()}" * bool(said)
        )
    return session


def sums_saturate() -> bool:
    """Return whether sums of uint8 times int8 may saturate on this processor: x86 that does not report VNNI."""
    return platform.machine().lower() in ("x86_64", "amd64") and VNNI.isdisjoint(read_cpu().flags)


def _tensor(value: onnxruntime.NodeArg, quantization: Mapping[str, Any] | None) -> Tensor:
    if value.type not in TYPES:
        raise EngineError(f"the model's {value.name!r} is {value.type}; expected one of {', '.join(TYPES)}")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    scale, zero_point = (quantization["scale"], quantization["zero_point"]) if quantization else (0, 0)
    return Tensor(value.name, shape, TYPES[value.type], float(scale), int(zero_point))
