"""The worker's end of the connection: who receives, what each message does, which leases are held.

The socket is read by whoever waits for something, so that a batch wakes the
thread that wants it and no other. While stage code runs and nobody waits, a
keeper thread looks at the socket a few times per heartbeat: it answers pings,
notes a cancellation and sends releases.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from . import memory, wire
from .channel import Channel
from .errors import Cancelled, HostGoneError, ProtocolError
from .memory import Mapping
from .pool import Pool
from .wire import Kind

_TICK = 0.05  # seconds between two looks of the keeper, at most
_ABANDONED = 10.0  # seconds after the host's end when a stage that goes on is ended with its process


class Lease:
    """The host's promise that a batch's bytes stay as they are, until the last reference to this is gone."""

    __slots__ = ("__weakref__", "_dropped", "mapping", "token")

    def __init__(self, token: int, mapping: Mapping, dropped: deque[int]) -> None:
        self.token = token
        self.mapping = mapping
        self._dropped = dropped

    def __del__(self) -> None:
        # This may run anywhere, in the middle of anything: no lock, no send.
        self._dropped.append(self.token)


class Arrival(NamedTuple):
    """A batch that was leased and not yet looked at."""

    sequence: int
    lease: Lease
    offset: int
    length: int


class InputState:
    """One input of the running job."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = False
        self.stale = False  # a loop over it was left before its end
        self.arrivals: deque[Arrival] = deque()
        self.held = 0  # leases, those of arrivals included


class Job:
    """What the connection knows of the job that runs."""

    def __init__(self, number: int, note: dict[str, Any]) -> None:
        self.number = number
        self.stage = _typed(note, "stage", str)
        self.params = note.get("params")
        self.credit: int = _typed(note, "credit", int)
        names = _typed(note, "inputs", list) if note.get("inputs") is not None else []
        if not 1 <= self.credit <= wire.MAX_CREDIT:
            raise ProtocolError(f"credit {self.credit}")
        if not all(isinstance(n, str) for n in names):
            raise ProtocolError("inputs that are not names")
        self.inputs = [InputState(n) for n in names]
        self.outputs = note.get("outputs", "sealed")
        if self.outputs not in ("sealed", "shared"):
            raise ProtocolError(f"outputs {self.outputs!r}")
        limit = note.get("deadline_ms")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise ProtocolError(f"deadline_ms {limit!r}")
        self.deadline = None if limit is None else time.monotonic() + limit / 1000
        self.cancelled: str | None = None  # the reason
        self.sent = self.acked = 0  # outputs
        self.saved: dict[str, Any] | None = None
        self.saving = False
        self.dropped: deque[int] = deque()  # tokens of leases that nobody refers to any more
        self.leases: dict[int, InputState] = {}
        self.ending = False  # the stage has returned: batches that still come are not looked at
        self.over = False


class Limits(NamedTuple):
    """What the host said in hello."""

    heartbeat: float  # seconds
    shared_outputs: bool
    arena_bytes: int
    model_bytes: int


class Connection:
    """The protocol's state. One thread runs stages, any may send."""

    def __init__(self, channel: Channel, *, arena_bytes: int, exit_if_abandoned: bool = False) -> None:
        self.channel = channel
        self.arenas: dict[bytes, Mapping] = {}
        self.job: Job | None = None
        self.fault: Exception | None = None
        self.limits = Limits(10.0, False, 0, 0)
        self.pool: Pool | None = None
        self._arena_bytes = arena_bytes
        self._exit_if_abandoned = exit_if_abandoned
        self._pending: Job | None = None
        self._goodbye = False
        self._receiving = threading.Lock()
        self._flushing = threading.Lock()
        self._busy = threading.Event()  # a job runs
        self._ended = threading.Event()
        this = weakref.ref(self)

        def forked() -> None:
            # A child that a stage forks shares the socket: it must not keep it open.
            if (conn := this()) is not None:
                conn.channel.abandon()

        os.register_at_fork(after_in_child=forked)

    def greet(self) -> None:
        """Exchange hello and ready. ProtocolError if the host speaks another version."""
        try:
            packet = self.channel.receive()
            assert packet is not None  # noqa: S101 (it waited)
            if packet.kind != Kind.HELLO:
                for fd in packet.fds:
                    os.close(fd)
                raise ProtocolError(f"message of kind {packet.kind}, want hello")
            if len(packet.payload) < wire.GREETING.size:
                raise ProtocolError(f"hello of {len(packet.payload)} bytes")
            magic, version = wire.GREETING.unpack_from(packet.payload)
            if magic != wire.MAGIC:
                raise ProtocolError("not a Stokehold host")
            if version != wire.VERSION:
                raise ProtocolError(f"version {version}, this side speaks {wire.VERSION}")
            _, _, heartbeat, flags, arena_bytes, model_bytes = wire.fields(wire.HELLO, packet.payload)
        except ProtocolError as e:
            self._fail(e)
            raise
        shared = bool(flags & wire.SHARED_ALLOWED)
        self.limits = Limits(heartbeat / 1000, shared, arena_bytes, model_bytes)
        if shared:
            self.pool = Pool(self._grant, self._arena_bytes, arena_bytes)
        self.channel.send(Kind.READY, 0, wire.READY.pack(wire.MAGIC, wire.VERSION, os.getpid()))
        threading.Thread(target=self._keep, name="stokehold-keeper", daemon=True).start()

    def next_job(self) -> Job | None:
        """Wait for a job; None when the host said goodbye. HostGoneError, ProtocolError: the connection ended."""
        self.wait(lambda: self._pending is not None or self._goodbye)
        if self._pending is None:
            return None
        self.job, self._pending = self._pending, None
        self._busy.set()
        return self.job

    def end_job(self, job: Job, kind: Kind, payload: bytes) -> None:
        """Send done or failed."""
        self._busy.clear()
        with self._flushing:
            job.over = True
        self.job = None
        self.channel.send(kind, job.number, payload)

    def close(self) -> None:
        """End the connection and the keeper. Repeatable."""
        self._ended.set()
        self._busy.set()
        self.channel.close()

    def check(self, job: Job) -> None:
        """Raise Cancelled, or HostGoneError, if the job is to end."""
        if self.fault is not None:
            raise HostGoneError(str(self.fault)) from self.fault
        if job.cancelled is not None:
            raise Cancelled(job.cancelled)

    def wait(self, ready: Callable[[], bool], job: Job | None = None) -> None:
        """Receive messages until ready says so; of a job, until it is cancelled, too."""
        while not ready() and not (job and job.cancelled is not None):
            if self.fault is not None:
                raise HostGoneError(str(self.fault)) from self.fault
            if not self._receiving.acquire(timeout=_TICK):
                continue  # another thread receives, also for this one
            try:
                if not ready() and self.fault is None:
                    if job and job.dropped:
                        self.flush(job)
                    self._receive(wait=True)
            finally:
                self._receiving.release()

    def flush(self, job: Job) -> None:
        """Give back the leases that nobody refers to."""
        while job.dropped and (tokens := self.collect(job, wire.MAX_TOKENS)):
            self.channel.send(Kind.RELEASE, job.number, wire.encode_tokens(tokens))

    def collect(self, job: Job, most: int) -> list[int]:
        """Take dropped leases off the books; the caller sends the release."""
        tokens: list[int] = []
        with self._flushing:
            while job.dropped and len(tokens) < most and not job.over:
                token = job.dropped.popleft()
                job.leases.pop(token).held -= 1
                tokens.append(token)
        return tokens

    def settle(self, job: Job) -> int:
        """Give back everything, and return how many batches the stage still refers to."""
        with self._flushing:
            job.ending = True
        for state in job.inputs:
            state.arrivals.clear()
        self.flush(job)
        if job.leases:
            gc.collect()
            self.flush(job)
        return len(job.leases)

    def mapping_of(self, address: int, size: int) -> Mapping | None:
        """Return the granted arena in which an address range lies."""
        return next((m for m in list(self.arenas.values()) if m.contains(address, size)), None)

    def _keep(self) -> None:
        tick = max(0.001, min(_TICK, self.limits.heartbeat / 4))
        lost: float | None = None
        while True:
            self._busy.wait()
            if self._ended.wait(tick):
                return
            if self._receiving.acquire(blocking=False):
                try:
                    while self.fault is None and self._receive(wait=False):
                        pass
                finally:
                    self._receiving.release()
            if self.fault is None and (job := self.job) is not None and job.dropped:
                try:
                    self.flush(job)
                except HostGoneError as e:
                    self._fail(e)
            if self.fault is not None:
                lost = lost or time.monotonic()
                if self._exit_if_abandoned and time.monotonic() - lost > _ABANDONED:
                    os._exit(1)

    def _receive(self, *, wait: bool) -> bool:
        try:
            packet = self.channel.receive(wait=wait)
            if packet is None:
                return False
            try:
                self._handle(packet)
            finally:
                for fd in packet.fds:
                    os.close(fd)
        except Exception as e:  # noqa: BLE001 (kept for whoever waits)
            self._fail(e)
            return False
        return True

    def _fail(self, e: Exception) -> None:
        if self.fault is None:
            self.fault = e
            if not isinstance(e, HostGoneError):
                self.channel.complain(Kind.WORKER_ERROR, str(e) or type(e).__name__)
            if (job := self.job) is not None and job.cancelled is None:
                job.cancelled = f"the connection to the host ended: {e}"
            self.channel.close()

    def _handle(self, packet: wire.Packet) -> None:
        payload = packet.payload
        match packet.kind:
            # The most frequent ones first.
            case Kind.BATCH:
                job = self.job or self._pending
                if job is not None and job.number == packet.job:
                    self._arrived(job, payload)
            case Kind.ACK | Kind.END | Kind.SAVED | Kind.CANCEL:
                job = self.job or self._pending
                if job is not None and job.number == packet.job:
                    self._of_job(job, packet)
            case Kind.PING:
                wire.fields(wire.U64, payload)
                self.channel.send(Kind.PONG, 0, payload)
            case Kind.ARENA:
                arena, size = wire.fields(wire.ARENA, payload)
                if arena in self.arenas:
                    raise ProtocolError(f"arena {arena.hex()} granted twice")
                self.arenas[arena] = memory.open_arena(packet.fds[0], size)
            case Kind.FORGET:
                if len(payload) != 16:
                    raise ProtocolError(f"arena id of {len(payload)} bytes")
                self.arenas.pop(payload, None)
            case Kind.RETURNED:
                for token in wire.tokens(payload):
                    if self.pool is None or not self.pool.free(token):
                        raise ProtocolError("return of a slot that is not out")
            case Kind.GOODBYE:
                if payload:
                    raise ProtocolError(f"goodbye of {len(payload)} bytes")
                self._goodbye = True
                if (job := self.job) is not None and job.cancelled is None:
                    job.cancelled = "the host said goodbye"
            case Kind.HOST_ERROR:
                raise HostGoneError(f"the host closed the connection: {payload.decode('utf-8', 'replace')}")
            case Kind.TASK:
                if self.job is not None or self._pending is not None:
                    raise ProtocolError(f"job {packet.job} while another runs")
                self._pending = Job(packet.job, wire.from_json(payload))
            case _:
                raise ProtocolError(f"message of kind {packet.kind} from the host")

    def _of_job(self, job: Job, packet: wire.Packet) -> None:
        payload = packet.payload
        if packet.kind == Kind.END:
            state = _input(job, wire.fields(wire.END, payload)[0])
            state.open = False
        elif packet.kind == Kind.ACK:
            wire.fields(wire.U64, payload)
            if job.acked >= job.sent:
                raise ProtocolError("acknowledgement of no output")
            job.acked += 1
        elif packet.kind == Kind.SAVED:
            if not job.saving:
                raise ProtocolError("answer to no model")
            job.saved = wire.from_json(payload)
        elif job.cancelled is None:
            job.cancelled = payload.decode("utf-8", "replace") or "no reason given"

    def _arrived(self, job: Job, payload: bytes) -> None:
        number, sequence, token, arena, offset, length, _ = wire.fields(wire.BATCH, payload)
        state = _input(job, number)
        mapping = self.arenas.get(arena)
        if mapping is None:
            raise ProtocolError(f"batch {sequence} in arena {arena.hex()}, which was not granted")
        if length == 0 or offset > mapping.size or length > mapping.size - offset:
            raise ProtocolError(f"batch {sequence}: {length} bytes at {offset} of an arena of {mapping.size}")
        if offset % 8:
            raise ProtocolError(f"batch {sequence} at offset {offset}: not aligned")
        with self._flushing:
            if job.ending:
                return  # the host takes back what it leases now
            if token in job.leases:
                raise ProtocolError(f"batch {sequence} with the token of another")
            if state.held >= job.credit:
                raise ProtocolError(f"more batches than the credit of {job.credit}")
            job.leases[token] = state
            state.held += 1
            state.arrivals.append(Arrival(sequence, Lease(token, mapping, job.dropped), offset, length))

    def handed(self, state: InputState) -> int:
        """Return how many batches of an input the stage refers to, or has just let go: at most state.held."""
        with self._flushing:
            return state.held - len(state.arrivals)

    def _grant(self, arena: bytes, size: int, fd: int) -> None:
        self.channel.send(Kind.GRANT, 0, wire.ARENA.pack(arena, size), fd)


def _input(job: Job, number: int) -> InputState:
    if number >= len(job.inputs):
        raise ProtocolError(f"message for input {number} of {len(job.inputs)}")
    if not job.inputs[number].open:
        raise ProtocolError(f"message for input {number}, which is not open")
    return job.inputs[number]


def _typed(note: dict[str, Any], key: str, kind: type) -> Any:
    value = note.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProtocolError(f"task with {key} {value!r}")
    return value
