"""How fast grpcio reads blocks, with the options that docs/operations.md recommends.

Fetches every expert of one tier again and again and prints a JSON object:
`gb_per_second` of payload, `cpu_seconds` of this process, `seconds`, `bytes`,
`requests`, and whether the options were the recommended ones. It needs no code
that was generated: requests are two strings, and of replies it only tells the
payloads from the rest, without copying them.

usage: grpcio_bulk.py ADDRESS MODEL SECONDS [--tier TIER] [--concurrency N] [--defaults]
"""

import argparse
import json
import threading
import time

import grpc

METHOD = "/tpad.v1.ExpertService/FetchExperts"

# With these in the environment glibc keeps the memory of messages instead of having the
# kernel clear it for each:
#   MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_ARENA_MAX=1
#
# A frame is what grpcio takes from a socket at a time, and the look-ahead what a
# stream may send before it is asked for more; probing the bandwidth would take both
# back to what it finds at the start.
RECOMMENDED = [
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", -1),
]
DEFAULTS = [("grpc.max_receive_message_length", -1)]

FIRST_SECONDS = 1.0
"""Not counted: blocks come into the daemon's memory, buffers grow."""


def field(number: int, value: bytes) -> bytes:
    """A short field of bytes, as protobuf writes it."""
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def payload(message: memoryview) -> memoryview:
    """The payload of a FetchExpertsResponse: field 3 of field 1; empty if it has another part."""
    if len(message) == 0 or message[0] != 1 << 3 | 2:
        return message[:0]
    _, at = varint(message, 1)
    if message[at] != 3 << 3 | 2:
        return message[:0]
    length, at = varint(message, at + 1)
    return message[at : at + length]


class Count:
    """What all threads have received."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bytes = self.requests = 0

    def add(self, received: int, requests: int) -> None:
        with self.lock:
            self.bytes += received
            self.requests += requests


def fetch(channel: grpc.Channel, request: bytes, until: float, count: Count) -> None:
    # Neither serializer: requests and replies are bytes.
    call = channel.unary_stream(METHOD)
    while time.monotonic() < until:
        for message in call(request, timeout=120):
            count.add(len(payload(memoryview(message))), 0)
            if time.monotonic() >= until:
                return
        count.add(0, 1)


def run(arguments: argparse.Namespace, seconds: float, count: Count) -> None:
    options = list(DEFAULTS if arguments.defaults else RECOMMENDED)
    if arguments.address.startswith("unix:"):
        # Otherwise the socket's path would be the authority, which is none.
        options.append(("grpc.default_authority", "localhost"))
    request = field(1, arguments.model.encode()) + field(4, arguments.tier.encode())
    until = time.monotonic() + seconds
    threads, channels = [], []
    for number in range(arguments.concurrency):
        # Channels of one target share a connection unless an option tells them apart.
        channel = grpc.insecure_channel(arguments.address, [*options, ("tpad.channel", number)])
        channels.append(channel)
        thread = threading.Thread(target=fetch, args=(channel, request, until, count))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    for channel in channels:
        channel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tier", default="base")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--defaults", action="store_true", help="grpcio's own options")
    arguments = parser.parse_args()
    run(arguments, FIRST_SECONDS, Count())
    count, began, cpu = Count(), time.monotonic(), time.process_time()
    run(arguments, arguments.seconds, count)
    seconds = time.monotonic() - began
    found = {
        "gb_per_second": count.bytes / 1e9 / seconds,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": seconds,
        "bytes": count.bytes,
        "requests": count.requests,
        "recommended_options": not arguments.defaults,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
