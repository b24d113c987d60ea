"""The worker's own arena for shared outputs: slots that are used again while they are warm."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from typing import NamedTuple

from . import memory, wire
from .memory import Mapping

_SMALLEST = 4096  # bytes of the smallest slot


class Slot(NamedTuple):
    """Memory for one output, from alloc until the host returns its token."""

    arena: bytes
    mapping: Mapping
    offset: int
    size: int
    token: int
    generation: int


class _Arena:
    def __init__(self, size: int) -> None:
        self.id = secrets.token_bytes(16)
        self.size = size
        self.used = 0
        self.fd = memory.create(size, "stokehold-worker")
        try:
            self.mapping = Mapping(self.fd, size, writable=True)
            memory.seal_arena(self.fd)
        except BaseException:
            os.close(self.fd)
            raise


class Pool:
    """Slots of a few sizes between each power of two and the next, each size with a list of free ones.

    Arenas are made when they are needed, each twice as large as the one before, and
    granted to the host by the function given. Safe for use by several threads.
    """

    def __init__(self, grant: Callable[[bytes, int, int], None], arena_bytes: int, most_bytes: int) -> None:
        """Grant is called with an arena's id, size in bytes and descriptor; most_bytes bounds all arenas together."""
        self._grant = grant
        self._arena_bytes = memory.round_up(max(arena_bytes, memory.PAGE), memory.PAGE)
        self._room = most_bytes
        self._arenas: list[_Arena] = []
        self._free: dict[int, list[tuple[_Arena, int]]] = {}
        self._out: dict[int, tuple[_Arena, int, int]] = {}
        self._generation = 0
        self._lock = threading.Lock()

    @property
    def out(self) -> int:
        """How many slots the host, or an output being built, has."""
        return len(self._out)

    def alloc(self, size: int) -> Slot | None:
        """Return a slot of at least size bytes; None if there is no room: publish sealed then."""
        room = memory.round_up(size, max(_SMALLEST, 1 << max((size - 1).bit_length() - 3, 0)))
        with self._lock:
            if len(self._out) >= wire.MAX_SLOTS_OUT:
                return None
            place = self._reuse(room) or self._carve(room)
            if place is None:
                return None
            arena, offset = place
            token = secrets.randbits(64)
            while token in self._out:
                token = secrets.randbits(64)
            self._generation += 1
            self._out[token] = (arena, offset, room)
            return Slot(arena.id, arena.mapping, offset, room, token, self._generation)

    def free(self, token: int) -> bool:
        """Take a slot back; False if no slot that is out has that token."""
        with self._lock:
            if (place := self._out.pop(token, None)) is None:
                return False
            arena, offset, room = place
            self._free.setdefault(room, []).append((arena, offset))
            return True

    def _reuse(self, room: int) -> tuple[_Arena, int] | None:
        free = self._free.get(room)
        return free.pop() if free else None

    def _carve(self, room: int) -> tuple[_Arena, int] | None:
        for arena in self._arenas:
            if arena.size - arena.used >= room:
                return self._take(arena, room)
        size = max(self._arena_bytes << len(self._arenas), room)
        if size > self._room and room <= self._room:
            size = self._room & ~(memory.PAGE - 1)
        if size > self._room or size < room or len(self._arenas) >= wire.MAX_GRANTS:
            return None
        try:
            arena = _Arena(size)
        except (MemoryError, OSError):
            return None
        try:
            self._grant(arena.id, arena.size, arena.fd)
        finally:
            os.close(arena.fd)  # the mapping is enough
        self._room -= size
        self._arenas.append(arena)
        return self._take(arena, room)

    @staticmethod
    def _take(arena: _Arena, room: int) -> tuple[_Arena, int]:
        offset = arena.used
        arena.used += room
        return arena, offset
