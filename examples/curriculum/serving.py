"""A daemon of one's own, and a worker on it that follows the model's growth."""

from __future__ import annotations

import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import tpad
import tpad.transformers

from .text import Text
from .training import held_out_loss

EXPERT_BUDGET = "1MiB"


@contextmanager
def daemon(root: Path, name: str, bases: list[Path], programs: Path | None) -> Iterator[str]:
    """`tpad serve` on a model; its address. `bases` are other roots that it may name."""
    program = shutil.which("tpad", path=str(programs) if programs else None)
    if program is None:
        raise FileNotFoundError("no program `tpad`: name its directory with --programs")
    with tempfile.TemporaryDirectory(prefix="tpad-") as place:
        address = f"unix://{place}/tpad.sock"
        allowed = ", ".join(f'"{base}"' for base in bases)
        Path(place, "tpad.toml").write_text(
            'follow_interval = "1s"\n'
            f'[listen]\ngrpc = "off"\nhttp = "off"\nuds = "{place}/tpad.sock"\n'
            f'[[models]]\nname = "{name}"\nroot = "{root}"\nallowed_bases = [{allowed}]\n'
            '[levels.dram]\ncapacity = "64MiB"\n'
        )
        with open(Path(place, "tpad.log"), "wb") as log:
            command = [program, "serve", "--config", f"{place}/tpad.toml"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until_served(address, name, process, Path(place, "tpad.log"))
            yield address
        finally:
            process.terminate()
            process.wait(30)


def until_served(address: str, name: str, process: subprocess.Popen, log: Path) -> None:
    """Waits until the model can be read."""
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        try:
            with tpad.connect(address) as client:
                if client.model(name).revision:
                    return
        except tpad.TpadError:
            time.sleep(0.1)
    raise RuntimeError(f"tpad does not serve {name}:\n{log.read_text()}")


class Worker:
    """A running model that takes up new tiers when its root's default set names them."""

    def __init__(self, address: str, name: str, text: Text) -> None:
        self.client = tpad.connect(address)
        self.model = tpad.transformers.load(self.client, name, expert_budget=EXPERT_BUDGET)
        self.text = text
        #: What it went over to: tiers, and the loss on held-out text from then on.
        self.news: queue.Queue[tuple[list[str], float]] = queue.Queue()
        self._closing = False
        self._watch = self.client.watch(name)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for mask in self._watch:
                self._see(mask)
        except tpad.TpadError:
            # The daemon ends watches when it drains.
            if not self._closing:
                raise

    def _see(self, mask: tpad.Mask) -> None:
        if [tier.tier for tier in mask.tiers] != self.model.tpad.tiers:
            # Between two steps: this thread is the one that runs the model from here on.
            self.model.tpad.adopt()
            self.news.put((self.model.tpad.tiers, held_out_loss(self.model, self.text)))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What it says now."""
        with torch.no_grad():
            return self.model(tokens, use_cache=False).logits

    def close(self) -> None:
        """Gives all leases back. The watch ends with the daemon."""
        self._closing = True
        self.model.tpad.close()
        self.client.close()


def logits_of_set(address: str, name: str, tiers: list[str], tokens: torch.Tensor) -> torch.Tensor:
    """What a worker that is started now says with these tiers."""
    with tpad.connect(address) as client:
        model = tpad.transformers.load(client, name, expert_budget=EXPERT_BUDGET, tier_set=tiers)
        with torch.no_grad():
            said = model(tokens, use_cache=False).logits
        model.tpad.close()
    return said
