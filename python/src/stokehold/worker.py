"""Runs stages for a host: the loop of a worker process."""

from __future__ import annotations

import contextlib
import inspect
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from . import wire
from .channel import Channel
from .connection import Connection, Job
from .errors import HostGoneError, KeptBatchesError, PermanentError, ProtocolError
from .logs import HostHandler
from .task import Task
from .wire import Kind

Stage = Callable[..., object]
"""Takes a Task and, if it has a second parameter, the batches of the first input. What it returns means nothing."""

F = TypeVar("F", bound=Stage)
ARENA_BYTES = 16 << 20

USAGE = """This program is a Stokehold worker with the stages {stages}.
It is started by a host, which passes it a socket as descriptor 3 and sets {env}=1:
name it as the worker's command in the host's configuration. To try a stage without
a host, call stokehold.testing.run(stage, batches)."""


class Stages(dict[str, Stage]):
    """Stages by name. A value of its own for tests; programs use the decorator stage."""

    def stage(self, name: str) -> Callable[[F], F]:
        """Register the function below under a name, as the decorator stage does."""
        if not isinstance(name, str) or not name:
            raise TypeError('@stage needs a name: @stage("train")')

        def register(function: F) -> F:
            if name in self:
                raise ValueError(f"two stages are called {name!r}")
            self[name] = function
            return function

        return register

    def find(self, name: str) -> Stage | None:
        """Return the stage of that name: PIPELINE/STAGE if it was registered so, else STAGE."""
        return self.get(name) or self.get(name.rsplit("/", 1)[-1])


_registered = Stages()
stage = _registered.stage
"""Decorator: ``@stage("train") def train(task, batches): ...`` makes the function the stage of that name.

The name is the stage's in the pipeline, or PIPELINE/STAGE where that is not enough.
"""


def serve(stages: Mapping[str, Stage] | None = None, *, arena_bytes: int = ARENA_BYTES) -> None:
    """Run stages for the host that started this process, until it says goodbye or is gone.

    stages: by name; by default those registered with the decorator. arena_bytes: size
    of the first arena that is made where the host takes shared outputs. Call it last, in
    the main thread: stages run there. It ends the process (SystemExit) with 2 if no
    host started it, with 1 if the host broke the protocol, with 3 if a stage kept
    memory of the host's.
    """
    if multiprocessing.parent_process() is not None:
        return  # a process that a stage started imports the program anew
    known = Stages(_registered if stages is None else stages)
    if wire.ENVIRONMENT not in os.environ:
        print(USAGE.format(stages=", ".join(sorted(known)) or "(none)", env=wire.ENVIRONMENT), file=sys.stderr)
        raise SystemExit(2)
    del os.environ[wire.ENVIRONMENT]  # programs that a stage starts are not workers
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key pressed in the terminal is the host's to handle
    try:
        sock = socket.socket(fileno=wire.SOCKET_FD)
        os.set_inheritable(sock.fileno(), False)
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            raise OSError("not a SOCK_SEQPACKET Unix socket")
    except OSError as e:
        print(
            f"stokehold: {wire.ENVIRONMENT} is set, but descriptor {wire.SOCKET_FD} is no host's socket: {e}",
            file=sys.stderr,
        )
        raise SystemExit(2) from e
    try:
        Worker(sock, known, arena_bytes=arena_bytes, exit_if_abandoned=True).run()
    except ProtocolError as e:
        print(f"stokehold: the host broke the worker protocol: {e}", file=sys.stderr)
        raise SystemExit(1) from e
    except KeptBatchesError as e:
        print(f"stokehold: {e}", file=sys.stderr)
        raise SystemExit(3) from e


class Worker:
    """Serves one connection."""

    def __init__(
        self,
        sock: socket.socket,
        stages: Mapping[str, Stage],
        *,
        arena_bytes: int = ARENA_BYTES,
        exit_if_abandoned: bool = False,
    ) -> None:
        """Sock passes to the worker."""
        self._stages = Stages(stages)
        self._connection = Connection(Channel(sock), arena_bytes=arena_bytes, exit_if_abandoned=exit_if_abandoned)

    def run(self) -> None:
        """Serve until the host says goodbye or is gone.

        ProtocolError if it broke the protocol; KeptBatchesError, after the host was
        told, if a stage kept memory that is the host's to use again.
        """
        conn = self._connection
        try:
            conn.greet()
            while (job := conn.next_job()) is not None:
                self._execute(job)
        except HostGoneError as e:
            if isinstance(conn.fault, ProtocolError):
                raise conn.fault from e
        finally:
            conn.close()

    def _execute(self, job: Job) -> None:
        conn = self._connection
        function = self._stages.find(job.stage)
        if function is None:
            known = ", ".join(sorted(self._stages)) or "none"
            unknown = {"message": f"this worker has no stage {job.stage!r}; it has {known}", "unknown_stage": True}
            conn.end_job(job, Kind.FAILED, _failed(unknown, 0, 0))
            return
        task = Task(conn, job)
        failure = self._run_stage(function, task, job)
        kept = conn.settle(job)
        if kept:
            # Nobody may read that memory any more, and only the end of the process makes
            # sure. Done or failed would have the host send the next job to it.
            text = (
                f"stage {job.stage!r} kept {_batches(kept)} of shared memory beyond its end, in a global or an object "
                "that outlives it: the host uses that memory again. Copy what is to be kept (stokehold.copy(batch), "
                "array.copy())"
            )
            if failure:
                print(failure["traceback"], file=sys.stderr)
                text = f"{wire.clip(failure['message'], wire.MAX_REASON // 2)}; also, {text}"
            conn.channel.complain(Kind.WORKER_ERROR, text)
            raise KeptBatchesError(text)
        if failure:
            conn.end_job(job, Kind.FAILED, _failed(failure, task.written_bytes, task.copied_bytes))
        else:
            conn.end_job(job, Kind.DONE, wire.DONE.pack(task.written_bytes, task.copied_bytes))

    @staticmethod
    def _run_stage(function: Stage, task: Task, job: Job) -> dict[str, Any]:
        """Run a stage, and return why it failed; empty if it did not."""
        handler = HostHandler(lambda raw: task._send(Kind.LOG, raw))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        try:
            if job.inputs and _wants_batches(function):
                function(task, task.input())
            elif _wants_batches(function):
                function(task, ())
            else:
                function(task)
            task.finish()
        except BaseException as e:  # noqa: BLE001 (whatever it is, the host hears of it)
            trace = e.__traceback__.tb_next if e.__traceback__ is not None else None
            failure = {
                "message": f"{type(e).__name__}: {e}" if str(e) else type(e).__name__,
                "traceback": "".join(traceback.format_exception(type(e), e, trace)),
                "permanent": isinstance(e, PermanentError),
            }
            _forget(e)
            with contextlib.suppress(Exception):  # the first error is the one to tell
                task.finish()
            return failure
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        return {}


def _wants_batches(function: Stage) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in kinds for p in parameters) > 1


def _failed(failure: dict[str, Any], written: int, copied: int) -> bytes:
    message, trace = wire.MAX_MESSAGE, wire.MAX_TRACEBACK
    while True:
        note = {
            **failure,
            "message": wire.clip(failure["message"], message),
            "traceback": wire.clip(failure.get("traceback", ""), trace, keep_end=True),
            "written_bytes": written,
            "copied_bytes": copied,
        }
        raw = wire.to_json({k: v for k, v in note.items() if v or k == "message"})
        if len(raw) <= wire.MAX_PAYLOAD:
            return raw
        message, trace = message // 2, trace // 2  # control characters take six bytes each


def _forget(error: BaseException) -> None:
    """Drop what the frames of an error's tracebacks refer to, batches above all."""
    left: list[BaseException | None] = [error]
    seen = set()
    while left:
        e = left.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        if e.__traceback__ is not None:
            traceback.clear_frames(e.__traceback__)
            e.__traceback__ = None
        left += [e.__cause__, e.__context__]
        group: Iterable[BaseException] = getattr(e, "exceptions", ())
        left += group


def _batches(count: int) -> str:
    return "a batch" if count == 1 else f"{count} batches"
