"""Messages as bytes."""

import re
from pathlib import Path

import pytest

from stokehold import ProtocolError, wire
from stokehold.wire import Kind

PAGE = Path(__file__).parents[2] / "docs" / "WORKER-PROTOCOL.md"
ARENA = bytes(range(16))
TOKEN = 0x1122334455667788

SENT = {
    "hello": (Kind.HELLO, 0, wire.HELLO.pack(wire.MAGIC, 2, 10_000, 1, 1 << 28, 1 << 30)),
    "ready": (Kind.READY, 0, wire.READY.pack(wire.MAGIC, wire.VERSION, 4242)),
    "arena": (Kind.ARENA, 0, wire.ARENA.pack(ARENA, 1 << 20)),
    "forget": (Kind.FORGET, 0, ARENA),
    "batch": (Kind.BATCH, 5, wire.BATCH.pack(1, 7, TOKEN, ARENA, 4096, 1000, 3)),
    "end": (Kind.END, 5, wire.END.pack(1)),
    "ack": (Kind.ACK, 5, wire.U64.pack(7)),
    "ping": (Kind.PING, 0, wire.U64.pack(1)),
    "returned": (Kind.RETURNED, 0, wire.encode_tokens([TOKEN])),
    "error": (Kind.HOST_ERROR, 0, b"late"),
    "release": (Kind.RELEASE, 5, wire.encode_tokens([TOKEN])),
    "output": (Kind.OUTPUT, 5, wire.OUTPUT.pack(7, 4096, 1000)),
    "done": (Kind.DONE, 5, wire.DONE.pack(64, 0)),
    "open": (Kind.OPEN, 5, wire.OPEN.pack(1, 3, 9)),
    "grant": (Kind.GRANT, 0, wire.ARENA.pack(ARENA, 1 << 20)),
    "publish": (Kind.PUBLISH, 5, wire.PUBLISH.pack(7, TOKEN, ARENA, 4096, 1000, 3)),
    "model": (Kind.MODEL, 5, wire.MODEL.pack(4096, 1000) + wire.to_json({"format": "safetensors"})),
}


def test_messages_are_those_of_the_specification() -> None:
    if not PAGE.exists():
        pytest.skip(f"SKIPPED: {PAGE} is not here: this proves nothing outside of the repository")
    block = re.search(r"```vectors\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    vectors: dict[str, bytes] = {}
    name = ""
    for line in block[1].splitlines():
        if line.startswith(" "):
            vectors[name] += bytes.fromhex(line)
        else:
            name = line.strip()
            vectors[name] = b""
    assert vectors.keys() == SENT.keys()
    for name, (kind, job, payload) in SENT.items():
        assert wire.encode(kind, job, payload).hex() == vectors[name].hex(), name
        fds = (9,) if kind in wire.WITH_DESCRIPTOR else ()
        assert wire.decode(vectors[name], fds) == (kind, job, payload, fds)


@pytest.mark.parametrize(
    ("packet", "fds", "why"),
    [
        (b"hi", (), "packet of 2 bytes"),
        (wire.HEADER.pack(9, 1, 0, 0, 0), (), "reserved"),
        (wire.HEADER.pack(9, 0, 0, 0, 1), (), "reserved"),
        (wire.HEADER.pack(9, 0, 0, 5, 0) + b"1234", (), "stated 5"),
        (wire.HEADER.pack(9, 0, 0, 0, 0), (3,), "1 descriptors, want 0"),
        (wire.HEADER.pack(2, 0, 0, 0, 0), (), "0 descriptors, want 1"),
        (wire.HEADER.pack(2, 0, 0, 0, 0), (3, 4), "2 descriptors, want 1"),
        (wire.HEADER.pack(9, 0, 7, 0, 0), (), "job number 7"),
        (wire.HEADER.pack(5, 0, 0, 0, 0), (), "job number 0"),
    ],
)
def test_malformed_packets(packet: bytes, fds: tuple[int, ...], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        wire.decode(packet, fds)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\1\0\0\0", wire.TOKENS.pack(0), wire.TOKENS.pack(1), wire.TOKENS.pack(1025) + bytes(8 * 1025), b"\xff" * 8],
)
def test_malformed_token_lists(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.tokens(payload)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"7", b"\xff", b'{"a":'])
def test_malformed_json(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.from_json(payload)


def test_json_has_no_nan_and_takes_array_scalars() -> None:
    np = pytest.importorskip("numpy")
    assert wire.to_json({"a": np.float32(0.5), "b": np.arange(2)}) == b'{"a":0.5,"b":[0,1]}'
    with pytest.raises(ValueError, match="JSON"):
        wire.to_json(float("nan"))
    with pytest.raises(TypeError, match="object has no JSON form"):
        wire.to_json(object())


def test_large_messages_are_refused_and_text_is_cut_between_characters() -> None:
    with pytest.raises(ValueError, match="by reference"):
        wire.encode(Kind.LOG, 1, bytes(wire.MAX_PAYLOAD + 1))
    assert wire.clip("aé", 2) == "a"
    assert wire.clip("éa", 2, keep_end=True) == "a"
    assert wire.clip("\ud800 lone", 99) == "? lone"
