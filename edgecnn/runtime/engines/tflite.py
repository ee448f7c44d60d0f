"""What the two TFLite engines share: they have the same `Interpreter`."""

import sys
import threading
from typing import Any

import numpy as np

from edgecnn.errors import EngineError
from edgecnn.files import quiet_stderr
from edgecnn.labels import printable
from edgecnn.runtime.engines import Tensor, refusal, split_outputs


class TFLiteEngine:
    """A TFLite model in an `Interpreter`, one image at a time.

    An interpreter has one input and one output tensor, and refuses to run while another thread is in one of its calls. So a lock is held
    from writing the input to copying the output: threads take turns, each with its own answer.

    A subclass gives `name` and `version`, and imports its interpreter.
    """

    name: str
    version: str
    format = "tflite"

    def __init__(self, interpreter_class: Any, model: bytes, num_threads: int) -> None:
        """Open a model.

        Args:
            interpreter_class: the engine's `Interpreter`.
            model: a TFLite file's bytes.
            num_threads: given explicitly, since the interpreter takes None for 1.

        Raises:
            EngineError: if the interpreter refuses the model.
        """
        failed: EngineError | None = None
        with quiet_stderr() as printed:
            try:
                self._open(interpreter_class, model, num_threads)
            except EngineError as error:
                failed = error
            except Exception as error:  # noqa: BLE001 - whatever the interpreter raises, it is about the model
                failed = refusal(f"{self.name} {self.version}", "open", error)
            lines = printed().splitlines()
        if failed:
            raise failed
        # "INFO: Created TensorFlow Lite XNNPACK delegate for CPU." would land in the middle of a progress bar; LiteRT has no setting for it
        sys.stderr.writelines(f"{printable(line)}\n" for line in lines if not line.startswith("INFO: "))

    def _open(self, interpreter_class: Any, model: bytes, num_threads: int) -> None:
        self._interpreter = interpreter_class(model_content=model, num_threads=num_threads)
        self._interpreter.allocate_tensors()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        output, features = split_outputs(inputs, outputs, [item["name"] for item in outputs])
        self._lock = threading.Lock()
        self._input_index, self._output_index = inputs[0]["index"], output["index"]
        self.input, self.output = _tensor(inputs[0]), _tensor(output)
        self.features = _tensor(features) if features else None
        self._features_index = features["index"] if features else None

    @property
    def provider(self) -> str:
        """What computes: "XNNPACK" where its delegate took operators over, else "built-in kernels"."""
        try:
            with self._lock:
                operators = self._interpreter._get_ops_details()  # there is no public call for it
        except Exception as error:  # noqa: BLE001 - as above
            raise refusal(f"{self.name} {self.version}", "open", error) from None
        return "XNNPACK" if any(item["op_name"] == "DELEGATE" for item in operators) else "built-in kernels"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the model on each image of a batch. See `Engine.run`."""
        try:
            return self._run(batch)
        except Exception as error:  # noqa: BLE001 - as above
            raise refusal(f"{self.name} {self.version}", "run", error) from None

    def run_both(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the model on each image of a batch and return its features as well. See `Engine.run_both`."""
        assert self.features is not None
        outputs = np.empty((len(batch), *self.output.shape[1:]), self.output.dtype)
        features = np.empty((len(batch), *self.features.shape[1:]), self.features.dtype)
        try:
            for index in range(len(batch)):
                with self._lock:
                    outputs[index] = self._invoke(batch[index : index + 1])[0]
                    features[index] = self._interpreter.get_tensor(self._features_index)[0]
        except Exception as error:  # noqa: BLE001 - as above
            raise refusal(f"{self.name} {self.version}", "run", error) from None
        return outputs, features

    def _run(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) == 1:
            return self._run_one(batch)
        outputs = np.empty((len(batch), *self.output.shape[1:]), self.output.dtype)
        for index in range(len(batch)):
            outputs[index] = self._run_one(batch[index : index + 1])[0]
        return outputs

    def _run_one(self, image: np.ndarray) -> np.ndarray:
        """Run the model on one image and return a copy of its output, shape (1, num_classes)."""
        with self._lock:
            return self._invoke(image)

    def _invoke(self, image: np.ndarray) -> np.ndarray:
        """Run the model on one image while the lock is held."""
        self._interpreter.set_tensor(self._input_index, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output_index)


def _tensor(details: dict[str, Any]) -> Tensor:
    scale, zero_point = details["quantization"]
    shape = tuple(map(int, details["shape"]))
    return Tensor(details["name"], shape, np.dtype(details["dtype"]), float(scale), int(zero_point))
