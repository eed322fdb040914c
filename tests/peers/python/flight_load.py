"""Arrow's own C++ client: a connection for each request at a time. The batches stay
as they came; joining them would be one more copy."""

import pyarrow.flight

import load


def main() -> None:
    options = load.arguments().parse_args()
    load.keep_memory()

    def connect():
        own = [("grpc.use_local_subchannel_pool", 1)]
        client = pyarrow.flight.FlightClient(f"grpc://{options.addr}", generic_options=own)

        def fetch(key: int) -> int:
            ticket = pyarrow.flight.Ticket(f"{options.bytes}-{key}".encode())
            return sum(chunk.data.num_rows for chunk in client.do_get(ticket))

        return fetch

    load.run(options, connect)


if __name__ == "__main__":
    main()
