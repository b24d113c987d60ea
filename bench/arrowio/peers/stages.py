"""Stages for Stokehold's worker host: the program that the Go side starts."""

import time

from common import make_batch, touch

from stokehold import serve, stage


@stage("touch")
def touch_batches(task, batches):
    seen = total = 0
    for batch in batches:
        total += touch(batch)
        seen += 1
        del batch  # gives it back now, not when the next one is here
    task.metric(batches=seen, sum=total)


@stage("look")
def look_at_batches(task, batches):
    seen = 0
    for batch in batches:
        seen += 1
        del batch
    task.metric(batches=seen)


@stage("emit")
def emit(task, asks):
    size, loan = task.params["size"], task.params["loan"]
    batch = make_batch(size)
    columns = {name: batch.column(name).to_numpy() for name in batch.schema.names}
    stamps = {}
    n = 0
    for ask in asks:  # no enumerate, which would hold on to it
        del ask
        if loan:
            with task.loan(batch.schema, batch.num_rows, sequence=n) as out:
                for name, values in columns.items():
                    out[name][:] = values
                at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        else:
            at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            task.emit(batch, sequence=n)
        stamps[str(n)] = float(at)
        n += 1
        if len(stamps) == 500:
            task.metric(**stamps)
            stamps.clear()
    task.metric(**stamps)


def tensors(rows):
    def run(task, batches):
        seen = 0
        for batch in batches:
            for tensor in task.torch(batch).values():
                for part in tensor.unbind() if rows else (tensor,):
                    part.reshape(-1)[::1024].sum()
            seen += 1
            del batch, tensor, part
        task.metric(batches=seen)

    return run


stage("tensors 112")(tensors(rows=True))
stage("tensors 7")(tensors(rows=False))

serve()
