"""Workers in processes of their own on one daemon: what a pair takes, and a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def pair_and_restart(
    address: str,
    device: torch.device,
    budget: int,
    restarts: int,
    leave: list[Callable[[], None]],
    closing: list[Callable[[], None]],
) -> dict[str, dict]:
    """Starts two workers, kills one and starts it again, so many times, at least once.

    `leave` has this process let go of what it holds; `closing` gets what ends the workers.
    """
    for system in leave:
        system()
    used = [used_bytes(device)]
    first, said = start(address, device, budget, closing)
    used.append(used_bytes(device))
    second, also = start(address, device, budget, closing)
    used.append(used_bytes(device))
    one, two = used[1] - used[0], used[2] - used[1]
    pair = {
        "first_worker_bytes": one,
        "second_worker_bytes": two,
        # CUDA's context and what torch reserved: the level was full before the first came.
        "own_bytes": max(one, said[1].get("torch_reserved_bytes", 0)),
        "torch_reserved_bytes": said[1].get("torch_reserved_bytes"),
        "tokens_per_second": [said[1]["tokens_per_second"], also[1]["tokens_per_second"]],
    }
    seen = []
    for _ in range(restarts):
        first.kill()
        first.wait()
        first, again = start(address, device, budget, closing)
        seen.append(again[0])
    for process in (first, second):
        process.stdin.close()
        process.wait(30)
    # The one at the median, whole, and how long each took.
    seen.sort(key=lambda restart: restart["first_token_seconds"])
    each = [restart["first_token_seconds"] for restart in seen]
    return {"pair": pair, "restart": seen[len(seen) // 2] | {"each_seconds": each}}


def used_bytes(device: torch.device) -> int:
    """Bytes of the device that are in use, whoever uses them."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def start(
    address: str, device: torch.device, budget: int, closing: list[Callable[[], None]]
) -> tuple[subprocess.Popen, list[dict]]:
    """Starts a worker and waits until it has decoded."""
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), address]
    command += [str(device), str(budget), "16"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        with suppress(ProcessLookupError):
            process.kill()

    closing.append(end)
    said = []
    for _ in range(2):
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {process.wait()}")
        said.append(json.loads(line))
    return process, said
