"""A daemon for the benchmark: imported, started, asked for its figures, ended."""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path


def tpactl(programs: Path, state: Path, *arguments: str) -> str:
    """Runs tpactl and returns what it printed."""
    environment = os.environ | {"XDG_CACHE_HOME": str(state)}
    command = [str(programs / "tpactl"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Daemon:
    """`tpad serve`, as a child."""

    def __init__(
        self, programs: Path, state: Path, root: Path, *, dram: int, experts: int, hbm: int | None
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.socket = state / "tpad.sock"
        self.address = f"unix://{self.socket}"
        self.log = state / "tpad.log"
        config = [
            f'[listen]\ngrpc = "off"\nuds = "{self.socket}"\nhttp = "127.0.0.1:0"',
            f'[[models]]\nname = "bench"\nroot = "{root}"',
            f"[levels.dram]\ncapacity = {dram}\n[levels.dram.tiers]\nbase = {experts}",
            # Quiet: what is logged under load is not to be measured.
            '[log]\nlevel = "info"',
        ]
        if hbm is not None:
            config.append(f'[levels.hbm]\ncapacity = {hbm}\ndevices = ["0"]')
        (state / "tpad.toml").write_text("\n".join(config) + "\n")
        with open(self.log, "wb") as log:
            command = [str(programs / "tpad"), "serve", "--config", str(state / "tpad.toml")]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        self.http = ""

    def wait(self, client_of, patience: float) -> float:
        """Until it answers and its tiers are at home; returns the seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < patience:
            if self.process.poll() is not None:
                raise RuntimeError(f"tpad ended with {self.process.returncode}:\n{self.log_end()}")
            try:
                with client_of(self.address) as client:
                    status = client.status()
            except Exception:
                time.sleep(0.1)
                continue
            if self.at_home(status):
                return time.monotonic() - begun
            time.sleep(0.2)
        raise RuntimeError(f"tpad is not ready after {patience} s:\n{self.log_end()}")

    @staticmethod
    def at_home(status: dict) -> bool:
        """Whether every tier of every model is where it is placed, as far as there is room."""
        models = status["models"]
        tiers = [tier for model in models for tier in model["tiers"]]
        return bool(tiers) and all(
            tier["warm"]["state"] in ("on_demand", "warm", "failed") for tier in tiers
        )

    def metrics(self) -> dict[str, float]:
        """Sums of the daemon's metrics over their labels, by name."""
        if not self.http:
            self.http = re.search(r"http=127\.0\.0\.1:(\d+)", self.log.read_text())[1]
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5).read()
        sums: dict[str, float] = {}
        for line in text.decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.split("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """Ends it and waits for it."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
