"""multiprocessing.shared_memory and pickle, Python to Python.

The batch is pickled with its buffers out of band (protocol 5), these are copied
into a block of shared memory of their own, and name, places and pickle go through
a multiprocessing.Pipe.
"""

import multiprocessing
import pickle
import platform
from multiprocessing import resource_tracker, shared_memory

from common import Control, check, make_batch, samples, touch


def consume(pipe):
    while True:
        try:
            name, places, pickled = pipe.recv()
        except EOFError:
            return
        block = shared_memory.SharedMemory(name)
        resource_tracker.unregister(block._name, "shared_memory")  # the producer's to unlink
        buffers = [block.buf[at : at + n] for at, n in places]
        batch = pickle.loads(pickled, buffers=buffers)
        total = touch(batch)
        del batch
        for b in buffers:
            b.release()
        block.close()
        pipe.send(total)


def main():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=consume, args=(theirs,), daemon=True)
    child.start()
    theirs.close()

    def measure(order):
        batch = make_batch(order["size"])
        want = touch(batch)

        def hand_over(_):
            buffers = []
            pickled = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
            raws = [b.raw() for b in buffers]
            block = shared_memory.SharedMemory(create=True, size=sum(r.nbytes for r in raws) + 64 * len(raws))
            try:
                places, at = [], 0
                for raw in raws:
                    block.buf[at : at + raw.nbytes] = raw
                    places.append((at, raw.nbytes))
                    at += -(-raw.nbytes // 64) * 64
                ours.send((block.name, places, pickled))
                return ours.recv()
            finally:
                block.close()
                resource_tracker.register(block._name, "shared_memory")
                block.unlink()

        return samples(order, hand_over, settle=lambda got: check(got, want))

    try:
        Control(python=platform.python_version()).serve(measure)
    finally:
        ours.close()
        child.join(5)
        child.kill()


if __name__ == "__main__":
    main()
