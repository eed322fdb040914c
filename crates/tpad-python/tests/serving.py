"""Daemons and checkpoints for the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[3]
FIXTURES = {path.parent.name: path.parent for path in REPOSITORY.glob("tests/fixtures/*/config.json")}


#: A program that a shell started in the background ignores Ctrl-C, and so do those it starts;
#: a script that begins with this hears it like one at a terminal.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def program(name: str) -> Path:
    """One of the programs that `cargo build` made."""
    named = os.environ.get("TPAD_TEST_PROGRAMS")
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    path = (Path(named) if named else target / "debug") / name
    assert path.is_file(), f"{path} is not there: cargo build -p tpad -p tpactl"
    return path


def tpactl(*arguments: str | Path) -> str:
    """What `tpactl` says."""
    run = subprocess.run(
        [program("tpactl"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, f"tpactl {arguments}: {run.stdout}\n{run.stderr}"
    return run.stdout


def import_checkpoint(root: Path, model: str, aside: Path, *more: str | Path) -> None:
    """Publishes a revision for a checkpoint's directory."""
    tpactl("import", root, "--model", model, "--state-dir", aside / "state", *more)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.01)


class Daemon:
    """A daemon with free ports, in a process of its own."""

    def __init__(
        self, place: Path, models: dict[str, Path], dram: str = "256MiB", tail: str = ""
    ) -> None:
        # Below a short name: a socket's path has at most 107 bytes.
        self._sockets = tempfile.TemporaryDirectory(prefix="tpad-")
        self.socket = Path(self._sockets.name) / "tpad.sock"
        self.address = f"unix://{self.socket}"
        self.http_address = ""
        self.log = place / "daemon.log"
        sections = "".join(
            f'[[models]]\nname = "{name}"\nroot = "{root}"\n' for name, root in models.items()
        )
        self.config = place / "tpad.toml"
        self.config.write_text(
            'follow_interval = "1s"\n'
            f'[listen]\ngrpc = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\nuds = "{self.socket}"\n'
            f'[levels.dram]\ncapacity = "{dram}"\n{sections}{tail}'
        )
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Starts it, and waits until all models are served."""
        with self.log.open("wb") as log:
            command = [program("tpad"), "serve", "--config", self.config]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        self._http = self._port("http")
        self.http_address = f"http://{self._port('grpc')}"
        wait_for(lambda: self._get("/readyz") == 200, "the daemon is ready")

    def _port(self, which: str) -> str:
        found: list[str] = []

        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            for line in self.log.read_text().splitlines():
                at = line.find(f"{which}=127.0.0.1:")
                if at >= 0:
                    found.append(line[at + len(which) + 1 :].split()[0].strip('",'))
            return bool(found)

        wait_for(listens, f"the daemon listens for {which}")
        return found[0]

    def _get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{self._http}{path}", timeout=5) as answer:
                return int(answer.status)
        except OSError:
            return 0

    def status(self) -> dict[str, Any]:
        """Its `/status`."""
        with urllib.request.urlopen(f"http://{self._http}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
        return status

    def kill(self) -> None:
        """Ends it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Lets it drain."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._sockets.cleanup()
