"""What a run is given: options, a place for the model, the machine it is on."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from make import Shape

PLAN = """[[tiers]]
id = "base"
placement = "dram"
k_expert = 2
[[tiers.groups]]
experts = "0-{last}"
"""


@contextmanager
def patience(seconds: int):
    """Raises in the main thread after so long."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def machine(device: torch.device) -> str:
    """The machine in a line."""
    what = f"torch {torch.__version__}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {what}"
    return f"no GPU: tries the program, measures nothing; {what}"


def available_memory() -> int:
    """Bytes that this process and its children may still take, by the kernel and by a cgroup."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    available = int(lines["MemAvailable"].split()[0]) << 10
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            available = min(available, int(text))
    return available


def place(options: argparse.Namespace, shape: Shape) -> Path:
    """Where the model goes: in memory where there is plenty, on disk otherwise."""
    if options.dir:
        at = options.dir
    else:
        needed = int(1.15 * shape.experts_bytes) + (4 << 30)
        enough = available_memory() > 4.4 * shape.experts_bytes
        roomy = enough and shutil.disk_usage("/dev/shm").free > needed
        at = "/dev/shm" if roomy and not options.tiny else tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="tpad-decode-", dir=at))


def options_of(about: str) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", required=True, help="the directory of tpad and tpactl")
    parser.add_argument("--out", default=".", help="where decode.json and decode.txt go")
    parser.add_argument(
        "--dir", help="where the model is made (default: /dev/shm or the temporary directory)"
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--layers", type=int, default=9, help="9 layers are 25 GB of experts")
    parser.add_argument("--hidden", type=int, default=4096, help="the width of the model")
    parser.add_argument("--inner", type=int, default=14336, help="the width of an expert")
    parser.add_argument(
        "--zipf", type=float, default=1.0, help="how skewed the routers are; 0: not at all"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--restarts",
        type=int,
        choices=range(1, 10),
        default=3,
        help="of a worker, and fresh loads: medians count",
    )
    parser.add_argument("--tokens", type=int, default=32, help="of a round")
    parser.add_argument("--offload-tokens", type=int, default=4, help="of a round, of accelerate")
    parser.add_argument("--warm", type=int, default=16, help="tokens before the first round")
    parser.add_argument(
        "--until", type=float, default=410.0, help="seconds after which no round begins"
    )
    parser.add_argument("--tiny", action="store_true", help="a model of a megabyte")
    return parser.parse_args()


def shape_of(options: argparse.Namespace) -> Shape:
    """The model that the options ask for."""
    return Shape(
        layers=options.layers, hidden=options.hidden, inner=options.inner, zipf=options.zipf
    )
