"""What a host may send that it must not: the worker says why and ends."""

import os
import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stokehold import ProtocolError, SealsError, wire
from stokehold.testing import Host
from stokehold.wire import Kind

from .harness import Raw, arena, descriptors, drain, framed, numbers, until, worker

ID = bytes(range(16))
SIZE = 1 << 16
CONTENT = framed(numbers(1.0))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    until("descriptors are back", lambda: descriptors() == before)


def send_packet(host: Host, packet: bytes, *fds: int) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    host.channel._sock.sendmsg([packet], control)
    for fd in set(fds):
        os.close(fd)


def grant(host: Host, fd: int | None = None, size: int = SIZE) -> None:
    send_packet(
        host, wire.encode(Kind.ARENA, 0, wire.ARENA.pack(ID, size)), arena(content=CONTENT) if fd is None else fd
    )


def lease(host: Host, offset: int = 0, length: int = 64, *, number: int = 0, token: int = 1, of: bytes = ID) -> None:
    host.channel.send(Kind.BATCH, 1, wire.BATCH.pack(number, 0, token, of, offset, length, 1))


def packets(kind: int, job: int, payload: bytes = b"") -> bytes:
    return wire.HEADER.pack(kind, 0, job, len(payload), 0) + payload


BUSY = ("token twice", "more than the credit", "end twice")  # of a stage that holds a batch and reads no further
FAULTS: dict[str, tuple[Callable[[Raw], object], str]] = {
    "unknown kind": (lambda h: send_packet(h, packets(1000, 0)), "kind 1000"),
    "a worker's kind": (lambda h: send_packet(h, packets(Kind.DONE, 1, bytes(16))), "kind 38"),
    "second hello": (lambda h: send_packet(h, packets(Kind.HELLO, 0, bytes(32))), "kind 1 "),
    "short packet": (lambda h: send_packet(h, b"hi"), "packet of 2 bytes"),
    "false length": (lambda h: send_packet(h, wire.HEADER.pack(9, 0, 0, 99, 0) + bytes(8)), "stated 99"),
    "huge packet": (lambda h: send_packet(h, packets(9, 0, bytes(70_000))), "larger than 65536"),
    "ping of 7 bytes": (lambda h: send_packet(h, packets(Kind.PING, 0, bytes(7))), "payload of 7"),
    "two descriptors": (lambda h: send_packet(h, packets(Kind.ARENA, 0, bytes(24)), arena(), arena()), "2 descr"),
    "no descriptor": (lambda h: send_packet(h, packets(Kind.ARENA, 0, bytes(24))), "0 descr"),
    "many descriptors": (
        lambda h: send_packet(h, packets(Kind.PING, 0, bytes(8)), *[os.dup(0) for _ in range(9)]),
        "lost",
    ),
    "descriptor with ping": (lambda h: send_packet(h, packets(Kind.PING, 0, bytes(8)), arena()), "1 descr"),
    "unsealed arena": (lambda h: grant(h, arena(SIZE, 0)), "seals"),
    "arena of another size": (lambda h: grant(h, arena(2 * SIZE)), "stated 65536"),
    "device as arena": (lambda h: grant(h, os.open("/dev/null", os.O_RDONLY)), "memfd"),
    "arena twice": (lambda h: (grant(h), grant(h)), "twice"),
    "unknown arena": (lambda h: lease(h), "not granted"),
    "offset beyond": (lambda h: (grant(h), lease(h, SIZE)), "64 bytes at 65536"),
    "length beyond": (lambda h: (grant(h), lease(h, 64, SIZE)), "65536 bytes at 64"),
    "offset that overflows": (lambda h: (grant(h), lease(h, 2**64 - 8, 16)), "16 bytes at 18446744073709551608"),
    "length that overflows": (lambda h: (grant(h), lease(h, 8, 2**64 - 8)), "at 8 of"),
    "empty batch": (lambda h: (grant(h), lease(h, 0, 0)), "0 bytes"),
    "unaligned": (lambda h: (grant(h), lease(h, 4)), "not aligned"),
    "no such input": (lambda h: (grant(h), lease(h, number=3)), "input 3 of 1"),
    "token twice": (lambda h: lease(h, 0, len(CONTENT)), "token"),
    "more than the credit": (lambda h: [lease(h, 0, len(CONTENT), token=i) for i in range(2, 9)], "credit of 4"),
    "end twice": (lambda h: [h.channel.send(Kind.END, 1, wire.END.pack(0)) for _ in range(2)], "not open"),
    "ack of nothing": (lambda h: h.channel.send(Kind.ACK, 1, wire.U64.pack(0)), "no output"),
    "saved of nothing": (lambda h: h.channel.send(Kind.SAVED, 1, b"{}"), "no model"),
    "returned of nothing": (lambda h: h.channel.send(Kind.RETURNED, 0, wire.encode_tokens([7])), "not out"),
    "two jobs": (lambda h: h.task(job=2), "while another runs"),
    "forget of 3 bytes": (lambda h: h.channel.send(Kind.FORGET, 0, b"abc"), "3 bytes"),
    "goodbye with words": (lambda h: h.channel.send(Kind.GOODBYE, 0, b"bye"), "goodbye of 3"),
}


def hold(task: Any, batches: Any) -> None:
    kept = []
    for batch in batches:
        kept.append(batch)
        while not task.cancelled:
            threading.Event().wait(0.001)


@pytest.mark.parametrize("fault", FAULTS)
def test_violations_end_the_connection(fault: str) -> None:
    act, why = FAULTS[fault]
    with worker({"s": hold if fault in BUSY else drain}) as host:
        host.opened()
        if fault in BUSY:
            grant(host)
            lease(host, 0, len(CONTENT))
        act(host)
        said = b""
        while (packet := host.channel.receive()) is not None:
            if packet.kind == Kind.WORKER_ERROR:
                said = packet.payload
                break
            assert packet.kind in (Kind.FAILED, Kind.DONE, Kind.RELEASE), packet
        assert why in said.decode()
        host.join()
        assert isinstance(host.error, ProtocolError)
        assert isinstance(host.error, SealsError) == (
            fault in ("unsealed arena", "arena of another size", "device as arena")
        )


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (wire.HELLO.pack(wire.MAGIC, 1, 10_000, 0, 0, 0), "version 1, this side speaks 2"),
        (wire.HELLO.pack(wire.MAGIC, 3, 10_000, 0, 0, 0), "version 3"),
        (wire.HELLO.pack(7, 2, 10_000, 0, 0, 0), "not a Stokehold host"),
        (wire.HELLO.pack(wire.MAGIC, 2, 10_000, 0, 0, 0)[:-1], "payload of 31"),
        (b"", "hello of 0"),
    ],
)
def test_bad_greetings(payload: bytes, why: str) -> None:
    with worker({}) as host:
        host.channel.send(Kind.HELLO, 0, payload)
        assert why in host.expect(Kind.WORKER_ERROR).payload.decode()
        host.join()
        assert isinstance(host.error, ProtocolError)


@pytest.mark.parametrize(
    "note",
    [
        b"{",
        b"[]",
        b'{"stage":7,"inputs":[],"credit":4}',
        b'{"stage":"s","inputs":[],"credit":0}',
        b'{"stage":"s","inputs":[],"credit":257}',
        b'{"stage":"s","inputs":[],"credit":true}',
        b'{"stage":"s","inputs":[7],"credit":4}',
        b'{"stage":"s","inputs":[],"credit":4,"outputs":"thrown"}',
        b'{"stage":"s","inputs":[],"credit":4,"deadline_ms":"soon"}',
    ],
)
def test_bad_tasks(note: bytes) -> None:
    with worker({"s": drain}) as host:
        host.greet()
        host.channel.send(Kind.TASK, 1, note)
        host.expect(Kind.WORKER_ERROR)
        host.join()
        assert isinstance(host.error, ProtocolError)


def test_a_frame_that_is_none_fails_the_stage_alone() -> None:
    with worker({"s": drain}) as host:
        host.opened()
        grant(host, arena(SIZE, content=b"no frame at all"))
        lease(host, 0, 4096)
        while (packet := host.receive()).kind == Kind.RELEASE:
            pass
        assert packet.kind == Kind.FAILED
        assert "Arrow" in wire.from_json(packet.payload)["message"] or "IPC" in packet.payload.decode()
        host.task(job=2, inputs=[])
        host.expect(Kind.DONE)


def test_pings_are_answered_while_a_stage_computes() -> None:
    go = threading.Event()

    def busy(task: Any) -> None:
        assert go.wait(30)

    with worker({"s": busy}, heartbeat=0.2) as host:
        host.greet()
        host.task()
        for i in range(3):
            host.channel.send(Kind.PING, 0, wire.U64.pack(i))
            assert host.expect(Kind.PONG).payload == wire.U64.pack(i)
        go.set()
        host.expect(Kind.DONE)
        host.channel.send(Kind.PING, 0, wire.U64.pack(9))  # and between jobs
        host.expect(Kind.PONG)


def test_messages_that_cross_the_end_of_a_job_are_ignored() -> None:
    with worker({"s": drain}) as host:
        host.greet()
        host.task()
        host.expect(Kind.DONE)
        lease(host)
        for kind, payload in (
            (Kind.END, wire.END.pack(0)),
            (Kind.ACK, bytes(8)),
            (Kind.SAVED, b"{}"),
            (Kind.CANCEL, b""),
        ):
            host.channel.send(kind, 1, payload)
        host.task(job=2)
        host.expect(Kind.DONE)
        host.goodbye()
        host.join()
        assert host.error is None


def test_the_host_is_gone() -> None:
    with worker({"s": drain}) as host:
        host.opened()
        host.channel.close()
        host.join()
        assert host.error is None


def test_the_host_says_why_it_closes() -> None:
    reasons: list[str] = []

    def listen(task: Any, batches: Any) -> None:
        try:
            drain(task, batches)
        except Exception as e:
            reasons.append(str(e))
            raise

    with worker({"s": listen}) as host:
        host.opened()
        host.channel.send(Kind.HOST_ERROR, 0, b"enough of this")
        host.join()
        assert host.error is None
        assert "enough of this" in reasons[0]


def test_forget_unmaps_what_nobody_reads() -> None:
    def let_go(task: Any, batches: Any) -> None:
        for batch in batches:
            del batch  # or the loop would hold it until the next one is there

    with worker({"s": let_go}) as host:
        host.opened()
        content = framed(numbers(1.0))
        for token in (1, 2):
            grant(host, arena(SIZE, content=content, name="forgotten"))
            lease(host, 0, len(content), token=token)
            host.expect(Kind.RELEASE)
            host.channel.send(Kind.FORGET, 0, ID)
        host.channel.send(Kind.END, 1, wire.END.pack(0))
        host.expect(Kind.DONE)
        with open("/proc/self/maps") as maps:
            assert not [line for line in maps if "memfd:forgotten" in line]
