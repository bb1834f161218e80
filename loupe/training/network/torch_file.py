"""Read a state dict that PyTorch wrote before version 1.6, without PyTorch and without running what the file says.

    arrays = read(path.read_bytes())       # {"_conv_stem.weight": array, …}, in the order of the file

Such a file is five pickles (a magic number, a version, the writer's number sizes, the tensors, the names of their
storages) and then the storages: how many numbers, and the numbers. A pickle may name any function to call. Here it
can name four things, and a file that names another is refused. Not covered: damaged files, which raise errors of many
types; check a file's SHA-256 first.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
COUNT = np.dtype("<i8")


class _Tensor(NamedTuple):
    """Where a tensor lies: which part of which storage. The storages come after all tensors."""

    storage: str
    dtype: str
    offset: int  # in numbers, as the strides are
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: tuple[str, str], offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(*storage, offset, tuple(shape), tuple(strides))


# All that a file may name. The storage classes stand for the numbers' type.
KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no tensor needs")
        return KNOWN[module, name]

    def persistent_load(self, storage: Any) -> tuple[str, str]:
        _, dtype, name, *_ = storage
        return name, dtype


def read(content: bytes) -> dict[str, Array]:
    """Return the arrays by their names. Raise UnpicklingError for a file that names what is not known."""
    # The five pickles.
    file = io.BytesIO(content)
    magic, version, sizes, tensors, names = (_Unpickler(file).load() for _ in range(5))
    if (magic, version) != (MAGIC, VERSION) or not sizes["little_endian"]:
        raise ValueError("it is no state dict in PyTorch's old format")
    # The storages, which say how many numbers they hold, but not of which type.
    dtypes = {tensor.storage: np.dtype(tensor.dtype) for tensor in tensors.values()}
    storages: dict[str, Array] = {}
    at = file.tell()
    for name in names:
        count = int(np.frombuffer(content, COUNT, 1, at)[0])
        storages[name] = np.frombuffer(content, dtypes[name], count, at + COUNT.itemsize)
        at += COUNT.itemsize + storages[name].nbytes
    return {name: _array(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, storage: Array) -> Array:
    """Return the tensor's numbers. numpy refuses shapes and strides that lead out of the storage."""
    size = storage.itemsize
    strides = tuple(stride * size for stride in tensor.strides)
    return np.ndarray(tensor.shape, storage.dtype, storage.data, tensor.offset * size, strides).copy()
