"""Columns of a batch as arrays of other libraries, without copying.

The arrays are read-only where the library knows that, and share the batch's
memory: each keeps the host's lease on the batch for as long as it lives.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np


def numpy(
    batch: pa.RecordBatch, columns: Iterable[str] | None = None, nulls: Literal["error", "mask"] = "error"
) -> dict[str, np.ndarray[Any, Any]]:
    """Return columns by name as read-only NumPy arrays that lie in the batch's memory.

    Fixed-size lists have shape (rows, size), fixed-shape tensors (rows, ...).
    Timestamps and durations are datetime64 and timedelta64, dates and times of day
    their integers. Of a column with nulls, nulls="mask" makes a masked array: its
    mask is new memory, one byte per row.

    TypeError if a column cannot be seen as an array without a copy (text, bits,
    dictionaries), ValueError if one has nulls; name the columns that you want.
    """
    import numpy as np

    out: dict[str, Any] = {}
    for name, column in _chosen(batch, columns):
        values, shape, order = _flat(name, column, allow_nulls=nulls == "mask")
        a = values.view(_plain(values.type)).to_numpy(zero_copy_only=True) if not values.null_count else _raw(values)
        a = a.reshape(shape).transpose(order)
        if column.null_count:
            mask = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
            a = np.ma.MaskedArray(a, np.broadcast_to(mask.reshape(-1, *([1] * (a.ndim - 1))), a.shape))
        out[name] = a
    return out


def torch(batch: pa.RecordBatch, columns: Iterable[str] | None = None) -> dict[str, Any]:
    """Return columns by name as PyTorch tensors on the CPU that lie in the batch's memory.

    As numpy, but PyTorch has no read-only tensors: writing to one ends the process.
    Timestamps and durations are integers. ModuleNotFoundError without PyTorch.
    """
    import torch as library

    return _by_dlpack(batch, columns, library.from_dlpack)


def jax(batch: pa.RecordBatch, columns: Iterable[str] | None = None) -> dict[str, Any]:
    """Return columns by name as JAX arrays on the CPU that lie in the batch's memory where JAX can do so.

    As torch. ModuleNotFoundError without JAX.
    """
    from jax import dlpack

    with warnings.catch_warnings():
        # Which version of the exchange format JAX asks for is between it and Arrow.
        warnings.filterwarnings("ignore", "Exporting an unversioned DLPack", DeprecationWarning)
        return _by_dlpack(batch, columns, dlpack.from_dlpack)


def _by_dlpack(batch: pa.RecordBatch, columns: Iterable[str] | None, take: Any) -> dict[str, Any]:
    out = {}
    for name, column in _chosen(batch, columns):
        values, shape, order = _flat(name, column, allow_nulls=False)
        kind = _plain(values.type)
        if pa.types.is_temporal(kind):
            kind = pa.int64()
        tensor = take(values.view(kind)).reshape(shape)
        if order != sorted(order):
            tensor = tensor.permute(order) if hasattr(tensor, "permute") else tensor.transpose(order)
        out[name] = tensor
    return out


def _chosen(batch: pa.RecordBatch, columns: Iterable[str] | None) -> list[tuple[str, pa.Array]]:
    if columns is None:
        return list(zip(batch.schema.names, batch.columns, strict=True))
    return [(name, batch.column(name)) for name in columns]


def _flat(name: str, column: pa.Array, *, allow_nulls: bool) -> tuple[pa.Array, list[int], list[int]]:
    """Return a column's single values, the shape they fill, and the order in which its axes are to be seen."""
    shape, order = [len(column)], [0]
    values = column
    if isinstance(values, pa.ExtensionArray):
        kind, values = values.type, values.storage
        if isinstance(kind, pa.FixedShapeTensorType):
            shape += kind.shape
            order += [1 + axis for axis in kind.permutation or range(len(kind.shape))]
            values = _children(values)
    while pa.types.is_fixed_size_list(values.type):
        order.append(len(shape))
        shape.append(values.type.list_size)
        values = _children(values)
    if pa.types.is_boolean(values.type):
        raise TypeError(f"column {name!r} is of bits, eight to a byte: cast it to uint8, which copies, or leave it out")
    if not pa.types.is_primitive(values.type) or pa.types.is_null(values.type):
        raise TypeError(
            f"column {name!r} of type {column.type} cannot be an array without a copy: name the columns you want"
        )
    if column.null_count and not allow_nulls:
        raise ValueError(f'column {name!r} has {column.null_count} nulls; pass nulls="mask" to numpy, or fill them')
    if values is not column and values.null_count and _nulls_within(column):
        raise ValueError(f"column {name!r} has nulls within its lists: fill them")
    return values, shape, order


def _children(lists: pa.Array) -> pa.Array:
    """Return the values of fixed-size lists, those of null lists included, so that the shape stays regular."""
    size = lists.type.list_size
    return lists.values.slice(lists.offset * size, len(lists) * size)


def _nulls_within(lists: pa.Array) -> bool:
    """Tell whether lists that are not null have values that are."""
    if isinstance(lists, pa.ExtensionArray):
        lists = lists.storage
    if not pa.types.is_fixed_size_list(lists.type):
        return False
    inner = lists.flatten()  # leaves null lists out
    return bool(inner.null_count) or _nulls_within(inner)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type as which NumPy can see values of a type in place."""
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        return pa.int32()
    if pa.types.is_date64(kind) or pa.types.is_time64(kind):
        return pa.int64()
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit)
    return kind


def _raw(values: pa.Array) -> Any:
    """See values as an array although some are null: what lies there then means nothing."""
    full = pa.Array.from_buffers(_plain(values.type), len(values), [None, values.buffers()[1]], 0, values.offset)
    return full.to_numpy(zero_copy_only=True)
