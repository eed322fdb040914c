"""grpcio's server: messages of 1 MiB that are encoded once, without a serializer.

usage: grpc_server.py --listen HOST:PORT --from DIRECTORY
"""

import argparse
from concurrent import futures

import grpc

import grpc_options
import load

MESSAGE_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--from", dest="directory", required=True)
    options = parser.parse_args()
    load.keep_memory()
    messages = {}
    for name, value in load.values(options.directory):
        starts = range(0, len(value), MESSAGE_BYTES)
        messages[name] = [value[start : start + MESSAGE_BYTES] for start in starts]

    def get(request: bytes, _context):
        yield from messages[request.decode()]

    handler = grpc.unary_stream_rpc_method_handler(get)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=32), options=grpc_options.RECOMMENDED
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("peers.Values", {"Get": handler})]
    )
    if server.add_insecure_port(options.listen) == 0:
        raise SystemExit(f"{options.listen} is taken")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
