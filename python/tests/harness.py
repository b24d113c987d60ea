"""A worker in a thread of its own, and a host whose messages the test writes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from stokehold import memory, wire
from stokehold.frame import Frame
from stokehold.testing import Host
from stokehold.wire import Kind
from stokehold.worker import Stage, Worker


class Raw(Host):
    """A host that the test drives message by message."""

    def __init__(self, stages: Mapping[str, Stage], **how: Any) -> None:
        super().__init__(**how)
        self.error: BaseException | None = None
        self.ended = threading.Event()
        worker = Worker(self.worker_socket, stages)

        def serve() -> None:
            try:
                worker.run()
            except BaseException as e:
                self.error = e
            finally:
                self.ended.set()

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def task(self, stage: str = "s", job: int = 1, **note: Any) -> None:
        self.channel.send(Kind.TASK, job, wire.to_json({"stage": stage, "inputs": [], "credit": 4, **note}))

    def opened(self) -> None:
        """Start a job with an input, and wait until it asks for it."""
        self.greet()
        self.task(inputs=["in"])
        self.expect(Kind.OPEN)

    def join(self) -> None:
        assert self.ended.wait(30)
        self.thread.join()


@contextmanager
def worker(stages: Mapping[str, Stage], **how: Any) -> Iterator[Raw]:
    host = Raw(stages, **how)
    try:
        yield host
    finally:
        host.close()
        host.join()


def until(what: str, ok: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not ok():
        assert time.monotonic() < end, f"timed out waiting until {what}"
        threading.Event().wait(0.001)


def numbers(*x: float) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(x, pa.float64())})


def drain(task: Any, batches: Any) -> None:
    for _ in batches:
        pass


def arena(size: int = 1 << 16, seals: int = memory._SEALS_ARENA, *, content: bytes = b"", name: str = "test") -> int:
    """Return a memfd with those seals."""
    fd = memory.create(size, name)
    os.pwrite(fd, content, 0)
    if seals:
        fcntl.fcntl(fd, memory._F_ADD_SEALS, seals)
    return fd


def framed(batch: pa.RecordBatch) -> bytes:
    laid = Frame(batch)
    own = pa.allocate_buffer(laid.size)
    laid.write(own.address)
    return bytes(own.to_pybytes())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
