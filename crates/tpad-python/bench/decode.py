"""Decoding with experts from tpad beside what one would use instead, in one run.

    python decode.py --programs DIR [--out DIR] [--dir DIR] [--layers N] [--until SECONDS]
    python decode.py --programs DIR --tiny --device cpu      # tries every section, measures nothing

DIR of --programs has `tpad` and `tpactl`. It makes a Mixtral-shaped checkpoint of random
weights with skewed routers (make.py), imports it, and starts `tpad` with a third of the
experts' bytes as `levels.hbm`. Then it decodes the same tokens with

  tpad         `tpad.transformers`, experts where the daemon has them on the GPU
  pinned LRU   a cache written by hand in this process (pinned_lru.py), the same bytes
  resident     every expert on the GPU: the floor
  offload      accelerate's CPU offload with the same GPU memory

in interleaved rounds; then starts two workers, kills one, and starts it again, thrice. Each
section that fails is reported and leaves the others' results. It writes decode.json and
decode.txt.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
import tpad
import tpad.transformers
from daemon import Daemon, tpactl
from fleet import pair_and_restart
from local import load_local
from make import Shape, make
from offload import fresh_load, load_offloaded
from pinned_lru import PinnedExperts, PinnedLru, Resident
from report import goals, table
from rounds import System, interleaved, plain_copy_rate
from setting import PLAN, machine, options_of, patience, place, shape_of

TINY = Shape(layers=3, hidden=64, inner=96, heads=4, kv_heads=2, vocab=256)
#: A worker leaves this part of the GPU level to what it is not holding: blocks on their way
#: in need slots while those that they replace are given back.
HELD_PART = 0.6
#: Accelerate's load of 25 GB takes a minute or two; what takes longer is given up, so that
#: the others' rounds are run.
OFFLOAD_PATIENCE = 150


class Bench:
    """The sections, in order; what one makes the next may use."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.begun = time.monotonic()
        self.until = self.begun + options.until
        self.device = torch.device(options.device)
        self.shape = TINY if options.tiny else shape_of(options)
        self.results: dict = {
            "machine": machine(self.device),
            "shape": asdict(self.shape),
            "shape_in_words": (
                f"Mixtral's shape, {self.shape.layers} layers of {self.shape.experts} experts of "
                f"{self.shape.expert_bytes / 1e6:.1f} MB, {self.shape.experts_bytes / 1e9:.2f} GB "
                "of experts; random weights; routers with a made-up taste after Zipf's law, "
                f"exponent {self.shape.zipf} (no recorded traffic); random tokens, one at a time"
            ),
            "failed": {},
            "seconds": {},
        }
        self.third = self.shape.experts_bytes // 3
        self.systems: list[System] = []
        self.notes: dict[str, str] = {}
        self.daemon: Daemon | None = None
        self.closing: list[Callable[[], None]] = []
        self.state = place(options, self.shape)
        self.root = self.state / "model"

    @contextmanager
    def section(self, name: str):
        """A section: timed; a failure is kept and does not go on."""
        begun = time.monotonic()
        try:
            yield
        except Exception:
            self.results["failed"][name] = traceback.format_exc()
            print(f"section {name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        self.results["seconds"][name] = time.monotonic() - begun
        print(f"[{time.monotonic() - self.begun:6.1f} s] {name}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Every section."""
        with self.section("make"):
            make(self.root, self.shape, self.device.type, 4)
        with self.section("import"):
            programs = Path(self.options.programs)
            (self.state / "plan.toml").write_text(PLAN.format(last=self.shape.experts - 1))
            plan = str(self.state / "plan.toml")
            tpactl(
                programs, self.state, "import", str(self.root), "--model", "bench", "--plan", plan
            )
        with self.section("serve"):
            self.serve(programs)
        with self.section("load tpad"):
            self.load_tpad()
        with self.section("load pinned LRU"):
            self.load_pinned()
        with self.section("load offload"), patience(OFFLOAD_PATIENCE):
            self.load_offload()
        with self.section("decode"):
            self.decode()
        if self.daemon is not None and time.monotonic() < self.until + 60:
            with self.section("pair and restart"):
                found = pair_and_restart(
                    self.daemon.address,
                    self.device,
                    self.third * 2 // 5,
                    self.options.restarts,
                    [system.leave for system in self.systems],
                    self.closing,
                )
                self.results |= found
                level = self.results["serve"]["hbm"]["devices"]
                self.results["pair"]["hbm_capacity_bytes"] = sum(d["capacity_bytes"] for d in level)
                for name in ("fresh_load_seconds", "fresh_loads", "pinned_load_seconds"):
                    self.results["restart"][name] = self.results.get(name)

    def serve(self, programs: Path) -> None:
        """Starts the daemon: host memory for the whole model, a third of it on the GPU."""
        cuda = self.device.type == "cuda"
        # Seven tenths of host memory are kept for what stays, the rest is for what is on its way.
        spare = max(64 << 20, int(0.6 * self.shape.experts_bytes))
        self.daemon = Daemon(
            programs,
            self.state / "daemon",
            self.root,
            dram=self.shape.experts_bytes + spare + 4 * self.shape.vocab * self.shape.hidden,
            # Blocks are padded to whole pages.
            experts=self.shape.experts_bytes * 101 // 100 + (1 << 20),
            hbm=max(self.third, 16 << 20) if cuda else None,
        )
        self.closing.append(self.daemon.stop)
        seconds = self.daemon.wait(tpad.connect, 200)
        with tpad.connect(self.daemon.address) as client:
            # At home in host memory, as it is for the others, and on the GPU when it is used.
            begun = time.monotonic()
            model = client.model("bench")
            keys = [key for layer in model.layers for key in model.keys(layer).values()]
            self.results["prefetched"] = client.prefetch(model, keys).wait(180)
            seconds += time.monotonic() - begun
            status = client.status()
        self.results["serve"] = {
            "ready_seconds": seconds,
            "hbm": status["hbm"],
            "models": status["models"],
        }
        if cuda and status["hbm"]["mode"] != "cuda":
            raise RuntimeError(f"the daemon has no GPU: {status['hbm']}")

    def load_tpad(self) -> None:
        """Two workers of this process: one that holds much, one that leaves all to the daemon."""
        cuda = self.device.type == "cuda"
        # What a layer picks and what the next is likely to, and a little for padding.
        few = 2 * self.shape.per_token * self.shape.expert_bytes * 33 // 32
        budgets = {"tpad": few, "tpad, holds most": int(self.third * HELD_PART)}
        for name, budget in budgets.items():
            client = tpad.connect(self.daemon.address)
            begun = time.perf_counter()
            model = tpad.transformers.load(client, "bench", self.device, expert_budget=budget)
            self.notes[name] = (
                f"expert_budget {budget / 1e9:.2f} GB, in place: {model.tpad.in_place}, "
                f"loaded in {time.perf_counter() - begun:.2f} s"
            )
            # What crosses the bus is what the daemon copies there; without a GPU, what was fetched.
            missed = self.filled if cuda else (lambda m=model: m.tpad.counters.fetched_bytes)
            self.systems.append(System(name, model, missed, self.options.tokens))
            # Between its turns it holds nothing that another could use; the daemon keeps it.
            self.systems[-1].leave = model.tpad.cache.clear
            self.closing.append(model.tpad.close)

    def filled(self) -> int:
        """Bytes that the daemon has copied to the GPU."""
        return int(self.daemon.metrics().get("tpad_hbm_fill_bytes_total", 0))

    def load_pinned(self) -> None:
        """The hand-written cache, and everything resident where the GPU has room."""
        begun = time.perf_counter()
        experts = PinnedExperts(self.root, self.shape, self.device.type == "cuda")
        self.closing.append(experts.close)
        lru = PinnedLru(experts, self.device, self.third)
        model = load_local(self.root, self.device, lru)
        self.results["pinned_load_seconds"] = time.perf_counter() - begun
        self.notes["pinned LRU"] = f"{len(lru.slots)} slots on the device"
        self.systems.append(
            System("pinned LRU", model, lambda: lru.missed_bytes, self.options.tokens)
        )
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            if free < 2.2 * self.shape.experts_bytes:
                self.notes["resident"] = "left out: it does not fit"
                return
        model = load_local(self.root, self.device, Resident(experts, self.device))
        self.systems.append(System("resident", model, lambda: 0, self.options.tokens))

    def load_offload(self) -> None:
        """Accelerate."""
        dense = (
            2 * (2 * self.shape.vocab * self.shape.hidden)
            + self.shape.layers * 5 * self.shape.hidden**2
        )
        # The fresh load that a restart replaces, in a process of its own as a restart is.
        loads = [
            fresh_load(self.root, self.device, self.third + dense, OFFLOAD_PATIENCE)
            for _ in range(self.options.restarts)
        ]
        self.results["fresh_loads"] = sorted(loads)
        self.results["fresh_load_seconds"] = statistics.median_high(loads)
        model, how = load_offloaded(self.root, self.device, self.third + dense)
        system = System("offload", model, lambda: 0, self.options.offload_tokens)
        self.notes["offload"] = f"{how}; moves whole layers, whatever is picked"
        self.systems.append(system)

    def decode(self) -> None:
        """The rounds."""
        rate = plain_copy_rate(self.shape.expert_bytes, self.device)
        spare = 90 if self.device.type == "cuda" else 0
        rates, differ = interleaved(
            self.systems,
            self.shape.vocab,
            self.options.rounds,
            self.options.warm,
            self.device,
            self.until - spare,
            rate,
        )
        self.results["decode"] = {
            "copy_rates": rates,
            "copy_rate": sorted(rates)[len(rates) // 2],
            "systems": [system.result() for system in self.systems],
            "notes": self.notes,
            "logits_differ": differ,
        }
        for system in self.systems:
            served = getattr(system.model, "tpad", None)
            if served is not None:
                counters = {
                    k: v if isinstance(v, int) else len(v) for k, v in vars(served.counters).items()
                }
                self.results["decode"][f"counters of {system.name}"] = counters
                self.results["decode"][f"guesses of {system.name}"] = {
                    "right": served.store.right,
                    "lead_seconds": served.store.lead,
                    "fetch_seconds": served.cache.fetch_seconds,
                }
        self.results["decode"]["daemon"] = (
            {
                k: v
                for k, v in self.daemon.metrics().items()
                if k.startswith("tpad_hbm") and "bucket" not in k
            }
            if self.daemon
            else {}
        )

    def close(self) -> None:
        """Ends what is left, the last first."""
        for end in reversed(self.closing):
            with suppress(Exception):
                end()
        shutil.rmtree(self.state, ignore_errors=True)


def main() -> int:
    options = options_of(__doc__)
    torch.set_num_threads(2 if options.tiny else 8)
    bench = Bench(options)
    try:
        bench.run()
    finally:
        bench.results["goals"] = goals(bench.results) if bench.device.type == "cuda" else []
        text = table(bench.results)
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "decode.json").write_text(json.dumps(bench.results, indent=1, default=str))
        (out / "decode.txt").write_text(text + "\n")
        print(text, flush=True)
        bench.close()
    return 1 if bench.results["failed"] or not all(g["met"] for g in bench.results["goals"]) else 0


if __name__ == "__main__":
    sys.exit(main())
