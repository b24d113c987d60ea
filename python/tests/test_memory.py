"""Descriptors are verified before they are mapped, and memory goes away with its last reference."""

import ctypes
import gc
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from stokehold import SealsError, memory
from stokehold.memory import Mapping

from .harness import arena, descriptors

SIZE = 1 << 16


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            if low <= address < high and "memfd" in line:
                return True
    return False


def sparse() -> int:
    fd = os.memfd_create("sparse", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    memory.seal_arena(fd)
    return fd


def other(kind: str) -> int:
    if kind == "pipe":
        r, w = os.pipe()
        os.close(w)
        return r
    if kind == "socket":
        return socket.socket(socket.AF_UNIX).detach()
    if kind == "file":
        with tempfile.TemporaryFile() as f:
            f.truncate(SIZE)
            return os.dup(f.fileno())
    return os.open({"directory": "/", "device": "/dev/zero"}[kind], os.O_RDONLY)


@pytest.mark.parametrize("kind", ["pipe", "socket", "file", "directory", "device"])
def test_other_descriptors_are_refused(kind: str) -> None:
    fd = other(kind)
    try:
        with pytest.raises(SealsError):
            memory.open_arena(fd, SIZE)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("seals", "size"),
    [
        (0, SIZE),
        (memory._SEAL_SHRINK | memory._SEAL_GROW, SIZE),
        (memory._SEAL_FUTURE_WRITE | memory._SEAL_GROW, SIZE),
        (memory._SEALS_ARENA, SIZE - 1),
        (memory._SEALS_ARENA, 2 * SIZE),
        (memory._SEALS_ARENA, 0),
        (memory._SEALS_ARENA, 1 << 62),
    ],
)
def test_unsealed_and_wrong_sizes_are_refused(seals: int, size: int) -> None:
    fd = arena(SIZE, seals)
    try:
        with pytest.raises(SealsError):
            memory.open_arena(fd, size)
    finally:
        os.close(fd)


def test_sparse_memory_is_refused() -> None:
    fd = sparse()
    try:
        with pytest.raises(SealsError, match="allocated"):
            memory.open_arena(fd, SIZE)
    finally:
        os.close(fd)


def test_buffers_keep_the_mapping_and_no_longer() -> None:
    fd = arena(SIZE, content=b"hello")
    mapping = memory.open_arena(fd, SIZE)
    os.close(fd)
    address = mapping.address
    part = mapping.buffer(0, 5)
    del mapping
    gc.collect()
    assert part.to_pybytes() == b"hello"
    assert mapped(address)
    del part
    gc.collect()
    assert not mapped(address)


def test_views_of_a_published_piece_cannot_change_it() -> None:
    fd = memory.create(memory.PAGE, "test")
    mapping = Mapping(fd, memory.PAGE, writable=True)
    view = mapping.view(0, 4)
    view[:] = b"then"
    mapping.detach(fd)
    memory.seal_batch(fd)
    other = memory.open_arena(fd, memory.PAGE)
    memory.check_sealed(fd)
    view[:] = b"now!"  # goes to a page of its own
    assert other.buffer(0, 4).to_pybytes() == b"then"
    del view, mapping, other
    os.close(fd)


def test_no_room_is_an_error_before_anything_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    # Asking the kernel for more than there is would take all of the machine's memory first.
    monkeypatch.setattr(os, "memfd_create", lambda *_: pytest.fail("memory was asked for"))
    with pytest.raises(MemoryError, match="are available"):
        memory.create(memory.available() + (1 << 40), "test")


def test_zeros_cost_nothing() -> None:
    zeros = memory.Zeros(1 << 40)
    assert ctypes.string_at(zeros.buffer(1 << 40).address + (1 << 39), 8) == bytes(8)
