"""Arrow Flight: each value is one column of bytes, in batches of at most 16 MiB that
lie in memory.

usage: flight_server.py --listen HOST:PORT --from DIRECTORY
"""

import argparse

import pyarrow
import pyarrow.flight

import load

BATCH_BYTES = 16 << 20


class Server(pyarrow.flight.FlightServerBase):
    def __init__(self, listen: str, directory: str):
        super().__init__(f"grpc://{listen}")
        self.tables = {}
        for name, value in load.values(directory):
            column = pyarrow.array([], pyarrow.uint8()).from_buffers(
                pyarrow.uint8(), len(value), [None, pyarrow.py_buffer(value)]
            )
            self.tables[name] = pyarrow.table({"bytes": column})

    def do_get(self, _context, ticket):
        table = self.tables[ticket.ticket.decode()]
        batches = table.to_batches(max_chunksize=BATCH_BYTES)
        reader = pyarrow.RecordBatchReader.from_batches(table.schema, batches)
        return pyarrow.flight.RecordBatchStream(reader)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--from", dest="directory", required=True)
    options = parser.parse_args()
    load.keep_memory()
    Server(options.listen, options.directory).serve()


if __name__ == "__main__":
    main()
