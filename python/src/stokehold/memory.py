"""Memory files (memfd): made, sealed, verified and mapped.

The standard mmap module keeps a duplicate of every descriptor, and refuses to
unmap while an array refers to the memory. Mapping does neither: it goes away
with its last reference.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import weakref

import pyarrow as pa

from .errors import SealsError

PAGE = mmap.PAGESIZE
ALIGNMENT = 64

_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE, _SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
_SEALS_ARENA = _SEAL_SHRINK | _SEAL_GROW | _SEAL_FUTURE_WRITE
_SEALS_BATCH = _SEAL_SHRINK | _SEAL_GROW | _SEAL_WRITE
_NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, Linux 6.3
_MAP_FIXED, _MAP_POPULATE, _MAP_NORESERVE = 0x10, 0x8000, 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_munmap = _libc.munmap
_munmap.restype = ctypes.c_int
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    got = _mmap(address, size, protection, flags, fd, 0)
    if got is None or got == _FAILED:
        e = ctypes.get_errno()
        raise OSError(e, f"map {size} bytes: {os.strerror(e)}")
    return int(got)


class Mapping:
    """A memfd's pages in this process, shared with whoever else maps it.

    They stay mapped until the last reference to this object is gone; buffers and
    views made by it refer to it.
    """

    def __init__(self, fd: int, size: int, *, writable: bool = False) -> None:
        """Map size bytes of fd, which stays the caller's and may be closed."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.address = _map(None, size, protection, mmap.MAP_SHARED | (_MAP_POPULATE if writable else 0), fd)
        self.size = size
        self.pooled = False
        """It is an arena that is used again and again, rather than one batch."""
        # Not at exit: something may still read it, and the kernel unmaps it anyway.
        weakref.finalize(self, _munmap, self.address, size).atexit = False

    def contains(self, address: int, size: int) -> bool:
        """Tell whether so many bytes at an address lie in the mapping."""
        return self.address <= address and address + size <= self.address + self.size

    def buffer(self, offset: int, size: int, keep: object = None) -> pa.Buffer:
        """Return a part of it as a read-only Arrow buffer that holds on to keep (default: the mapping)."""
        return pa.foreign_buffer(self.address + offset, size, base=self if keep is None else keep)

    def view(self, offset: int, size: int) -> memoryview:
        """Return a part of it as writable bytes."""
        if size == 0:
            return memoryview(bytearray())
        part = (ctypes.c_ubyte * size).from_address(self.address + offset)
        part.mapping = self  # type: ignore[attr-defined]
        return memoryview(part).cast("B")

    def detach(self, fd: int) -> None:
        """Let arrays that still refer to the memory keep its contents, without being able to change the file's."""
        private = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        try:
            _map(self.address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, private, fd)
        except OSError:  # what this process may write to is limited (RLIMIT_DATA)
            _map(self.address, self.size, mmap.PROT_READ, private, fd)


class Zeros:
    """Memory that reads as zeros and costs nothing as long as nobody reads it."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.address = _map(None, self.size, mmap.PROT_READ, flags, -1)
        weakref.finalize(self, _munmap, self.address, self.size)

    def buffer(self, size: int) -> pa.Buffer:
        """Return the first bytes as an Arrow buffer."""
        return pa.foreign_buffer(self.address, size, base=self)


def copy(destination: int, source: int, size: int) -> None:
    """Copy bytes between addresses, without the interpreter's lock."""
    if size:
        ctypes.memmove(destination, source, size)


def clear(address: int, size: int) -> None:
    """Write zeros to an address."""
    if size:
        ctypes.memset(address, 0, size)


def round_up(size: int, unit: int) -> int:
    """Return the next multiple of unit, a power of two."""
    return (size + unit - 1) & ~(unit - 1)


def create(size: int, name: str) -> int:
    """Make a memfd of size bytes with every page reserved, and return its descriptor.

    MemoryError if there is no room, rather than SIGBUS at the first touch.
    """
    # The kernel would take memory from the whole machine until it has to kill
    # something before it says that there is not enough.
    if size > (room := available()):
        raise MemoryError(f"no room for {size} bytes of shared memory: {room} are available")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        os.close(fd)
        if e.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise MemoryError(f"no room for {size} bytes of shared memory: {e}") from e
        raise
    return fd


def available() -> int:
    """Return how many bytes could be reserved now: the machine's, or the control group's if that is less."""
    room = 1 << 62
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            room = int(line.split()[1]) << 10
    limit, used = (next(iter(_lines(f"/sys/fs/cgroup/memory.{name}")), "max") for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        # The group's page cache counts as used but can be dropped.
        cached = [int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("file ")]
        room = min(room, max(0, int(limit) - int(used) + sum(cached)))
    return room


def _lines(path: str) -> list[str]:
    try:
        with open(path) as f:
            return f.read(1 << 16).splitlines()
    except OSError:
        return []


def seal_batch(fd: int) -> None:
    """Make a memfd immutable for everyone. It must not be mapped writable and shared."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS_BATCH | _SEAL_SEAL)


def seal_arena(fd: int) -> None:
    """Fix a memfd's size and refuse writable maps other than those there are."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS_ARENA | _SEAL_SEAL)


def check_sealed(fd: int) -> None:
    """Raise SealsError unless nobody can change a memfd any more."""
    if fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS_BATCH != _SEALS_BATCH:
        raise SealsError("not sealed against writing")


def open_arena(fd: int, size: int) -> Mapping:
    """Verify and map read-only what the host granted; fd stays the caller's.

    SealsError unless it is a memfd of exactly size bytes, every page allocated
    (touching a hole could need memory that is not there, which is SIGBUS), sealed
    against changes of its size and against new writable maps or any writing.
    """
    if not 0 < size <= 1 << 46:
        raise SealsError(f"stated size {size}")
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as e:
        raise SealsError(f"not a memfd: it has no seals ({e})") from e
    if seals & _SEALS_ARENA != _SEALS_ARENA and seals & _SEALS_BATCH != _SEALS_BATCH:
        raise SealsError(f"seals {seals:#x}, want {_SEALS_ARENA:#x} or {_SEALS_BATCH:#x}")
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise SealsError("not a memfd")
    if info.st_size != size:
        raise SealsError(f"{info.st_size} bytes, stated {size}")
    if info.st_blocks * 512 < size:
        raise SealsError(f"{info.st_blocks * 512} of {size} bytes are allocated")
    mapping = Mapping(fd, size)
    mapping.pooled = not seals & _SEAL_WRITE
    return mapping
