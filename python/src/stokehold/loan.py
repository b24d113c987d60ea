"""Batches that are built where the host will read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import pyarrow as pa

from .frame import Frame
from .memory import Zeros

# struct format (for memoryview) and NumPy type of each Arrow type whose values
# have a fixed width of whole bytes.
_WIDTHS: dict[Any, tuple[str, str]] = {
    pa.int8(): ("b", "i1"),
    pa.uint8(): ("B", "u1"),
    pa.int16(): ("h", "<i2"),
    pa.uint16(): ("H", "<u2"),
    pa.int32(): ("i", "<i4"),
    pa.uint32(): ("I", "<u4"),
    pa.int64(): ("q", "<i8"),
    pa.uint64(): ("Q", "<u8"),
    pa.float16(): ("e", "<f2"),
    pa.float32(): ("f", "<f4"),
    pa.float64(): ("d", "<f8"),
}
_UNIT_TYPES = (pa.types.is_timestamp, pa.types.is_duration)


def layout(field: pa.Field) -> tuple[pa.DataType, tuple[int, ...], str, str]:
    """Return the type of a column's single values, the shape of one row, struct format and NumPy type.

    TypeError if the column has no fixed width of whole bytes.
    """
    leaf = field.type
    shape: tuple[int, ...] = ()
    if isinstance(leaf, pa.FixedShapeTensorType):
        if leaf.permutation and list(leaf.permutation) != sorted(leaf.permutation):
            raise TypeError(f"column {field.name!r}: permuted tensors cannot be built in place; emit a batch")
        leaf, shape = leaf.value_type, tuple(leaf.shape)
    while pa.types.is_fixed_size_list(leaf):
        leaf, shape = leaf.value_type, (*shape, leaf.list_size)
    if leaf in _WIDTHS:
        return (leaf, shape, *_WIDTHS[leaf])
    for is_type, name in zip(_UNIT_TYPES, ("M8", "m8"), strict=True):
        if is_type(leaf):
            return leaf, shape, "q", f"<{name}[{leaf.unit}]"
    if pa.types.is_date32(leaf) or pa.types.is_time32(leaf):
        return leaf, shape, "i", "<i4"
    if pa.types.is_date64(leaf) or pa.types.is_time64(leaf):
        return leaf, shape, "q", "<i8"
    why = "its values are bits" if pa.types.is_boolean(leaf) else "its values have no fixed width of whole bytes"
    raise TypeError(f"column {field.name!r} of type {field.type} cannot be built in place: {why}; emit a batch")


def template(schema: pa.Schema, rows: int) -> Frame:
    """Lay out a batch of so many rows without nulls, whose values are not there yet.

    TypeError if a column has no fixed width.
    """
    sizes = []
    for field in schema:
        leaf, shape, _, _ = layout(field)
        sizes.append(rows * prod(shape) * (leaf.bit_width // 8))
    zeros = Zeros(max(sizes, default=0))
    columns = [_column(field.type, rows, zeros) for field in schema]
    if not columns:
        raise TypeError("a batch without columns cannot be built in place")
    return Frame(pa.RecordBatch.from_arrays(columns, schema=schema))


def _column(kind: pa.DataType, rows: int, zeros: Zeros) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _column(kind.storage_type, rows, zeros))
    if pa.types.is_fixed_size_list(kind):
        child = _column(kind.value_type, rows * kind.list_size, zeros)
        return pa.Array.from_buffers(kind, rows, [None], 0, children=[child])
    return pa.Array.from_buffers(kind, rows, [None, zeros.buffer(rows * kind.bit_width // 8)], 0)


class Loan(Mapping[str, Any]):
    """A batch being built in shared memory: its columns by name, as writable arrays.

    NumPy arrays of shape (rows, ...), or memoryviews where NumPy is missing. Every
    value has to be written: what is not may hold anything. Fixed-size lists and
    tensors have further axes. Timestamps and durations are datetime64 and
    timedelta64; dates and times of day are their integers.
    """

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self.schema = schema
        self.rows = rows
        self.frame = template(schema, rows)
        self._columns: dict[str, Any] = {}

    def place(self, part: memoryview) -> None:
        """Make the columns of memory that the frame was written to, without bodies."""
        places = iter(self.frame.places())
        for field in self.schema:
            _, shape, form, dtype = layout(field)
            offset, length = (0, 0)
            for _ in range(_buffer_count(field.type)):
                offset, length = next(places)
            self._columns[field.name] = _array(part[offset : offset + length], (self.rows, *shape), form, dtype)

    def close(self) -> None:
        """Forget the columns. Arrays that are still referred to cannot be written any more."""
        for column in self._columns.values():
            if hasattr(column, "setflags"):
                column.setflags(write=False)
        self._columns.clear()

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            raise KeyError(f"no column {name!r}, or the loan is over; columns: {self.schema.names}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _buffer_count(kind: pa.DataType) -> int:
    """Return how many buffers a column has, of which the last holds the values."""
    count = 2
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while pa.types.is_fixed_size_list(kind):
        kind, count = kind.value_type, count + 1
    return count


def _array(part: memoryview, shape: tuple[int, ...], form: Any, dtype: str) -> Any:
    try:
        import numpy as np
    except ImportError:
        if 0 in shape:
            return part.cast(form)
        return part.cast(form, shape)
    return np.frombuffer(part, dtype=dtype).reshape(shape)
