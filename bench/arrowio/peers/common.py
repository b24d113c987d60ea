"""What the peers' scripts share: the batch, the touching, and the control socket.

The benchmark listens on a Unix socket, whose path is in $STOKEHOLD_BENCH_CONTROL,
and starts a script. The script connects and says {"ready": {...}}, its versions.
Then it is asked, a line of JSON each time, {"size", "warm", "count", "seconds"},
and answers {"us": [...]}, microseconds of each hand-over, or {"error": "..."}.
It ends when the socket does.
"""

import json
import os
import socket
import time

import numpy as np
import pyarrow as pa

PAGE = 4096
COLUMNS = 4


def make_batch(size, first=0.0):
    """A record batch of COLUMNS float64 columns, size bytes of body in all."""
    rows = size // (8 * COLUMNS)
    values = [np.arange(rows, dtype=np.float64) + (first + i) for i in range(COLUMNS)]
    return pa.RecordBatch.from_arrays([pa.array(v) for v in values], names=[f"x{i}" for i in range(COLUMNS)])


def touch(batch):
    """Reads a byte of every page of the batch; their sum proves it."""
    total = 0
    for column in batch.columns:
        total += int(np.frombuffer(column.buffers()[1], np.uint8)[::PAGE].sum())
    return total


def frame(batch):
    """The batch as an Arrow IPC stream, in one buffer."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Control:
    """The benchmark's side of the script."""

    def __init__(self, **ready):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["STOKEHOLD_BENCH_CONTROL"])
        self.lines = self.socket.makefile("r")
        self.say(ready=ready)

    def say(self, **note):
        self.socket.sendall((json.dumps(note) + "\n").encode())

    def orders(self):
        for line in self.lines:
            yield json.loads(line)

    def serve(self, measure):
        """Answers each order with measure's samples, until the benchmark ends."""
        for order in self.orders():
            try:
                self.say(us=measure(order))
            except Exception as e:  # the benchmark reports it and goes on to the next size
                self.say(error=f"{type(e).__name__}: {e}")


def samples(order, hand_over, prepare=None, settle=None):
    """Times hand_over(prepare()) as often as was ordered; settle(result) is not timed."""
    out, until = [], 0.0
    for i in range(order["warm"] + order["count"]):
        if i == order["warm"]:
            until = time.monotonic() + order["seconds"]
        thing = prepare() if prepare else None
        begun = time.perf_counter_ns()
        result = hand_over(thing)
        took = time.perf_counter_ns() - begun
        if settle:
            settle(result)
        if i >= order["warm"]:
            out.append(took / 1e3)
            if len(out) >= 3 and time.monotonic() > until:
                break
    return out


def check(got, want):
    if got != want:
        raise ValueError(f"the consumer read {got}, the producer wrote {want}")
