"""Stages that the Go tests of the worker protocol run in Python."""

import os
import sys
import time

import pyarrow as pa

from stokehold import PermanentError, serve, stage


@stage("echo")
def echo(task, batches):
    for batch in batches:
        task.emit(batch, sequence=batches.last_sequence)


@stage("drain")
def drain(task, batches):
    """Lease every batch and read none of it."""
    for batch in batches:
        del batch


@stage("where")
def where(task, batches):
    """Say in which mapping of this process each batch's values lie, by the kernel's own account."""
    for batch in batches:
        at = batch.column(0).buffers()[1].address
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, mode, _, _, _, *name = line.split()
                low, high = (int(x, 16) for x in span.split("-"))
                if low <= at < high:
                    task.progress(note=mode + " " + name[0])


@stage("double")
def double(task, batches):
    """Build each batch's double where the host reads it."""
    schema = pa.schema([("x", pa.float64())])
    for batch in batches:
        x = memoryview(batch.column(0).buffers()[1]).cast("d")
        with task.loan(schema, batch.num_rows) as out:
            for i in range(batch.num_rows):
                out["x"][i] = 2 * x[i]


@stage("twice")
def twice(task, batches):
    """Double the numbers of a pipeline's dataset, and say what came of it."""
    total = 0
    for batch in batches:
        numbers = memoryview(batch.column("n").buffers()[1]).cast("q")[: batch.num_rows]
        with task.loan(batch.schema, batch.num_rows) as out:
            for i, n in enumerate(numbers):
                out["n"][i] = 2 * n
        total += sum(numbers)
        task.progress(total=30, note=f"after {batches.last_sequence}")
    task.metric(total=total)
    task.note("seed", str(task.seed))


@stage("talk")
def talk(task):
    print("garbage " * 200_000)
    print("\x00\xff\x01 more of it", file=sys.stderr)
    task.log.warning("careful %d", 7, extra={"a": 1, "b": "two"})
    task.metric(auc=0.75)
    task.note("colour", "green")
    task.progress(done=3, total=9, note="halfway", loss=0.25)
    task.metric("params", task.params["n"])
    task.metric(environment=len(os.environ), remaining=task.remaining or -1)


@stage("fail")
def fail(task):
    def inner():
        raise ValueError("it went wrong \x01")

    inner()


@stage("permanent")
def permanent(task):
    raise PermanentError("never again")


@stage("hang")
def hang(task, batches):
    for batch in batches:
        task.progress(done=os.getpid(), note=str(batch.num_rows))
        time.sleep(3600)


@stage("obey")
def obey(task, batches):
    task.progress(done=1)
    for _ in batches:
        while not task.cancelled:
            time.sleep(0.001)


@stage("crash")
def crash(task, batches):
    """Write the batches from where an earlier attempt got, and die after the third."""
    first = (task.restore() or {"next": 0})["next"]
    for batch in batches.range(first):
        task.emit(batch)
        task.checkpoint({"next": batches.last_sequence + 1})
        if task.attempt == 1 and batches.last_sequence == 2:
            os.abort()


@stage("model")
def model(task):
    weights = pa.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], pa.float32())
    version = task.save_model(
        {"w": weights, "b": pa.array([7], pa.int64())},
        metrics={"auc": 0.9},
        metadata={"by": "python"},
        precision="fp16",
    )
    task.progress(note=version)


kept = []


@stage("keep")
def keep(task, batches):
    for batch in batches:
        kept.append(batch)


@stage("exit")
def leave(task):
    print("last words", file=sys.stderr)
    os._exit(3)


@stage("fork")
def fork(task):
    """Start a process that outlives this one, were it not for the group."""
    if (child := os.fork()) == 0:
        time.sleep(3600)
    task.progress(done=child)


if __name__ == "__main__":
    serve()
