"""Messages of the worker protocol, version 2, as bytes.

The numbers here are docs/WORKER-PROTOCOL.md; change both or neither. Sizes and
offsets are in bytes, integers little-endian.
"""

from __future__ import annotations

import json
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from .errors import ProtocolError

VERSION = 2
MAGIC = 0x574B5453  # "STKW" in memory
SOCKET_FD = 3
ENVIRONMENT = "STOKEHOLD_WORKER"

HEADER = Struct("<HHIII")
_HEADER_BYTES = HEADER.size
MAX_PACKET = 65_536
MAX_PAYLOAD = MAX_PACKET - HEADER.size
MAX_TOKENS = 1024  # in one release or returned
MAX_REASON = 1024  # bytes of error and cancel
MAX_MESSAGE = 8192  # bytes of a failure's message
MAX_TRACEBACK = 16_384
OUTPUT_WINDOW = 4  # outputs not acknowledged
MAX_CREDIT = 256
MAX_GRANTS = 8
MAX_SLOTS_OUT = 65_536

EVERYTHING = 2**64 - 1  # to of open: all there will be; from: where the input begins for this run
APPENDED = 1 << 63  # in a sequence: a count of the stage's own appends
RESTORED = "stokehold.restored"  # progress value: the stage goes on from its checkpoint
SHARED_ALLOWED = 1  # flag of hello


class Kind(IntEnum):
    """What a message is. Below 32 the host sends it, from 32 on the worker."""

    HELLO = 1
    ARENA = 2
    FORGET = 3
    TASK = 4
    BATCH = 5
    END = 6
    ACK = 7
    CANCEL = 8
    PING = 9
    GOODBYE = 10
    RETURNED = 11
    SAVED = 12
    HOST_ERROR = 13
    READY = 32
    RELEASE = 33
    OUTPUT = 34
    PROGRESS = 35
    LOG = 36
    METRICS = 37
    DONE = 38
    FAILED = 39
    PONG = 40
    OPEN = 41
    GRANT = 42
    PUBLISH = 43
    MODEL = 44
    WORKER_ERROR = 45


# Plain integers, as is what comes out of a packet.
WITH_DESCRIPTOR = frozenset(map(int, {Kind.ARENA, Kind.OUTPUT, Kind.GRANT, Kind.MODEL}))
OF_A_JOB = frozenset(
    int(kind)
    for kind in (
        Kind.TASK,
        Kind.BATCH,
        Kind.END,
        Kind.ACK,
        Kind.CANCEL,
        Kind.SAVED,
        Kind.RELEASE,
        Kind.OUTPUT,
        Kind.PROGRESS,
        Kind.LOG,
        Kind.METRICS,
        Kind.DONE,
        Kind.FAILED,
        Kind.OPEN,
        Kind.PUBLISH,
        Kind.MODEL,
    )
)

HELLO = Struct("<IIIIQQ")  # magic, version, heartbeat ms, flags, most arena bytes, most model bytes
GREETING = Struct("<II")  # how hello and ready of every version begin
READY = Struct("<III")  # magic, version, process id
ARENA = Struct("<16sQ")  # id, size; also of grant
BATCH = Struct("<H6xQQ16sQQQ")  # input, sequence, token, arena, offset, length, generation
END = Struct("<H")
U64 = Struct("<Q")
TOKENS = Struct("<I4x")  # count; then so many u64
_ONE_TOKEN = Struct("<I4xQ")
OUTPUT = Struct("<QQQ")  # sequence, size, length
OPEN = Struct("<H6xQQ")  # input, from, to
PUBLISH = Struct("<QQ16sQQQ")  # sequence, token, arena, offset, length, generation
MODEL = Struct("<QQ")  # size, length; then JSON
DONE = Struct("<QQ")  # body bytes written, copied


class Packet(NamedTuple):
    """One message; its descriptors are the receiver's to close."""

    kind: int
    job: int
    payload: bytes
    fds: tuple[int, ...] = ()


def encode(kind: Kind, job: int, payload: bytes) -> bytes:
    """Return a packet. ValueError if the payload is too large for one."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(
            f"{kind.name.lower()} message of {len(payload)} bytes: at most {MAX_PAYLOAD} fit; "
            "pass large values by reference"
        )
    return HEADER.pack(kind, 0, job, len(payload), 0) + payload


def decode(packet: bytes | memoryview, fds: tuple[int, ...] = ()) -> Packet:
    """Read the header and check everything in it that does not depend on state."""
    size = len(packet)
    if size < _HEADER_BYTES:
        raise ProtocolError(f"packet of {size} bytes")
    kind, reserved, job, length, reserved2 = HEADER.unpack_from(packet)
    if reserved or reserved2:
        raise ProtocolError("reserved header fields are not 0")
    if length != size - _HEADER_BYTES:
        raise ProtocolError(f"payload of {size - _HEADER_BYTES} bytes, stated {length}")
    if (kind in WITH_DESCRIPTOR) != len(fds):
        raise ProtocolError(f"message of kind {kind} with {len(fds)} descriptors, want {int(kind in WITH_DESCRIPTOR)}")
    if (kind in OF_A_JOB) != (job != 0):
        raise ProtocolError(f"message of kind {kind} with job number {job}")
    return Packet(kind, job, bytes(packet[_HEADER_BYTES:]), fds)


def fields(layout: Struct, payload: bytes) -> tuple[Any, ...]:
    """Read a payload of fixed layout."""
    if len(payload) != layout.size:
        raise ProtocolError(f"payload of {len(payload)} bytes, want {layout.size}")
    return layout.unpack(payload)


def tokens(payload: bytes) -> tuple[int, ...]:
    """Read the payload of release or returned."""
    count = TOKENS.unpack_from(payload)[0] if len(payload) >= TOKENS.size else 0
    if not 1 <= count <= MAX_TOKENS or len(payload) != TOKENS.size + U64.size * count:
        raise ProtocolError(f"list of {count} tokens in {len(payload)} bytes: 1 to {MAX_TOKENS}")
    return Struct(f"<{count}Q").unpack_from(payload, TOKENS.size)


def encode_tokens(values: list[int]) -> bytes:
    """Write the payload of release or returned."""
    if len(values) == 1:  # as a rule
        return _ONE_TOKEN.pack(1, values[0])
    return TOKENS.pack(len(values)) + Struct(f"<{len(values)}Q").pack(*values)


def to_json(value: Any) -> bytes:
    """Encode as the protocol's JSON, which has no NaN. Numbers of array libraries are taken as Python's."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def from_json(payload: bytes) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(payload)
    except ValueError as e:
        raise ProtocolError(f"malformed JSON: {e}") from e
    if not isinstance(value, dict):
        raise ProtocolError(f"JSON {type(value).__name__}, want an object")
    return value


def _plain(value: Any) -> Any:
    for method in ("tolist", "item"):  # NumPy, PyTorch and JAX arrays and scalars
        if callable(getattr(value, method, None)):
            return getattr(value, method)()
    if callable(getattr(value, "as_py", None)):  # Arrow scalars
        return value.as_py()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def clip(text: str, most: int, *, keep_end: bool = False) -> str:
    """Cut text to a number of UTF-8 bytes."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= most:
        return raw.decode()
    return (raw[-most:] if keep_end else raw[:most]).decode("utf-8", "ignore")
