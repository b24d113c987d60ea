"""Memory for outputs, and how it is handed to the host."""

from __future__ import annotations

import os
import weakref

from . import memory, wire
from .connection import Connection, Job
from .memory import Mapping
from .pool import Slot
from .wire import Kind


class Piece:
    """Writable memory for one output: a memfd of its own, or a slot of the worker's arena."""

    def __init__(self, size: int, slot: Slot | None) -> None:
        """Take memory of at least size bytes. MemoryError if there is none."""
        self._slot = slot
        self._fd = -1
        self._mapping: Mapping | None
        if slot is not None:
            self._mapping, self._offset, self._size = slot.mapping, slot.offset, slot.size
            return
        self._offset, self._size = 0, memory.round_up(size, memory.PAGE)
        self._fd = memory.create(self._size, "stokehold-batch")
        try:
            self._mapping = Mapping(self._fd, self._size, writable=True)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def address(self) -> int:
        """Where it begins; 64-byte aligned."""
        assert self._mapping is not None  # noqa: S101
        return self._mapping.address + self._offset

    def view(self, size: int) -> memoryview:
        """Return its first bytes."""
        assert self._mapping is not None  # noqa: S101
        return self._mapping.view(self._offset, size)

    def seal(self) -> None:
        """Make a piece of its own immutable; arrays that still refer to it keep what they see."""
        if self._slot is None and self._mapping is not None:
            ref = weakref.ref(self._mapping)
            self._mapping = None  # unmaps it, unless arrays refer to it; sealing takes no writable map
            if (mapping := ref()) is not None:
                mapping.detach(self._fd)
            memory.seal_batch(self._fd)

    def send_output(self, connection: Connection, job: Job, sequence: int, length: int) -> None:
        """Publish its first length bytes. The piece is spent."""
        if self._slot is None:
            self.seal()
            payload = wire.OUTPUT.pack(sequence, self._size, length)
            connection.channel.send(Kind.OUTPUT, job.number, payload, self._fd)
            self.discard()
            return
        s = self._slot
        payload = wire.PUBLISH.pack(sequence, s.token, s.arena, s.offset, length, s.generation)
        connection.channel.send(Kind.PUBLISH, job.number, payload)

    def send_model(self, connection: Connection, job: Job, length: int, note: bytes) -> None:
        """Send its first length bytes as a model. The piece is spent."""
        self.seal()
        connection.channel.send(Kind.MODEL, job.number, wire.MODEL.pack(self._size, length) + note, self._fd)
        self.discard()

    def discard(self, connection: Connection | None = None) -> None:
        """Give the memory back unpublished. Repeatable."""
        self._mapping = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._slot is not None and connection is not None and connection.pool is not None:
            connection.pool.free(self._slot.token)
            self._slot = None


def take(connection: Connection, size: int, *, shared: bool) -> Piece:
    """Return memory for an output: a slot if outputs are shared and there is room, else a memfd."""
    pool = connection.pool
    return Piece(size, pool.alloc(size) if shared and pool is not None else None)
