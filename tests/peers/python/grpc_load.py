"""grpcio's client with the recommended options, or with --defaults, and no
deserializer: of grpcio's own server, or with --tpad of one that speaks tpad's proto
files.

Messages are counted and not joined. Of tpad's, each is some ten bytes longer than
its payload, and two hold no payload; the figure counts the value's own bytes.
"""

import grpc

import grpc_options
import load


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def fetch_experts(model: str, tier: str, expert: int) -> bytes:
    """A `FetchExpertsRequest` for one expert at layer 0 (proto/tpad/v1)."""
    key = field(1, tier.encode()) + varint(3 << 3) + varint(expert)
    return field(1, model.encode()) + field(3, field(1, key))


def main() -> None:
    parser = load.arguments()
    parser.add_argument("--tpad", action="store_true")
    parser.add_argument("--defaults", action="store_true")
    options = parser.parse_args()
    if options.defaults:
        chosen = grpc_options.DEFAULTS
    else:
        chosen = grpc_options.RECOMMENDED
        load.keep_memory()

    # A method does not keep its channel, which closes when nobody does.
    channels = []

    def connect():
        channel = grpc.insecure_channel(options.addr, options=chosen)
        name = "/tpad.v1.ExpertService/FetchExperts" if options.tpad else "/peers.Values/Get"
        method = channel.unary_stream(name)
        channels.append(channel)

        def fetch(key: int) -> int:
            if options.tpad:
                request = fetch_experts(f"m{options.bytes}", "base", key)
            else:
                request = f"{options.bytes}-{key}".encode()
            return sum(map(len, method(request)))

        return fetch

    load.run(options, connect)


if __name__ == "__main__":
    main()
