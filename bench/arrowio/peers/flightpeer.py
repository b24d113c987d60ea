"""A pyarrow.flight server that answers each batch it is put."""

import socket
import struct
import threading

import pyarrow as pa
import pyarrow.flight

from common import touch


class Server(pyarrow.flight.FlightServerBase):
    def do_put(self, context, descriptor, reader, writer):
        for chunk in reader:
            writer.write(pa.py_buffer(struct.pack("<Q", touch(chunk.data))))


def main():
    sock = socket.socket(fileno=3)
    server = Server("grpc://127.0.0.1:0")
    sock.sendall(f"127.0.0.1:{server.port}\n".encode())

    def wait():
        sock.recv(1)
        server.shutdown()

    threading.Thread(target=wait, daemon=True).start()
    server.serve()


if __name__ == "__main__":
    main()
