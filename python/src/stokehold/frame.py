"""Record batches as frames: one complete Arrow IPC stream, every buffer 64-byte aligned.

Arrow's writer aligns to 8 bytes and writes into a stream. Here it is given a sink
that only notes what it would write, so that a frame's size is known before memory
is taken for it, and each body byte is copied once, to where it is read.
"""

from __future__ import annotations

from struct import Struct, pack_into, unpack_from
from typing import Any, NamedTuple

import pyarrow as pa

from .memory import ALIGNMENT, clear, copy, round_up

_PREFIX = Struct("<II")  # continuation marker, metadata length
_MARKER = 0xFFFFFFFF
_BUFFER = Struct("<qq")  # offset in the body, length
_DICTIONARY, _RECORD_BATCH = 2, 3  # of Message.header_type


class _Message(NamedTuple):
    meta: bytearray
    parts: list[tuple[int, int, Any]]  # offset in the body, length, the buffer; empty ones too
    body: int


class Frame:
    """A batch laid out for writing but not copied yet: it refers to the batch's own buffers."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Lay out a batch. pyarrow.ArrowInvalid if it cannot be sent."""
        sink = _Sink()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        self._messages: list[_Message] = []
        self.body_bytes = 0
        """Bytes of the bodies, padding included."""
        self.size = _PREFIX.size
        """Bytes of the frame."""
        while sink.parts:
            message = _message(sink)
            if message is None:
                break
            self._messages.append(message)
            self.body_bytes += message.body
            self.size += _meta_bytes(message.meta) + message.body

    def write(self, address: int, *, bodies: bool = True) -> None:
        """Write the frame to 64-byte aligned memory of at least size bytes; without bodies, leave room for them."""
        at = address
        for message in self._messages:
            room = _meta_bytes(message.meta)
            _put(at, _PREFIX.pack(_MARKER, room - _PREFIX.size) + message.meta)
            clear(at + _PREFIX.size + len(message.meta), room - _PREFIX.size - len(message.meta))
            at += room
            for offset, length, part in message.parts:
                padded = round_up(length, ALIGNMENT)
                if bodies and length:
                    if isinstance(part, pa.Buffer):
                        copy(at + offset, part.address, length)
                    else:
                        _put(at + offset, part)
                clear(at + offset + length, padded - length)
            at += message.body
        _put(at, _PREFIX.pack(_MARKER, 0))

    def places(self) -> list[tuple[int, int]]:
        """Return offset in the frame and length of each buffer of the record batch, in the order of Arrow's format."""
        at = 0
        for message in self._messages:
            at += _meta_bytes(message.meta)
            if message is self._messages[-1]:
                return [(at + offset, length) for offset, length, _ in message.parts]
            at += message.body
        return []


def read(buffer: pa.Buffer) -> pa.RecordBatch:
    """Open the batch framed in buffer, without copying: its arrays hold on to the buffer.

    pyarrow.ArrowInvalid if it is no frame.
    """
    with pa.ipc.open_stream(buffer) as reader:
        return reader.read_next_batch()


class Reader:
    """Opens frames, and remembers the schema of the last one: those of an input are the same as a rule."""

    def __init__(self) -> None:
        self._head: pa.Buffer | None = None  # schema message
        self._schema: pa.Schema | None = None

    def read(self, buffer: pa.Buffer) -> pa.RecordBatch:
        """Open the batch framed in buffer, as the function read does."""
        head = self._head
        if head is not None and buffer.slice(0, head.size).equals(head):
            return pa.ipc.read_record_batch(buffer.slice(head.size), self._schema)
        batch = read(buffer)
        _, size = _PREFIX.unpack_from(buffer)
        head = buffer.slice(0, _PREFIX.size + size)
        if pa.ipc.read_message(buffer.slice(head.size)).type == "record batch":  # no dictionaries come first
            self._head, self._schema = pa.py_buffer(head.to_pybytes()), batch.schema
        return batch


def bytes_outside(batch: pa.RecordBatch, buffer: pa.Buffer) -> int:
    """Count the bytes of a batch that lie elsewhere than in buffer: those that reading had to copy."""
    low, high = buffer.address, buffer.address + buffer.size
    outside = 0
    for column in batch.columns:
        for part in column.buffers():
            if part is not None and part.size and not low <= part.address < high:
                outside += part.size
    return outside


class _Sink:
    """A file for Arrow's writer that keeps the parts it is given instead of their bytes."""

    closed = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, part: Any) -> int:
        self.parts.append(part)
        return len(part)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.closed = True

    def take(self, size: int) -> bytes:
        """Return the next bytes, which may come in several parts."""
        got = bytearray()
        while len(got) < size:
            got += self.parts.pop(0)
        if len(got) != size:
            raise ValueError(f"Arrow's writer gave {len(got)} bytes in one piece, expected {size}")
        return bytes(got)


def _message(sink: _Sink) -> _Message | None:
    marker, size = _PREFIX.unpack(sink.take(_PREFIX.size))
    if marker != _MARKER:
        raise ValueError("Arrow's writer began no message")
    if size == 0:
        return None
    meta = bytearray(sink.take(size))
    parts: list[tuple[int, int, Any]] = []
    body = 0
    table, buffers, count = _buffers(meta)
    for i in range(count):
        place = buffers + _BUFFER.size * i
        _, length = _BUFFER.unpack_from(meta, place)
        _BUFFER.pack_into(meta, place, body, length)
        part: Any = b""
        if length:
            part = sink.parts.pop(0)
            if len(part) != length:
                raise ValueError(f"Arrow's writer gave a buffer of {len(part)} bytes, announced {length}")
            if length % 8:
                sink.take(8 - length % 8)
        parts.append((body, length, part))
        body += round_up(length, ALIGNMENT)
    if body:
        pack_into("<q", meta, _field(meta, table, 3), body)
    return _Message(meta, parts, body)


def _buffers(meta: bytearray) -> tuple[int, int, int]:
    """Find in a message's flatbuffer: its table, the first buffer of its batch, and how many there are."""
    table: int = unpack_from("<I", meta, 0)[0]
    kind = meta[_field(meta, table, 1)]
    if kind not in (_DICTIONARY, _RECORD_BATCH):
        return table, 0, 0
    batch = _follow(meta, _field(meta, table, 2))
    if kind == _DICTIONARY:
        batch = _follow(meta, _field(meta, batch, 1))
    place = _field(meta, batch, 2)
    if not place:
        return table, 0, 0
    vector = _follow(meta, place)
    return table, vector + 4, unpack_from("<I", meta, vector)[0]


def _field(meta: bytearray, table: int, index: int) -> int:
    """Return where a table's field lies, 0 if it is absent."""
    vtable = table - unpack_from("<i", meta, table)[0]
    entry = 4 + 2 * index
    if entry >= unpack_from("<H", meta, vtable)[0]:
        return 0
    offset: int = unpack_from("<H", meta, vtable + entry)[0]
    return table + offset if offset else 0


def _follow(meta: bytearray, place: int) -> int:
    return place + int(unpack_from("<I", meta, place)[0])


def _meta_bytes(meta: bytearray) -> int:
    return round_up(_PREFIX.size + len(meta), ALIGNMENT)


def _put(address: int, data: bytes | bytearray) -> None:
    source = pa.py_buffer(data)
    copy(address, source.address, source.size)
