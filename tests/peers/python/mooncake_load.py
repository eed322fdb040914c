"""Mooncake's own client: `get_into` registered memory that was written to before."""

import numpy
from mooncake.store import MooncakeDistributedStore

import load


def main() -> None:
    options = load.arguments().parse_args()
    load.keep_memory()
    store = MooncakeDistributedStore()
    # It lends no memory of its own.
    code = store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", options.addr)
    if code != 0:
        raise SystemExit(f"setup: {code}")
    buffers = []

    def connect():
        buffer = numpy.ones(options.bytes, dtype=numpy.uint8)
        buffers.append(buffer)
        pointer = buffer.ctypes.data
        code = store.register_buffer(pointer, options.bytes)
        if code != 0:
            raise RuntimeError(f"register_buffer: {code}")

        def fetch(key: int) -> int:
            received = store.get_into(f"{options.bytes}-{key}", pointer, options.bytes)
            if received < 0:
                raise RuntimeError(f"get_into: {received}")
            return received

        return fetch

    load.run(options, connect)


if __name__ == "__main__":
    main()
