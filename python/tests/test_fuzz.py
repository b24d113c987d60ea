"""A host that sends noise: the worker ends with a typed error, and nothing is left."""

import random
import socket
from array import array

import pytest

from stokehold import ProtocolError, StokeholdError, wire
from stokehold.testing import Host
from stokehold.wire import Kind

from .harness import arena, descriptors, drain, framed, numbers, until, worker

ID = bytes(range(16))
CONTENT = framed(numbers(1.0, 2.0))


@pytest.mark.parametrize("seed", range(4))
def test_packets_of_noise(seed: int) -> None:
    noise = random.Random(seed)
    good = [wire.encode(k, 1 if k in wire.OF_A_JOB else 0, noise.randbytes(24)) for k in Kind]
    for _ in range(2000):
        packet = bytearray(noise.choice(good))
        for _ in range(noise.randrange(4)):
            packet[noise.randrange(len(packet))] = noise.randrange(256)
        packet = packet[: noise.randrange(len(packet) + 1)]
        try:
            p = wire.decode(bytes(packet), (5,) * noise.randrange(2))
            wire.tokens(p.payload)
            wire.from_json(p.payload)
        except ProtocolError:
            pass


def valid(noise: random.Random) -> tuple[bytes, bool]:
    """Return a message that a host might send in a job with one open input, and whether it carries an arena."""
    token = noise.randrange(6)
    offset, length = noise.choice([(0, len(CONTENT)), (64, len(CONTENT)), (0, 2**63), (2**64 - 64, 128)])
    return noise.choice(
        [
            (wire.encode(Kind.ARENA, 0, wire.ARENA.pack(ID, 1 << 16)), True),
            (wire.encode(Kind.FORGET, 0, ID), False),
            (wire.encode(Kind.BATCH, 1, wire.BATCH.pack(noise.randrange(2), 0, token, ID, offset, length, 1)), False),
            (wire.encode(Kind.PING, 0, bytes(8)), False),
            (wire.encode(Kind.ACK, 1, bytes(8)), False),
            (wire.encode(Kind.CANCEL, 1, b"enough"), False),
            (wire.encode(Kind.END, 1, wire.END.pack(0)), False),
            (wire.encode(Kind.RETURNED, 0, wire.encode_tokens([token])), False),
            (wire.encode(Kind.TASK, 2, wire.to_json({"stage": "s", "inputs": ["in"], "credit": 1})), False),
        ]
    )


def noisy(host: Host, noise: random.Random) -> None:
    for _ in range(noise.randrange(1, 30)):
        packet, carries = valid(noise)
        if noise.random() < 0.1:
            broken = bytearray(packet)
            broken[noise.randrange(len(broken))] ^= 1 << noise.randrange(8)
            packet = bytes(broken)
        fds = [arena(content=CONTENT)] if carries else []
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            host.channel._sock.sendmsg([packet], control, socket.MSG_DONTWAIT)
        except OSError:
            return  # it has hung up
        finally:
            for fd in fds:
                socket.close(fd)


def test_conversations_of_noise() -> None:
    before = descriptors()
    for seed in range(60):
        with worker({"s": drain}, shared_outputs=bool(seed % 2)) as host:
            host.opened()
            noisy(host, random.Random(seed))
        assert host.error is None or isinstance(host.error, StokeholdError), (seed, host.error)
    until("descriptors are back", lambda: descriptors() == before)
