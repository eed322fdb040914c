"""A worker on the handoff socket that shares nothing with tpad but the proto files.

Acquires one expert and holds it. With `fork` it then has a child, which keeps the
socket open and does nothing, and says `child PID`; with `map` it maps the slab and
says the SHA-256 of the image in it. It ends with its standard input.

usage: hold_block.py PROTO_DIRECTORY SOCKET MODEL TIER fork|map
"""

import array
import hashlib
import importlib.resources
import mmap
import os
import pathlib
import socket
import struct
import sys
import tempfile
import time

from grpc_tools import protoc


def generate(proto: pathlib.Path, out: str) -> None:
    """Makes Python modules of the proto files and puts them on the path."""
    sources = [str(path) for path in sorted(proto.glob("tpad/**/*.proto"))]
    known_types = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{known_types}", f"--python_out={out}"]
    if protoc.main(arguments + sources) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)


class Connection:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.bytes, self.descriptors = b"", array.array("i")

    def send(self, message) -> None:
        data = message.SerializeToString()
        self.socket.sendall(struct.pack("<I", len(data)) + data)

    def receive(self, kind):
        while len(self.bytes) < 4 or len(self.bytes) < 4 + struct.unpack("<I", self.bytes[:4])[0]:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 128)
            if not data:
                sys.exit("the daemon has closed")
            self.bytes += data
            self.descriptors.extend(descriptors)
        length = 4 + struct.unpack("<I", self.bytes[:4])[0]
        message = kind.FromString(self.bytes[4:length])
        self.bytes = self.bytes[length:]
        return message


def main(proto: str, path: str, model: str, tier: str, then: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        generate(pathlib.Path(proto), out)
        from tpad.handoff.v1 import handoff_pb2 as wire

    connection = Connection(path)
    connection.send(wire.WorkerMessage(hello=wire.Hello(protocol=1, worker="python")))
    welcome = connection.receive(wire.DaemonMessage)
    if welcome.WhichOneof("message") != "welcome":
        sys.exit(f"not welcome: {welcome}")
    acquire = wire.Acquire(call=1, model=model, timeout_ms=30_000)
    key = acquire.keys.add().expert
    key.key.tier, key.layer = tier, 0
    connection.send(wire.WorkerMessage(acquire=acquire))
    acquired = connection.receive(wire.DaemonMessage).acquired
    if len(acquired.outcomes) != 1 or len(acquired.slabs) != 1:
        sys.exit(f"no lease in a slab: {acquired}")
    lease = acquired.outcomes[0].lease

    if then == "fork":
        child = os.fork()
        if child == 0:
            # Until it is killed; the socket stays open.
            time.sleep(600)
            os._exit(0)
        print(f"child {child}", flush=True)
    else:
        slab = mmap.mmap(connection.descriptors[0], acquired.slabs[0].bytes, prot=mmap.PROT_READ)
        image = slab[lease.offset : lease.offset + lease.block.image_bytes]
        print(hashlib.sha256(image).hexdigest(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
