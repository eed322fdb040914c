"""A worker in a process of its own: says when it decoded its first token, and waits.

    worker.py ADDRESS DEVICE EXPERT_BUDGET TOKENS

It prints a line of JSON after its first token and one after TOKENS, and ends when its
standard input does. Times count from when its imports are done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module


def timed_parts() -> dict[str, float]:
    """Has loading say how long its parts take."""
    dense, load = (import_module(f"tpad.transformers.{name}") for name in ("dense", "load"))
    times: dict[str, float] = {}

    def timed(module: object, name: str) -> None:
        part = getattr(module, name)

        def call(*arguments: object, **named: object) -> object:
            begun = time.perf_counter()
            try:
                return part(*arguments, **named)
            finally:
                times[name] = times.get(name, 0.0) + time.perf_counter() - begun

        setattr(module, name, call)

    for module, name in (
        (dense, "read_config"),
        (dense, "skeleton"),
        (load, "Routing"),
        (load, "copy_dense"),
        (dense, "finish"),
    ):
        timed(module, name)
    return times


def main() -> None:
    address, device, budget, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import torch
    import tpad
    import tpad.transformers
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401  what a load imports late
    from rounds import System, settle

    torch.set_num_threads(min(8, os.cpu_count() or 1))
    imported = time.perf_counter()
    device = torch.device(device)
    client = tpad.connect(address)
    times = timed_parts()
    model = tpad.transformers.load(client, "bench", device, expert_budget=budget)
    loaded = time.perf_counter()
    system = System("worker", model, lambda: model.tpad.counters.fetched_bytes, 1)
    draw = torch.Generator().manual_seed(11)
    tokens = torch.randint(3, model.config.vocab_size, (count,), generator=draw)
    system.run(tokens[:1], device, timed=True)
    first = time.perf_counter()
    said = {
        "load_seconds": loaded - imported,
        "first_token_seconds": first - imported,
        "parts": {**times, "first_step": first - loaded},
    }
    print(json.dumps(said), flush=True)
    system.run(tokens[1:], device, timed=True)
    settle(device)
    said = {"tokens_per_second": 1 / system.seconds[-1]}
    if device.type == "cuda":
        said["torch_reserved_bytes"] = torch.cuda.memory_reserved(device)
    said["memory"] = vars(model.tpad.memory())
    print(json.dumps(said), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
