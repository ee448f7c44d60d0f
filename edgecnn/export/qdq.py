"""Builds an ONNX graph of quantize and dequantize nodes (QDQ) from a TFLite file's tensors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import Graph, Tensor

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT, FEATURES = "pixels", "logits", "features"
"""Names of the input, the output, and the optional second output: the features that the last layer reads."""

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
OFFSETS = {"INT8": 128, "UINT8": 0}
"""Offset that turns an activation's codes into uint8, by the TFLite file's type."""

ACTIVATIONS: dict[int, tuple[float | None, float | None]] = {0: (None, None), 1: (0, None), 2: (-1, 1), 3: (0, 6)}


def zero_point(tensor: Tensor) -> int:
    return int(tensor.zero_point[0]) + OFFSETS[tensor.type]


class Builder:
    """An ONNX graph under construction. `codes` names the uint8 value of each TFLite tensor."""

    def __init__(self, source: Graph) -> None:
        shapes = [[tensor.shape for tensor in tensors] for tensors in (source.inputs, source.outputs)]
        if [[len(shape) for shape in side] for side in shapes] not in ([[4], [2]], [[4], [2, 2]]):
            raise ExportError(f"the TFLite file maps {shapes[0]} to {shapes[1]}, expected one image to one vector")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.codes: dict[int, str] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._reals: dict[tuple[str, ...], str] = {}
        self._count = 0
        self._outputs = source.outputs
        self._entry = source.inputs[0]
        self._flat = {self._entry.index: INPUT}

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        import onnx

        self._count += 1
        name = f"{op_type.lower()}_{self._count}"
        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any, *, shared: bool = True) -> str:
        """Return the name of an initializer with these values. It is reused unless it must not be shared."""
        import onnx

        array = np.asarray(values, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if not shared or key not in self._names:
            name = f"{array.dtype}_{len(self.constants) + 1}"
            self.constants.append(onnx.numpy_helper.from_array(array, name))
            if not shared:
                return name
            self._names[key] = name
        return self._names[key]

    def parameters(self, tensor: Tensor) -> list[str]:
        """Return the names of an activation's scale and uint8 zero point. Raises ExportError unless it has 8 bits and one scale."""
        if tensor.type not in OFFSETS or len(tensor.scale) != 1:
            quantization = f"{tensor.type} with {len(tensor.scale)} scales"
            raise ExportError(f"the TFLite tensor {tensor.name!r} is {quantization}, expected INT8 with one scale")
        return [self.constant(tensor.scale[0], np.float32), self.constant(zero_point(tensor), np.uint8)]

    def code(self, tensor: Tensor, rank: int | None = None) -> str:
        """Return the name of a tensor's uint8 value; a constant gets `rank` dimensions."""
        self.parameters(tensor)
        if tensor.data is None:
            if rank not in (None, len(tensor.shape)):
                raise ExportError(f"{tensor.name!r} has the shape {tensor.shape}, expected {rank} dimensions")
            if tensor.index not in self.codes:
                self.codes[tensor.index] = self.add("Transpose", [self._flat[tensor.index]], perm=TO_NCHW)
            return self.codes[tensor.index]
        shape = (1,) * ((rank or 0) - tensor.data.ndim) + tensor.data.shape
        values = (tensor.data.astype(np.int16) + OFFSETS[tensor.type]).reshape(shape)
        return self.constant(values.transpose(TO_NCHW) if values.ndim == 4 else values, np.uint8)

    def real(self, tensor: Tensor, rank: int | None = None) -> str:
        """Return the name of a tensor's real value, after one DequantizeLinear."""
        return self.dequantize(self.code(tensor, rank), tensor)

    def dequantize(self, code: str, like: Tensor) -> str:
        """Return the name of the real value of codes with a tensor's scale and zero point. The node is made once."""
        value = (code, *self.parameters(like))
        if value not in self._reals:
            self._reals[value] = self.add("DequantizeLinear", value)
        return self._reals[value]

    def recode(self, tensor: Tensor, like: Tensor) -> str:
        """Return the name of a tensor's value in another's codes. If scale and zero point are equal, it is its own value."""
        if self.parameters(tensor) == self.parameters(like):
            return self.code(tensor)
        # with real values between them, ONNX Runtime would merge the two quantizations and drop the first
        ratio = self.constant(like.scale[0] / tensor.scale[0], np.float32)
        bare = self.bare(self.code(tensor), tensor, zero_point(tensor))
        return self.add("QuantizeLinear", [bare, ratio, self.parameters(like)[1]])

    def bare(self, code: str, like: Tensor, zero: int) -> str:
        """Return the name of codes as float32, code - zero. The codes have the scale and zero point of `like`."""
        if code == self.codes.get(self._entry.index):  # the first node to read the input defines its scale
            code = self.add("QuantizeLinear", [self.dequantize(code, like), *self.parameters(like)])
        return self.add("DequantizeLinear", [code, self.constant(1, np.float32), self.constant(zero, np.uint8)])

    def weights(self, values: np.ndarray, tensor: Tensor) -> str:
        """Return the name of int8 weights' real value, quantized per tensor or per output: the first axis, or a matrix's last."""
        axis = 1 if values.ndim == 2 else 0
        if tensor.type != "INT8" or np.any(tensor.zero_point) or len(tensor.scale) not in (1, values.shape[axis]):
            raise ExportError(f"the weights {tensor.name!r} are {tensor.type}, expected INT8 with zero points of 0")
        return self._dequantized(values, np.int8, tensor.scale, axis)

    def bias(self, tensor: Tensor, scale: np.ndarray) -> str:
        """Return the name of an int32 bias's real value; `scale` is the input's scale times the weights'."""
        if tensor.type != "INT32" or tensor.data is None:
            raise ExportError(f"the bias {tensor.name!r} is {tensor.type}, expected a constant of INT32")
        return self._dequantized(tensor.data, np.int32, scale)

    def _dequantized(self, values: np.ndarray, dtype: Any, scale: np.ndarray, axis: int = 0) -> str:
        scale = scale if len(scale) > 1 else scale[0]
        # on x86 without VNNI, ONNX Runtime 1.32 converts int8 weights to uint8, which fails the second time for a shared initializer
        zeros = self.constant(np.zeros(np.shape(scale)), dtype, shared=False)
        inputs = [self.constant(values, dtype, shared=False), self.constant(scale, np.float32), zeros]
        return self.add("DequantizeLinear", inputs, axis=axis)

    def quantize(self, real: str, tensor: Tensor, activation: int = 0) -> None:
        """Define a TFLite tensor as the quantized real value, after the fused activation."""
        self.store(self.add("QuantizeLinear", [real, *self.parameters(tensor)]), tensor, activation)

    def store(self, code: str, tensor: Tensor, activation: int = 0) -> None:
        """Define a tensor as these codes, after the fused activation (kernel_util.cc, CalculateActivationRangeQuantized)."""
        if activation not in ACTIVATIONS:
            known = ", ".join(map(str, ACTIVATIONS))
            raise ExportError(f"{tensor.name!r} has TFLite's fused activation {activation}, expected one of {known}")
        bounds = ["", ""]
        for side, limit in enumerate(ACTIVATIONS[activation]):
            if limit is not None:
                bound = min(max(round(limit / float(tensor.scale[0])) + zero_point(tensor), 0), 255)
                if bound != (0, 255)[side]:
                    bounds[side] = self.constant(bound, np.uint8)
        self.codes[tensor.index] = self.add("Clip", [code, *bounds]) if any(bounds) else code

    def flat(self, tensor: Tensor) -> str:
        """Return the name of a tensor's uint8 value in TFLite's order of dimensions."""
        if tensor.index in self._flat or len(tensor.shape) != 4:
            return self._flat.get(tensor.index) or self.code(tensor)
        return self.add("Transpose", [self.code(tensor)], perm=TO_NHWC)

    def reshape(self, code: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", [code, self.constant([0, *shape], np.int64)])

    def finish(self) -> None:
        for tensor, title in zip(self._outputs, (OUTPUT, FEATURES), strict=False):
            code, parameters = self.codes[tensor.index], self.parameters(tensor)
            last = next(node for node in self.nodes if code in node.output)
            if last.op_type != "QuantizeLinear" or list(last.input[1:]) != parameters:
                code = self.add("QuantizeLinear", [self.add("DequantizeLinear", [code, *parameters]), *parameters])
            for node in self.nodes:
                node.input[:] = [title if name == code else name for name in node.input]
                node.output[:] = [title if name == code else name for name in node.output]
