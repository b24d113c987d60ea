"""One execution of a stage, as stage code sees it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from . import memory, output, views, wire
from .connection import Connection, Job
from .device import Uploader
from .errors import Cancelled, PermanentError
from .frame import Frame
from .inputs import Input
from .loan import Loan
from .safetensors import Artifact
from .wire import Kind

if TYPE_CHECKING:
    import numpy as np

_MAX_CHECKPOINT = 32 << 10


class Task:
    """What a stage is given: parameters, inputs, and ways to say things to the host.

    Its methods may be called from several threads, until the stage returns. Those
    that wait raise Cancelled when the host wants the stage to end, and HostGoneError
    when it is gone.
    """

    def __init__(self, connection: Connection, job: Job) -> None:
        self._connection = connection
        self._job = job
        params = job.params
        raw = params.get("assignment") if isinstance(params, dict) else None
        self._of_pipeline = isinstance(raw, dict)
        self.assignment: dict[str, Any] = raw if isinstance(raw, dict) else {}
        """What the pipeline asks for, as the protocol's page describes it; empty outside of one."""
        self.stage: str = self.assignment.get("stage", job.stage)
        """Name of the stage."""
        self.pipeline: str = self.assignment.get("pipeline", "")
        self.run: str = self.assignment.get("run", "")
        self.attempt: int = self.assignment.get("attempt", 1)
        """1, and one more for each time that the stage was run again."""
        self.seed: int = self.assignment.get("seed", 0)
        """The only source of randomness that a stage of a pipeline may use; 64 bits, unsigned."""
        self.params: Any = params
        """Parameters of the stage, with the run's laid over them; outside of a pipeline whatever the host sent."""
        if self._of_pipeline:
            self.params = {**(self.assignment.get("params") or {}), **(self.assignment.get("run_params") or {})}
        self.deadline = job.deadline
        """When the host will cancel, in seconds of time.monotonic(); None: not known."""
        self.log = logging.getLogger(f"stokehold.{self.stage}")
        """Logger of the stage. All of Python's logging goes to the host, from INFO on."""
        self._inputs = self._bind()
        self._appended = 0
        self._publishing = threading.Lock()
        self._done, self._total, self._note = 0, 0, ""
        self._notes: dict[str, str] = {}
        self._checkpoint: Any = None
        self._odd_values: set[str] = set()
        self._uploader = Uploader(connection)
        self.written_bytes = 0
        """Body bytes that were copied into outputs; those built in place are not among them."""

    # Inputs

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, as the pipeline calls them."""
        return list(self._inputs)

    def input(self, name: str | None = None) -> Input:
        """Return an input by the name of the stage or source it comes from, or its dataset's; by default the first.

        KeyError if there is none of that name.
        """
        if name is None and self._inputs:
            return next(iter(self._inputs.values()))
        for known, found in self._inputs.items():
            if name in (known, found.name):
                return found
        raise KeyError(f"stage {self.stage!r} has no input {name!r}; there are {self.inputs}")

    def numpy(
        self,
        batch: pa.RecordBatch,
        columns: Iterable[str] | None = None,
        nulls: Literal["error", "mask"] = "error",
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return columns as read-only NumPy arrays that lie in the batch's memory: see stokehold.views.numpy."""
        return views.numpy(batch, columns, nulls)

    def torch(self, batch: pa.RecordBatch, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """Return columns as PyTorch tensors that lie in the batch's memory: see stokehold.views.torch."""
        return views.torch(batch, columns)

    def jax(self, batch: pa.RecordBatch, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """Return columns as JAX arrays: see stokehold.views.jax."""
        return views.jax(batch, columns)

    def to_device(
        self, batch: pa.RecordBatch, device: str = "cuda", columns: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Return columns as PyTorch tensors on a CUDA device, copied asynchronously out of the pinned arena.

        Work queued on the current stream afterwards sees the copies done. The batch is
        kept until then. RuntimeError without CUDA.
        """
        return self._uploader.to_device(batch, device, columns)

    # Outputs

    def emit(self, batch: pa.RecordBatch, sequence: int | None = None, *, sealed: bool = False) -> int:
        """Publish a batch, copying its body once, into memory that the host reads in place. Return its sequence.

        By default it is appended to the output; sequence places it, where sequences
        mean something. sealed: in memory that nobody can change, even where outputs are
        shared. Waits while 4 outputs are not taken yet. The batch stays the caller's.
        """
        if not isinstance(batch, pa.RecordBatch):
            raise TypeError(f"emit takes a pyarrow.RecordBatch, not a {type(batch).__name__}")
        laid = Frame(batch)
        piece = self._piece(laid.size, sealed=sealed)
        try:
            laid.write(piece.address)
            number = self._publish(piece, laid.size, sequence)
        except BaseException:
            piece.discard(self._connection)
            raise
        self.written_bytes += laid.body_bytes
        return number

    @contextmanager
    def loan(
        self, schema: pa.Schema, rows: int, sequence: int | None = None, *, sealed: bool = False
    ) -> Iterator[Loan]:
        """Build a batch in place: ``with task.loan(schema, rows) as out: out["x"][:] = ...``.

        Gives the columns by name as writable arrays in the memory that the host reads;
        leaving the block publishes them without a copy, an exception discards them. For
        columns of fixed width without nulls: TypeError for others. Other arguments as emit.
        """
        loan = Loan(schema, rows)
        size = loan.frame.size
        piece = self._piece(size, sealed=sealed)
        try:
            loan.frame.write(piece.address, bodies=False)
            loan.place(piece.view(size))
            try:
                yield loan
            finally:
                loan.close()
            self._publish(piece, size, sequence)
        except BaseException:
            piece.discard(self._connection)
            raise

    def save_model(
        self,
        tensors: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, str] | None = None,
        precision: str | None = None,
        kind: str | None = None,
    ) -> str:
        """Register a version of the model that this stage makes, as safetensors, and return its id.

        tensors: NumPy, PyTorch, JAX or Arrow arrays by name, or stokehold.Tensor.
        metrics are finite numbers. precision ("fp16", "int8") says how values were
        reduced, kind which predictor serves the model. Cancelled, with the reason, if
        the host does not take it.
        """
        note = _model_note("safetensors", metrics, metadata, precision, kind)
        artifact = Artifact(tensors)
        return self._save(artifact.size, artifact.write, note)

    def save_artifact(
        self,
        data: Any,
        format: Literal["safetensors", "onnx", "opaque"],  # noqa: A002 (the protocol's word)
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, str] | None = None,
        precision: str | None = None,
        kind: str | None = None,
    ) -> str:
        """Register a model that is bytes already, such as ONNX, as save_model does. Never pickle."""
        buffer = pa.py_buffer(data)
        note = _model_note(format, metrics, metadata, precision, kind)
        return self._save(buffer.size, lambda address: memory.copy(address, buffer.address, buffer.size), note)

    # Reports

    def progress(
        self, done: int | None = None, total: int | None = None, note: str | None = None, **values: float
    ) -> None:
        """Report how far the stage is, in units of your choice, and named numbers such as a loss.

        done is by default how many batches were read. What is left out stays as it was.
        """
        self._done = int(done) if done is not None else max(self._done, sum(i.batches_read for i in self._unique()))
        if total is not None:
            self._total = int(total)
        if note is not None:
            self._note = wire.clip(note, wire.MAX_REASON)
        finite = {}
        for name, value in values.items():
            if math.isfinite(number := float(value)):
                finite[name] = number
            elif name not in self._odd_values:
                self._odd_values.add(name)
                self.log.warning("progress: %s is %s, which cannot be reported", name, number)
        self._report(values=finite)

    def metric(self, name: str | None = None, value: float | None = None, /, **values: float) -> None:
        """Record results of the stage: ``task.metric("auc", 0.9)`` or ``task.metric(auc=0.9, loss=0.1)``.

        ValueError if one is not a finite number.
        """
        if name is not None:
            if value is None:
                raise TypeError(f"metric {name!r} without a value")
            values[name] = value
        self._send(Kind.METRICS, wire.to_json(_finite(values)))

    def note(self, name: str, text: str) -> None:
        """Record a short text as a result of the stage."""
        self._notes[name] = str(text)
        self._report(notes=self._notes)

    def checkpoint(self, state: Any) -> None:
        """Record where the stage is, as JSON of at most 32 KiB: a retry may continue from here.

        What was emitted before counts as written with it.
        """
        raw = wire.to_json(state)
        if len(raw) > _MAX_CHECKPOINT:
            raise ValueError(
                f"checkpoint of {len(raw)} bytes: at most {_MAX_CHECKPOINT}; keep large state in files and name them"
            )
        self._checkpoint = state
        self._report(checkpoint=state)

    def restore(self) -> Any:
        """Return the newest checkpoint of this run's stage, None if there is none.

        emit then goes on after what had been written when it was made: call restore
        before the first emit, or not at all, to start over.
        """
        if self._checkpoint is not None or not self._of_pipeline:
            return self._checkpoint
        params: dict[str, Any] = self._job.params or {}
        found = params.get("checkpoint")
        written = (params.get("written") or {}).get("batches", 0)
        if found is not None and written > 0 and self._appended == 0:
            self._appended = written
            self._report(values={wire.RESTORED: 1})
        return found

    # The end

    @property
    def cancelled(self) -> bool:
        """True once the host wants the stage to end. Code that computes for long looks at it now and then."""
        return self._job.cancelled is not None

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, None if there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise Cancelled if the host wants the stage to end."""
        self._connection.check(self._job)

    # For this package

    @property
    def copied_bytes(self) -> int:
        """Body bytes that were copied out of shared memory."""
        return sum(i.copied_bytes for i in self._unique())

    def finish(self) -> None:
        """Wait for what still reads batches, and let go of them."""
        self._uploader.finish()

    def _unique(self) -> list[Input]:
        return list({id(i): i for i in self._inputs.values()}.values())

    def _bind(self) -> dict[str, Input]:
        """Match the job's inputs, which are datasets, with what the pipeline calls them."""
        made: dict[str, Input] = {}
        bindings = [b for b in self.assignment.get("inputs") or [] if b.get("dataset")]
        for number, state in enumerate(self._job.inputs):
            bound = bindings[number] if number < len(bindings) and bindings[number]["dataset"] == state.name else {}
            name = bound.get("name", state.name)
            made.setdefault(name, Input(self._connection, self._job, number, bounded=bool(bound.get("bounded"))))
        return made

    def _piece(self, size: int, *, sealed: bool) -> output.Piece:
        if self._of_pipeline and not self.assignment.get("output"):
            raise PermanentError(f"stage {self.stage!r} has no output to emit batches to")
        self.check()
        return output.take(self._connection, size, shared=self._job.outputs == "shared" and not sealed)

    def _publish(self, piece: output.Piece, size: int, sequence: int | None) -> int:
        conn, job = self._connection, self._job
        with self._publishing:
            conn.wait(lambda: job.sent - job.acked < wire.OUTPUT_WINDOW, job)
            conn.check(job)
            append = sequence is None
            number = self._appended if sequence is None else sequence
            if not 0 <= number < wire.APPENDED:
                raise ValueError(f"sequence {number}: 0 to 2^63 - 1")
            piece.seal()
            job.sent += 1
            on_the_wire = number | wire.APPENDED if append and self._of_pipeline else number
            piece.send_output(conn, job, on_the_wire, size)
            if append:
                self._appended += 1
        return number

    def _save(self, size: int, write: Callable[[int], None], note: bytes) -> str:
        conn, job = self._connection, self._job
        if size > conn.limits.model_bytes:
            raise PermanentError(f"model of {size} bytes: the host takes at most {conn.limits.model_bytes}")
        if size == 0:
            raise ValueError("a model of 0 bytes")
        self.check()
        piece = output.Piece(size, None)
        try:
            write(piece.address)
            job.saved, job.saving = None, True
            piece.send_model(conn, job, size, note)
        finally:
            piece.discard()
        conn.wait(lambda: job.saved is not None, job)
        conn.check(job)
        job.saving = False
        answer: dict[str, Any] = job.saved or {}
        return str(answer.get("version", ""))

    def _report(self, **more: Any) -> None:
        message: dict[str, Any] = {"done": self._done}
        if self._total:
            message["total"] = self._total
        if self._note:
            message["note"] = self._note
        message.update({k: v for k, v in more.items() if v or k == "checkpoint"})
        self._send(Kind.PROGRESS, wire.to_json(message))

    def _send(self, kind: Kind, payload: bytes) -> None:
        if self._job.over:
            raise Cancelled(f"stage {self.stage!r} is over")
        self._connection.channel.send(kind, self._job.number, payload)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    out = {}
    for name, value in values.items():
        if not math.isfinite(number := float(value)):
            raise ValueError(f"metric {name!r} is {number}: want a finite number")
        out[name] = number
    return out


def _model_note(
    form: str,
    metrics: Mapping[str, float] | None,
    metadata: Mapping[str, str] | None,
    precision: str | None,
    kind: str | None,
) -> bytes:
    note: dict[str, Any] = {"format": form}
    if metrics:
        note["metrics"] = _finite(metrics)
    if metadata:
        note["metadata"] = {str(k): str(v) for k, v in metadata.items()}
    if precision:
        note["precision"] = precision
    if kind:
        note["kind"] = kind
    raw = wire.to_json(note)
    if len(raw) > wire.MAX_PAYLOAD - wire.MODEL.size:
        raise ValueError(f"metrics and metadata of {len(raw)} bytes: they have to fit into one message")
    return raw
