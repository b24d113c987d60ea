"""Models as safetensors: a header of 8 bytes with a length, JSON, and the tensors' bytes.

https://huggingface.co/docs/safetensors. Written here so that neither NumPy nor a
library of its own is needed. Never pickle: reading it runs code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import pyarrow as pa

from .memory import copy

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Sizes in bits of the types that a tensor's values may have."""

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "halffloat": "F16", "float32": "F32", "float": "F32",
    "float64": "F64", "double": "F64", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_HEADER_BYTES = 8
_MOST_HEADER = 100_000_000  # what readers of the format accept


class Tensor(NamedTuple):
    """A tensor as bytes: for types that the array at hand does not know, such as BF16 in a NumPy uint16 array."""

    dtype: str
    """A name of the format: "F32", "BF16", "F8_E4M3", ..."""
    shape: tuple[int, ...]
    data: Any
    """Anything with the buffer protocol, in C order, little-endian."""


class _Part(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    address: int
    size: int
    owner: object  # keeps the memory


class Artifact:
    """A model laid out for writing; it refers to the tensors' own memory."""

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
        """TypeError or ValueError, naming the tensor, if one cannot be stored."""
        if not tensors:
            raise ValueError("a model without tensors")
        parts = {}
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not name or name == "__metadata__":
                raise ValueError(f"{name!r} is no name for a tensor")
            try:
                parts[name] = _part(tensor)
            except (TypeError, ValueError) as e:
                raise type(e)(f"tensor {name!r}: {e}") from e
        # Widest first, so that each tensor is aligned to its own type.
        order = sorted(parts, key=lambda n: (-BITS[parts[n].dtype], n))
        self._parts = [parts[name] for name in order]
        header: dict[str, Any] = {}
        if metadata:
            if bad := [k for k, v in metadata.items() if not isinstance(k, str) or not isinstance(v, str)]:
                raise TypeError(f"metadata of {bad}: names and values are text")
            header["__metadata__"] = dict(metadata)
        at = 0
        for name in order:
            p = parts[name]
            header[name] = {"dtype": p.dtype, "shape": list(p.shape), "data_offsets": [at, at + p.size]}
            at += p.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > _MOST_HEADER:
            raise ValueError(f"header of {len(text)} bytes: too many tensors")
        self._head = len(text).to_bytes(_HEADER_BYTES, "little") + text
        self.size = len(self._head) + at
        """Bytes of the artifact."""

    def write(self, address: int) -> None:
        """Write the artifact to memory of at least size bytes."""
        head = pa.py_buffer(self._head)
        copy(address, head.address, head.size)
        at = address + head.size
        for part in self._parts:
            copy(at, part.address, part.size)
            at += part.size


def _part(tensor: Any) -> _Part:
    if isinstance(tensor, Tensor):
        return _from_buffer(tensor.dtype, tensor.shape, tensor.data)
    if isinstance(tensor, pa.ChunkedArray):
        tensor = tensor.combine_chunks()
    if isinstance(tensor, pa.Array):
        return _from_arrow(tensor)
    if isinstance(tensor, pa.Tensor):
        if not tensor.is_contiguous:
            raise ValueError("is not contiguous")
        return _from_buffer(_dtype(str(tensor.type)), tuple(tensor.shape), tensor)
    if callable(getattr(tensor, "data_ptr", None)):  # PyTorch
        t = tensor.detach().cpu().contiguous()
        dtype = _dtype(str(t.dtype).removeprefix("torch."))
        return _checked(_Part(dtype, tuple(t.shape), t.data_ptr(), t.numel() * t.element_size(), t))
    if not hasattr(tensor, "__array_interface__") and hasattr(tensor, "__array__"):  # JAX and others
        tensor = tensor.__array__()
    if hasattr(tensor, "__array_interface__"):
        return _from_numpy(tensor)
    raise TypeError(f"a {type(tensor).__name__}; give NumPy, PyTorch, JAX or Arrow arrays, or stokehold.Tensor")


def _from_numpy(a: Any) -> _Part:
    if a.dtype.byteorder == ">":
        a = a.astype(a.dtype.newbyteorder("<"))
    if not a.flags.c_contiguous:
        a = a.copy(order="C")
    return _checked(_Part(_dtype(a.dtype.name), tuple(a.shape), a.__array_interface__["data"][0], a.nbytes, a))


def _from_arrow(a: pa.Array) -> _Part:
    shape = [len(a)]
    if isinstance(a, pa.ExtensionArray):
        if isinstance(a.type, pa.FixedShapeTensorType) and a.type.permutation:
            raise TypeError("is a permuted tensor; give it as a NumPy array")
        shape += getattr(a.type, "shape", [])
        a = a.storage
        if len(shape) > 1:
            a = _flat(a)
    while pa.types.is_fixed_size_list(a.type):
        shape.append(a.type.list_size)
        a = _flat(a)
    if a.null_count:
        raise ValueError(f"has {a.null_count} nulls")
    if pa.types.is_boolean(a.type):
        a = a.cast(pa.uint8())
        dtype = "BOOL"
    else:
        dtype = _dtype(str(a.type))
    width = BITS[dtype] // 8
    values = a.buffers()[1]
    address = values.address + a.offset * width if values is not None else 0
    return _checked(_Part(dtype, tuple(shape), address, len(a) * width, a))


def _flat(a: pa.Array) -> pa.Array:
    if a.null_count:
        raise ValueError(f"has {a.null_count} nulls")
    return a.flatten()


def _from_buffer(dtype: str, shape: tuple[int, ...], data: Any) -> _Part:
    if dtype not in BITS:
        raise TypeError(f"type {dtype!r} is none of {', '.join(BITS)}")
    buffer = pa.py_buffer(data)
    return _checked(_Part(dtype, tuple(int(n) for n in shape), buffer.address, buffer.size, buffer))


def _checked(part: _Part) -> _Part:
    want = prod(part.shape) * BITS[part.dtype] // 8
    if part.size != want or any(n < 0 for n in part.shape):
        raise ValueError(f"{part.size} bytes for shape {part.shape} of {part.dtype}, which takes {want}")
    return part


def _dtype(name: str) -> str:
    if name not in _NAMES:
        raise TypeError(f"safetensors has no type {name}")
    return _NAMES[name]
