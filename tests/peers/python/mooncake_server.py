"""The process whose memory Mooncake Store keeps values in.

usage: mooncake_server.py --master HOST:PORT --segment BYTES --from DIRECTORY

Says `ready` when all values are stored.
"""

import argparse
import signal

from mooncake.store import MooncakeDistributedStore

import load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--master", required=True)
    parser.add_argument("--segment", type=int, required=True)
    parser.add_argument("--from", dest="directory", required=True)
    options = parser.parse_args()
    store = MooncakeDistributedStore()
    code = store.setup(
        "127.0.0.1", "P2PHANDSHAKE", options.segment, 512 << 20, "tcp", "", options.master
    )
    if code != 0:
        raise SystemExit(f"setup: {code}")
    for name, value in load.values(options.directory):
        code = store.put(name, value)
        if code != 0:
            raise SystemExit(f"put {name}: {code}")
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    store.close()


if __name__ == "__main__":
    main()
