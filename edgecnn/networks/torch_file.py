"""Weights in PyTorch's legacy file format, read without PyTorch and without executing anything in the file.

A file consists of five pickles (a magic number, a version, the system's byte order and sizes, the state dictionary, the order of the
storages), followed by the storages, each an int64 count and its little-endian elements. A pickle may name any function of any module.
This reader accepts only ordered dictionaries and tensors' storages, and rejects every other name before anything is called.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecnn.errors import NetworkError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: its key in the file, and its elements' dtype and count."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage: its first element, its shape, and its strides in elements along each axis."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state(data: bytes, where: str) -> Mapping[str, np.ndarray]:
    """Read the state dictionary from a file's bytes: arrays by name, in PyTorch's layout. Raises NetworkError if it finds anything else."""
    stream = io.BytesIO(data)
    try:
        if (_plain(stream), _plain(stream)) != (MAGIC, PROTOCOL):
            raise NetworkError(f"{where} is not a file of PyTorch weights in the legacy format (protocol {PROTOCOL}).")
        _plain(stream)
        state = _Reader(stream).load()
        kinds = {tensor.storage.key: tensor.storage for tensor in state.values()}
        storages = {key: _elements(stream, kinds[key]) for key in _plain(stream)}
        return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in state.items()}
    except NetworkError as error:
        raise NetworkError(f"{where}: {error}") from None
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise NetworkError(f"{where} is damaged: {error or type(error).__name__}") from None


class _Plain(pickle.Unpickler):
    """An unpickler for numbers, strings, lists and dictionaries. It imports no names and accepts only those in `known`."""

    known: Mapping[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise NetworkError(f"it names {module}.{name}, but only tensors are read. Nothing in it was executed.")
        return self.known[module, name]


class _Reader(_Plain):
    known: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments[:4]),
        **{("torch", name): dtype for name, dtype in DTYPES.items()},
    }

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise NetworkError("it refers to something other than a plain storage.")
        return Storage(str(key), dtype, int(count))


def _plain(stream: io.BytesIO) -> Any:
    return _Plain(stream).load()


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *(size - 1 for size in shape), *strides)) < 0 or last >= storage.count:
        raise NetworkError("a tensor reaches beyond its storage.")
    return Tensor(storage, offset, shape, strides)


def _elements(stream: io.BytesIO, storage: Storage) -> np.ndarray:
    count = int.from_bytes(stream.read(8), "little")
    data = stream.read(count * storage.dtype.itemsize)
    if count != storage.count or len(data) != count * storage.dtype.itemsize:
        raise NetworkError("a storage is shorter than the file declares.")
    return np.frombuffer(data, storage.dtype)


def _array(tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    steps = [stride * elements.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, steps, writeable=False)
