"""dora-rs: a dataflow of two nodes, run by `dora run`.

Started by the benchmark it writes the dataflow and becomes `dora run`; started by
that, with the name of a node, it is the node. Batches are sent as struct arrays,
in shared memory as dora sees fit.
"""

import importlib.metadata
import os
import sys
import tempfile

import pyarrow as pa

POOL = 256 << 20  # bytes of shared memory that a node may publish in; at its default 16 MiB go through a socket


def launch():
    here = os.path.abspath(__file__)
    flow = f"""nodes:
  - id: producer
    path: {sys.executable}
    args: {here} producer
    inputs:
      answer: consumer/answer
    outputs: [batch]
  - id: consumer
    path: {sys.executable}
    args: {here} consumer
    inputs:
      batch: producer/batch
    outputs: [answer]
"""
    directory = tempfile.mkdtemp(prefix="dora", dir=os.environ["TMPDIR"])
    path = os.path.join(directory, "dataflow.yml")
    with open(path, "w") as f:
        f.write(flow)
    os.chdir(directory)
    os.environ.setdefault("DORA_NODE_SHM_POOL_SIZE", str(POOL))
    os.execv(os.path.join(os.path.dirname(sys.executable), "dora"), ["dora", "run", path])


def received(node, name):
    while True:
        event = node.next()
        if event is None or event["type"] == "STOP":
            raise EOFError("dora stopped")
        if event["type"] == "INPUT" and event["id"] == name:
            return event["value"]


def total(array):
    from common import touch

    return touch(pa.RecordBatch.from_struct_array(array))


def produce():
    from dora import Node

    from common import Control, check, make_batch, samples, touch

    node = Node()

    def measure(order):
        batch = make_batch(order["size"])
        want = touch(batch)
        array = batch.to_struct_array()

        def hand_over(_):
            node.send_output("batch", array)
            return received(node, "answer")[0].as_py()

        return samples(order, hand_over, settle=lambda got: check(got, want))

    Control(dora=importlib.metadata.version("dora-rs")).serve(measure)


def consume():
    from dora import Node

    node = Node()
    while True:
        try:
            value = received(node, "batch")
        except EOFError:
            return
        answer = total(value)
        del value
        node.send_output("answer", pa.array([answer], pa.int64()))


if __name__ == "__main__":
    {"producer": produce, "consumer": consume}.get(sys.argv[-1], launch)()
