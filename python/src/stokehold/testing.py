"""Try a stage without a host: a small host in Python, speaking the real protocol over a real socket.

::

    from stokehold.testing import run

    result = run(train, [batch], params={"epochs": 2})
    assert result.metrics["loss"] < 0.8
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from . import frame, memory, wire
from .channel import Channel
from .errors import HostGoneError, StokeholdError
from .wire import Kind
from .worker import Stage, Worker

_WAIT = 30.0  # seconds for a message, then the test has failed
_SCRIBBLE = 0xDB  # what released memory is filled with, so that reading it is seen
_HEARTBEAT = 10.0


class StageFailedError(StokeholdError):
    """The stage failed; the message ends with its traceback."""

    def __init__(self, failure: dict[str, Any]) -> None:
        self.failure = failure
        """What the worker said: message, traceback, permanent, unknown_stage."""
        super().__init__("\n".join(filter(None, (failure.get("message"), failure.get("traceback")))))


@dataclass
class Output:
    """A batch that the stage published."""

    sequence: int
    """Its place: a count of appends, or what the stage said."""
    batch: pa.RecordBatch
    """Validated, in the memory that the worker published."""
    shared: bool
    """It lies in the worker's own arena rather than in a memfd of its own."""
    appended: bool
    """It was appended rather than placed."""


@dataclass
class Model:
    """A model that the stage saved."""

    version: str
    data: bytes
    note: dict[str, Any]
    """format, metrics, precision, metadata, kind."""


@dataclass
class Result:
    """What came of a stage."""

    outputs: list[Output] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    checkpoint: Any = None
    failure: dict[str, Any] | None = None
    written_bytes: int = 0
    """Body bytes that the worker copied into outputs."""
    copied_bytes: int = 0
    """Body bytes that it copied out of leased memory."""
    lent: int = 0
    """Batches leased to it."""
    most_lent: int = 0
    """Batches leased at once, at most."""
    reclaimed: int = 0
    """Leases that it did not give back itself."""
    releases: int = 0
    """Messages that gave leases back."""

    @property
    def batches(self) -> list[pa.RecordBatch]:
        """The published batches, in the order in which they came."""
        return [o.batch for o in self.outputs]


class _Arena:
    """Shared memory that the host leases from, in slots that are powers of two in size."""

    def __init__(self, size: int) -> None:
        self.id = secrets.token_bytes(16)
        self.size = size
        self.fd = memory.create(size, "stokehold-test")
        self.mapping = memory.Mapping(self.fd, size, writable=True)
        memory.seal_arena(self.fd)
        self._used = 0
        self._free: dict[int, list[int]] = {}

    def put(self, laid: frame.Frame) -> tuple[int, int] | None:
        room = max(64, 1 << (laid.size - 1).bit_length())
        if free := self._free.get(room):
            offset = free.pop()
        elif self.size - self._used >= room:
            offset = self._used
            self._used += room
        else:
            return None
        laid.write(self.mapping.address + offset)
        return offset, room

    def free(self, offset: int, room: int) -> None:
        self.mapping.view(offset, room)[:] = bytes([_SCRIBBLE]) * room
        self._free.setdefault(room, []).append(offset)


class Host:
    """The host's end of a connection, one job at a time. Messages are sent and received by one thread."""

    def __init__(
        self,
        *,
        credit: int = 4,
        shared_outputs: bool = False,
        granted_bytes: int = 1 << 30,
        model_bytes: int = 1 << 30,
        arena_bytes: int = 16 << 20,
        heartbeat: float = _HEARTBEAT,
        keep_slots: bool = False,
    ) -> None:
        """worker_socket is the other end, for a Worker. keep_slots: never return what a shared output lies in."""
        ours, self.worker_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_WAIT)
        self.channel = Channel(ours)
        self.pid = 0
        """The worker's process id, once it is ready."""
        self._credit = credit
        self._hello = (heartbeat, shared_outputs, granted_bytes if shared_outputs else 0, model_bytes)
        self._arena_bytes = arena_bytes
        self._arenas: list[_Arena] = []
        self._granted: dict[bytes, memory.Mapping] = {}
        self._keep_slots = keep_slots
        self._jobs = 0

    def greet(self) -> None:
        """Say hello and wait for ready."""
        heartbeat, shared, granted, model = self._hello
        hello = wire.HELLO.pack(wire.MAGIC, wire.VERSION, int(heartbeat * 1000), int(shared), granted, model)
        self.channel.send(Kind.HELLO, 0, hello)
        _, version, self.pid = wire.fields(wire.READY, self.expect(Kind.READY).payload)
        if version != wire.VERSION:
            raise AssertionError(f"ready with version {version}")

    def expect(self, kind: Kind) -> wire.Packet:
        """Return the next message, which has to be of that kind."""
        packet = self.receive()
        if packet.kind != kind:
            raise AssertionError(f"message of kind {packet.kind}, want {kind}: {packet.payload[:200]!r}")
        return packet

    def receive(self) -> wire.Packet:
        """Return the next message. TimeoutError if none comes."""
        packet = self.channel.receive()
        if packet is None:
            raise AssertionError("no message")
        return packet

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Iterable[pa.RecordBatch]] | None = None,
        params: Any = None,
        *,
        shared: bool = False,
        deadline_ms: int | None = None,
        cancel_when: Callable[[Result], bool] | None = None,
    ) -> Result:
        """Run a job and return what came of it. cancel_when is asked after each message."""
        self._jobs += 1
        sources = {name: list(batches) for name, batches in (inputs or {}).items()}
        note: dict[str, Any] = {"stage": stage, "params": params, "inputs": list(sources), "credit": self._credit}
        if shared:
            note["outputs"] = "shared"
        if deadline_ms is not None:
            note["deadline_ms"] = deadline_ms
        self.channel.send(Kind.TASK, self._jobs, wire.to_json(note))
        return _Run(self, self._jobs, list(sources.values()), cancel_when).serve()

    def goodbye(self) -> None:
        """Ask the worker to end."""
        self.channel.send(Kind.GOODBYE)

    def close(self) -> None:
        """End the connection and the arenas."""
        self.channel.close()
        for arena in self._arenas:
            os.close(arena.fd)
        self._arenas.clear()

    def lend(self, batch: pa.RecordBatch) -> tuple[_Arena, int, int, int]:
        """Put a batch into an arena that the worker knows: arena, offset, length, size of the slot."""
        laid = frame.Frame(batch)
        for arena in self._arenas:
            if place := arena.put(laid):
                return arena, place[0], laid.size, place[1]
        arena = _Arena(max(self._arena_bytes, 1 << laid.size.bit_length()))
        self._arenas.append(arena)
        self.channel.send(Kind.ARENA, 0, wire.ARENA.pack(arena.id, arena.size), arena.fd)
        place = arena.put(laid)
        if place is None:
            raise AssertionError("an empty arena has no room")
        return arena, place[0], laid.size, place[1]

    def grant(self, packet: wire.Packet) -> None:
        """Take note of the worker's own arena."""
        arena, size = wire.fields(wire.ARENA, packet.payload)
        self._granted[arena] = memory.open_arena(packet.fds[0], size)
        os.close(packet.fds[0])

    def published(self, payload: bytes) -> tuple[int, pa.RecordBatch]:
        """Read a shared output, and return its slot unless slots are kept."""
        sequence, token, arena, offset, length, _ = wire.fields(wire.PUBLISH, payload)
        batch = _validated(self._granted[arena].buffer(offset, length))
        if not self._keep_slots:
            batch = _validated(pa.py_buffer(self._granted[arena].buffer(offset, length).to_pybytes()))
            self.channel.send(Kind.RETURNED, 0, wire.encode_tokens([token]))
        return sequence, batch


class _Run:
    """One job, host side."""

    def __init__(
        self,
        host: Host,
        number: int,
        inputs: Sequence[list[pa.RecordBatch]],
        cancel_when: Callable[[Result], bool] | None,
    ) -> None:
        self._host = host
        self._number = number
        self._inputs = inputs
        self._cancel_when = cancel_when
        self._ranges: dict[int, list[int]] = {}  # open inputs: next and last sequence
        self._leased: dict[int, tuple[int, _Arena, int, int]] = {}
        self._result = Result()

    def serve(self) -> Result:
        while True:
            packet = self._host.receive()
            if self._handle(packet):
                self._result.reclaimed = len(self._leased)
                for _, arena, offset, room in self._leased.values():
                    arena.free(offset, room)
                return self._result
            if self._cancel_when is not None and self._cancel_when(self._result):
                self._cancel_when = None
                self._send(Kind.CANCEL, b"not wanted any more")
            self._feed()

    def _send(self, kind: Kind, payload: bytes) -> None:
        self._host.channel.send(kind, self._number, payload)

    def _handle(self, packet: wire.Packet) -> bool:
        payload, r = packet.payload, self._result
        match packet.kind:
            case Kind.OPEN:
                number, start, stop = wire.fields(wire.OPEN, payload)
                if number in self._ranges or number >= len(self._inputs):
                    raise AssertionError(f"open of input {number}")
                start = 0 if start == wire.EVERYTHING else start
                self._ranges[number] = [start, min(stop, len(self._inputs[number]))]
            case Kind.RELEASE:
                r.releases += 1
                for token in wire.tokens(payload):
                    _, arena, offset, room = self._leased.pop(token)
                    arena.free(offset, room)
            case Kind.OUTPUT:
                self._output(packet)
            case Kind.GRANT:
                self._host.grant(packet)
            case Kind.PUBLISH:
                sequence, batch = self._host.published(payload)
                self._took(sequence, batch, shared=True)
            case Kind.MODEL:
                self._model(packet)
            case Kind.PROGRESS:
                note = wire.from_json(payload)
                r.progress.append(note)
                r.notes.update(note.get("notes", {}))
                r.checkpoint = note.get("checkpoint", r.checkpoint)
            case Kind.LOG:
                r.logs.append(wire.from_json(payload))
            case Kind.METRICS:
                r.metrics.update(wire.from_json(payload))
            case Kind.DONE:
                r.written_bytes, r.copied_bytes = wire.fields(wire.DONE, payload)
                return True
            case Kind.FAILED:
                r.failure = wire.from_json(payload)
                r.written_bytes = r.failure.get("written_bytes", 0)
                r.copied_bytes = r.failure.get("copied_bytes", 0)
                return True
            case Kind.WORKER_ERROR:
                r.failure = {"message": payload.decode()}
                return True
            case Kind.PONG:
                pass
            case _:
                raise AssertionError(f"message of kind {packet.kind} from the worker: {payload!r}")
        return False

    def _feed(self) -> None:
        for number, span in list(self._ranges.items()):
            while span[0] < span[1] and sum(n == number for n, *_ in self._leased.values()) < self._host._credit:
                sequence, span[0] = span[0], span[0] + 1
                arena, offset, length, room = self._host.lend(self._inputs[number][sequence])
                token = secrets.randbits(64)
                self._leased[token] = (number, arena, offset, room)
                self._result.lent += 1
                self._result.most_lent = max(self._result.most_lent, len(self._leased))
                self._send(Kind.BATCH, wire.BATCH.pack(number, sequence, token, arena.id, offset, length, sequence + 1))
            if span[0] >= span[1]:
                del self._ranges[number]
                self._send(Kind.END, wire.END.pack(number))

    def _output(self, packet: wire.Packet) -> None:
        sequence, size, length = wire.fields(wire.OUTPUT, packet.payload)
        mapping = memory.open_arena(packet.fds[0], size)
        memory.check_sealed(packet.fds[0])
        os.close(packet.fds[0])
        self._took(sequence, _validated(mapping.buffer(0, length)), shared=False)

    def _took(self, sequence: int, batch: pa.RecordBatch, *, shared: bool) -> None:
        appended = bool(sequence & wire.APPENDED)
        self._result.outputs.append(Output(sequence & ~wire.APPENDED, batch, shared, appended))
        self._send(Kind.ACK, wire.U64.pack(sequence))

    def _model(self, packet: wire.Packet) -> None:
        size, length = wire.MODEL.unpack_from(packet.payload)
        mapping = memory.open_arena(packet.fds[0], size)
        memory.check_sealed(packet.fds[0])
        os.close(packet.fds[0])
        data = mapping.buffer(0, length).to_pybytes()
        note = wire.from_json(packet.payload[wire.MODEL.size :])
        version = hashlib.sha256(data).hexdigest()
        self._result.models.append(Model(version, data, note))
        self._send(Kind.SAVED, wire.to_json({"model": "model", "version": version}))


def run(
    stage: Stage,
    batches: Iterable[pa.RecordBatch] = (),
    params: Mapping[str, Any] | None = None,
    *,
    inputs: Mapping[str, Iterable[pa.RecordBatch]] | None = None,
    attempt: int = 1,
    seed: int = 0,
    checkpoint: Any = None,
    written: int = 0,
    credit: int = 4,
    shared: bool = False,
    deadline: float | None = None,
    cancel_when: Callable[[Result], bool] | None = None,
    check: bool = True,
) -> Result:
    """Run a stage in this thread against a host in another, as in a pipeline.

    batches is its one input, inputs are several by name. checkpoint and written (a
    number of batches) are what an earlier attempt left. shared: outputs lie in the
    worker's arena. deadline in seconds from now. cancel_when is asked after each
    message whether to cancel. StageFailedError if the stage fails, unless check is
    false: then Result.failure says why.
    """
    named = dict(inputs) if inputs is not None else {"batches": batches}
    job = {
        "assignment": {
            "pipeline": "test",
            "run": "test/1",
            "stage": "stage",
            "kind": "train",
            "attempt": attempt,
            "seed": seed,
            "params": dict(params or {}),
            "inputs": [{"name": name, "dataset": f"test/1/{name}"} for name in named],
            "output": "test/1/stage",
            "model": "model",
        },
    }
    if checkpoint is not None:
        job["checkpoint"] = checkpoint
        job["written"] = {"batches": written, "rows": 0, "from": 0, "to": written}
    host = Host(credit=credit, shared_outputs=shared)
    got: list[Result | BaseException] = []

    def serve() -> None:
        try:
            host.greet()
            got.append(
                host.run(
                    "test/stage",
                    {f"test/1/{name}": b for name, b in named.items()},
                    job,
                    shared=shared,
                    deadline_ms=None if deadline is None else int(deadline * 1000),
                    cancel_when=cancel_when,
                )
            )
            with contextlib.suppress(HostGoneError):  # it ended by itself, and the result says why
                host.goodbye()
        except BaseException as e:  # noqa: BLE001 (raised below, in the caller's thread)
            got.append(e)
        finally:
            if got and isinstance(got[-1], BaseException):
                host.close()

    thread = threading.Thread(target=serve, name="stokehold-test-host")
    thread.start()
    try:
        Worker(host.worker_socket, {"stage": stage}).run()
    except StokeholdError:
        if not got or isinstance(got[0], Result):
            pass  # the failure says it
    finally:
        thread.join(_WAIT)
        host.close()
    outcome = got[0] if got else AssertionError("the host did not end")
    if isinstance(outcome, BaseException):
        raise outcome
    if check and outcome.failure is not None:
        raise StageFailedError(outcome.failure)
    return outcome


def _validated(buffer: pa.Buffer) -> pa.RecordBatch:
    batch = frame.read(buffer)
    batch.validate(full=True)
    return batch
