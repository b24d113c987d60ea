"""Packets and descriptors over a SOCK_SEQPACKET Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from array import array

from . import wire
from .errors import HostGoneError, ProtocolError

# As plain integers: the enumerations take microseconds to combine.
_CMSG_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000))
_DONTWAIT, _CTRUNC, _TRUNC = int(socket.MSG_DONTWAIT), int(socket.MSG_CTRUNC), int(socket.MSG_TRUNC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
# No message carries more than one descriptor. The rest of the space is there to
# tell too many from a full descriptor table.
_CONTROL_BYTES = socket.CMSG_SPACE(4 * 4)
_MOST_UNREAD = 4096  # packets; a socket holds fewer
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})


class Channel:
    """One end of the connection, which owns the socket.

    Sends may come from several threads; there is one receiver at a time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.RLock()  # a finalizer that logs may run in the middle of a send
        self._buffer = memoryview(bytearray(wire.MAX_PACKET + 1))
        self._buffers = [self._buffer]

    def send(self, kind: wire.Kind, job: int = 0, payload: bytes = b"", fd: int | None = None) -> None:
        """Send a message, with a duplicate of fd, which stays the caller's.

        HostGoneError if the peer is gone, ValueError if the message is too large.
        """
        packet = wire.encode(kind, job, payload)
        try:
            with self._lock:
                if fd is None:
                    self._sock.send(packet, _NOSIGNAL)
                else:
                    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                    self._sock.sendmsg([packet], control, _NOSIGNAL)
        except OSError as e:
            if e.errno in _GONE:
                raise HostGoneError("the host is gone") from e
            raise

    def receive(self, *, wait: bool = True) -> wire.Packet | None:
        """Return the next message; None if there is none and wait is false.

        HostGoneError at the end of file, ProtocolError if it is not a message.
        Descriptors that came with a bad one are closed.
        """
        flags = _CMSG_CLOEXEC | (0 if wait else _DONTWAIT)
        try:
            n, control, got, _ = self._sock.recvmsg_into(self._buffers, _CONTROL_BYTES, flags)
        except BlockingIOError:
            return None
        except OSError as e:
            if e.errno in _GONE:
                raise HostGoneError("the host is gone") from e
            raise
        fds = _descriptors(control) if control else ()
        try:
            if n == 0 and not fds:
                raise HostGoneError("the host closed the connection")
            if got & _CTRUNC:
                raise ProtocolError(
                    "descriptors were lost: too many in one message, or no room for more (RLIMIT_NOFILE)"
                )
            if got & _TRUNC or n > wire.MAX_PACKET:
                raise ProtocolError(f"message larger than {wire.MAX_PACKET} bytes")
            return wire.decode(self._buffer[:n], fds)
        except Exception:
            for fd in fds:
                os.close(fd)
            raise

    def complain(self, kind: wire.Kind, why: str) -> None:
        """Say why the connection is about to be closed, if that can be said at once."""
        packet = wire.encode(kind, 0, wire.clip(why, wire.MAX_REASON).encode())
        with contextlib.suppress(OSError):  # it is for people, and the connection ends anyway
            self._sock.sendmsg([packet], [], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def close(self) -> None:
        """End the connection. Whoever waits in receive sees its end. Repeatable."""
        with contextlib.suppress(OSError):  # not connected any more
            self._sock.shutdown(socket.SHUT_RDWR)
            # Where something is left unread, the kernel tells the peer of a reset before
            # it gives out what was sent to it: the reason that complain gave.
            for _ in range(_MOST_UNREAD):
                if not self._sock.recv(1, _DONTWAIT):
                    break
        self._sock.close()

    def abandon(self) -> None:
        """Close this process's descriptor and leave the connection to those that share it."""
        self._sock.close()


def _descriptors(control: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)
