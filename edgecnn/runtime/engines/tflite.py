"""The shared code of the two TFLite engines, which have the same `Interpreter`."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecnn.labels import printable
from edgecnn.runtime.engines import Engine, Tensor, joined_runs, opening, refusal, split_outputs


class TFLiteEngine(Engine):
    """A TFLite model in an `Interpreter`. It runs one image at a time, under a lock. A subclass sets `name` and `version`."""

    format = "tflite"

    def __init__(self, interpreter_class: Any, model: bytes, num_threads: int) -> None:
        """Open a model. `num_threads` is required because the interpreter reads None as one thread."""
        self.about = f"{self.name} {self.version}"
        with opening(self.about) as printed:
            self._interpreter = interpreter_class(model_content=model, num_threads=num_threads)
            self._interpreter.allocate_tensors()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            output, features = split_outputs(inputs, outputs, [item["name"] for item in outputs])
            self._lock = threading.Lock()
            self.input, self.output = _tensor(inputs[0]), _tensor(output)
            self.features = _tensor(features) if features else None
            self._input, self._outputs = inputs[0]["index"], {item["name"]: item["index"] for item in outputs}
            lines = printed().splitlines()
        # "INFO: Created TensorFlow Lite XNNPACK delegate for CPU." would break a progress bar; LiteRT has no setting to silence it
        sys.stderr.writelines(f"{printable(line)}\n" for line in lines if not line.startswith("INFO: "))

    @property
    def provider(self) -> str:  # type: ignore[override]
        """What computes: "XNNPACK" if its delegate took over operators, else "built-in kernels"."""
        with opening(self.about), self._lock:
            operators = self._interpreter._get_ops_details()  # no public call returns this
        return "XNNPACK" if any(item["op_name"] == "DELEGATE" for item in operators) else "built-in kernels"

    def _run(self, batch: np.ndarray, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        interpreter, runs = self._interpreter, []
        indices = [self._outputs[tensor.name] for tensor in tensors]
        try:
            for image in [batch] if len(batch) == 1 else [batch[start : start + 1] for start in range(len(batch))]:
                with self._lock:
                    interpreter.set_tensor(self._input, image)
                    interpreter.invoke()
                    runs.append(list(map(interpreter.get_tensor, indices)))
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is about the model
            raise refusal(self.about, "run", error) from None
        return joined_runs(runs, tensors)


def _tensor(details: dict[str, Any]) -> Tensor:
    scale, zero_point = details["quantization"]
    shape = tuple(map(int, details["shape"]))
    # -1 for a size that the file leaves open, which `shape` has as 1
    signature = tuple(map(int, details.get("shape_signature", shape)))
    if len(signature) == len(shape):
        shape = shape[:1] + signature[1:]
    return Tensor(details["name"], shape, np.dtype(details["dtype"]), float(scale), int(zero_point))
