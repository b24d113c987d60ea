"""iceoryx2, Python to Python: publish-subscribe, and events to block on.

The sample is loaned and holds the batch, as an Arrow IPC stream, before the clock
starts: what is timed is send, notify, the consumer's wait, its reading the stream
in place and touching it, and the answer. With "raw" the consumer touches the bytes
without Arrow. With "fill" the clock starts before the loan.
"""

import ctypes
import glob
import importlib.metadata
import os
import subprocess
import sys

import iceoryx2 as iox
import numpy as np
import pyarrow as pa

from common import PAGE, Control, check, frame, make_batch, samples, touch

iox.set_log_level(iox.LogLevel.Error)
PREFIX = os.environ.setdefault("STOKEHOLD_BENCH_PREFIX", f"stokehold-bench-{os.getpid()}-")
CONFIG = iox.config.default()
CONFIG.global_cfg.prefix = iox.FileName.new(PREFIX)
CONFIG.global_cfg.root_path = iox.Path.new(os.environ["TMPDIR"] + "/iceoryx2/")
LIMIT = iox.Duration.from_secs(20)


class End:
    """Both services, as one process sees them."""

    def __init__(self, prefix, size, producer):
        self.node = iox.NodeBuilder.new().config(CONFIG).signal_handling_mode(iox.SignalHandlingMode.Disabled).create(iox.ServiceType.Ipc)

        def name(suffix):
            return iox.ServiceName.new(f"{prefix}/{suffix}")

        self.data = (
            self.node.service_builder(name("data"))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .payload_alignment(iox.Alignment.new(64))
            .max_publishers(1)
            .max_subscribers(1)
            .subscriber_max_buffer_size(1)
            .subscriber_max_borrowed_samples(1)
            .history_size(0)
            .open_or_create()
        )
        self.there = self.node.service_builder(name("there")).event().open_or_create()
        self.back = self.node.service_builder(name("back")).event().open_or_create()
        if producer:
            self.publisher = self.data.publisher_builder().initial_max_slice_len(size).max_loaned_samples(1).create()
            self.notifier, self.listener = self.there.notifier_builder().create(), self.back.listener_builder().create()
        else:
            self.subscriber = self.data.subscriber_builder().create()
            self.notifier, self.listener = self.back.notifier_builder().create(), self.there.listener_builder().create()

    def wait(self):
        """Blocks until the other side notifies."""
        if not self.listener.timed_wait(LIMIT):
            raise TimeoutError("no answer")


def consume(prefix, size, raw):
    end = End(prefix, size, producer=False)
    print("ready", flush=True)
    while True:
        end.wait()
        sample = end.subscriber.receive()
        if sample is None:
            return
        view = sample.payload()
        n = view.number_of_elements
        memory = (ctypes.c_uint8 * n).from_address(view.data_ptr)
        if raw:
            np.frombuffer(memory, np.uint8)[::PAGE].sum()
        else:
            batch = pa.ipc.open_stream(pa.py_buffer(memory)).read_next_batch()
            touch(batch)
            del batch
        del memory, view
        sample.delete()
        end.notifier.notify()


def main(raw, fill):
    def measure(order):
        stream = np.frombuffer(frame(make_batch(order["size"])), np.uint8)
        prefix = f"stokehold-bench/{os.getpid()}/{order['size']}"
        end = End(prefix, len(stream), producer=True)
        child = subprocess.Popen([sys.executable, __file__, "consume", prefix, str(len(stream)), str(int(raw))], stdout=subprocess.PIPE)
        try:
            child.stdout.readline()

            def loaned():
                sample = end.publisher.loan_slice_uninit(len(stream))
                ctypes.memmove(sample.payload().data_ptr, stream.ctypes.data, len(stream))
                return sample.assume_init()

            def hand_over(sample):
                (sample or loaned()).send()
                end.notifier.notify()
                end.wait()

            return samples(order, hand_over, prepare=None if fill else loaned)
        finally:
            end.notifier.notify()  # with no sample: the end
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    try:
        Control(iceoryx2=importlib.metadata.version("iceoryx2")).serve(measure)
    finally:
        for left in glob.glob(f"/dev/shm/{PREFIX}*"):  # its bookkeeping outlives its processes
            os.unlink(left)


if __name__ == "__main__":
    if sys.argv[1:2] == ["consume"]:
        consume(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")
    else:
        main("raw" in sys.argv, "fill" in sys.argv)
