"""Writes Arrow IPC streams to the socket that is descriptor 3, a batch for each line that asks."""

import socket
import struct
import time

import pyarrow as pa

from common import make_batch


def main():
    sock = socket.socket(fileno=3)
    sock.sendall(b"ready\n")
    out = sock.makefile("wb", buffering=64 << 10)
    batch = writer = None
    for line in sock.makefile("r"):
        size = int(line)
        if size == 0:
            writer.close()
            out.flush()
            batch = None
            continue
        if batch is None:
            batch = make_batch(size)
            writer = pa.ipc.new_stream(out, batch.schema)
        at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        writer.write_batch(batch)
        out.flush()
        sock.sendall(struct.pack("<Q", at))


if __name__ == "__main__":
    main()
