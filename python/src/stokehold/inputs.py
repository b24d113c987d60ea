"""The input batches of a stage."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pyarrow as pa

from . import frame, memory, wire
from .connection import Arrival, Connection, InputState, Job
from .errors import KeptBatchesError
from .wire import Kind

_log = logging.getLogger("stokehold")


class Input:
    """One input. Each loop over it reads it from its start to its end.

    A batch is a pyarrow.RecordBatch in memory shared with the host: read-only (a
    write ends the process) and not copied. The host's lease on it lasts until the
    last reference to the batch, its arrays or views of them is gone. The host lends
    at most credit batches of an input at once, so a stage that keeps all but one of
    them is given copies from then on, with a warning. What is kept beyond the
    stage's end has to be copied: see stokehold.copy.

    A loop that is left early spends the input, since the host goes on sending it.
    """

    def __init__(self, connection: Connection, job: Job, number: int, *, bounded: bool) -> None:
        self._connection = connection
        self._job = job
        self._number = number
        self._state: InputState = job.inputs[number]
        self._reader = frame.Reader()
        self._start = wire.EVERYTHING if bounded else 0
        self.last_sequence: int | None = None
        """Sequence of the newest batch that a loop gave out."""
        self.batches_read = 0
        """How many batches were given out."""
        self.copied_bytes = 0
        """Body bytes that were copied out of shared memory: 0 unless the stage keeps batches."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self._state.name

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.range(self._start, wire.EVERYTHING)

    def range(self, start: int, stop: int = wire.EVERYTHING) -> Iterator[pa.RecordBatch]:
        """Yield the batches with sequences from start to stop - 1, waiting for those that do not exist yet.

        RuntimeError if the input is being read or was left early. Cancelled when the
        host wants the stage to end. KeptBatchesError if the stage keeps all that the
        host may lend.
        """
        state, job = self._state, self._job
        if state.stale:
            raise RuntimeError(f"input {state.name!r}: a loop over it was left before its end, which spends it")
        if state.open or state.arrivals:
            raise RuntimeError(f"input {state.name!r} is being read by another loop")
        self._connection.check(job)
        state.open = True
        self._connection.channel.send(Kind.OPEN, job.number, wire.OPEN.pack(self._number, start, stop))
        finished = False
        try:
            while self._arrived():
                # No variable here: it would hold the lease for as long as the loop's body runs.
                yield self._open(state.arrivals.popleft())
            finished = True
        finally:
            state.stale = not finished

    def _arrived(self) -> bool:
        """Wait for a batch; False at the end."""
        state, job, conn = self._state, self._job, self._connection
        if len(job.dropped) >= max(1, job.credit // 2):
            conn.flush(job)
        if not state.arrivals:
            conn.flush(job)
            if state.held >= job.credit and state.open and conn.handed(state) >= job.credit:
                self._starved()
            conn.wait(lambda: bool(state.arrivals) or not state.open, job)
        conn.check(job)
        return bool(state.arrivals)

    def _starved(self) -> None:
        """Go on only if a lease comes back: the host has no credit left to send anything."""
        gc.collect()
        self._connection.flush(self._job)
        if self._connection.handed(self._state) >= self._job.credit:
            raise KeptBatchesError(
                f"input {self.name!r}: the stage keeps {self._state.held} batches and the host lends at most "
                f"{self._job.credit} at once: copy what you keep (stokehold.copy), or raise the host's credit"
            )

    def _open(self, arrival: Arrival) -> pa.RecordBatch:
        lease, offset, length = arrival.lease, arrival.offset, arrival.length
        self.last_sequence = arrival.sequence
        self.batches_read += 1
        shared = lease.mapping.buffer(offset, length, keep=lease)
        if self._last_of_credit():
            if not self.copied_bytes:
                _log.warning(
                    "input %r: the stage keeps batches; further ones are copied, as the host lends at most %d at once",
                    self.name,
                    self._job.credit,
                )
            own = pa.allocate_buffer(length)
            memory.copy(own.address, shared.address, length)
            self.copied_bytes += length
            return frame.read(own)
        # Where nothing is allocated, nothing was copied, and to look at every buffer would
        # take longer than to open the batch.
        before = pa.total_allocated_bytes()
        batch = self._reader.read(shared)
        if pa.total_allocated_bytes() != before:
            self.copied_bytes += frame.bytes_outside(batch, shared)
        return batch

    def _last_of_credit(self) -> bool:
        """Tell whether the stage, with the next batch, has all that the host lends: nothing could follow."""
        credit, conn, state = self._job.credit, self._connection, self._state
        # A for loop holds a batch until it has the next, so two of two are normal.
        if credit == 2 or state.held < credit or conn.handed(state) < credit:
            return False
        conn.flush(self._job)
        return conn.handed(state) >= credit


def copy(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy of a batch in this process's own memory, which a stage may keep."""
    laid = frame.Frame(batch)
    own = pa.allocate_buffer(laid.size)
    laid.write(own.address)
    return frame.read(own)
