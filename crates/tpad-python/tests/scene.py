"""A real daemon on a copy of a checkpoint, for tests of what runs on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import tpad

REPOSITORY = Path(__file__).parents[3]
FIXTURES = REPOSITORY / "tests" / "fixtures"


def program(name: str) -> Path:
    """A built program: of TPAD_PROGRAMS, or the workspace's debug build."""
    built = Path(os.environ.get("TPAD_PROGRAMS", REPOSITORY / "target" / "debug")) / name
    if not built.exists():
        raise FileNotFoundError(f"{built}: build it with `cargo build -p tpad -p tpactl`")
    return built


def tpactl(at: Path, *arguments: object, fails: bool = False) -> str:
    """Runs tpactl; its output, errors included."""
    environment = os.environ | {"XDG_CACHE_HOME": str(at / "cache")}
    command = [program("tpactl"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{command}: {done.returncode}\n{said}"
    return said


class Scene:
    """A directory with a model and a daemon that serves it."""

    def __init__(self, at: Path, root: Path, *, dram: str, more: str = "", model_keys: str = "") -> None:
        self.at = at
        self.root = root
        # Unix sockets have short names.
        self.sockets = Path(f"/tmp/tpad-test-{os.getpid()}-{abs(hash(at)) % 10**8}")
        self.sockets.mkdir(mode=0o700)
        self.address = f"unix://{self.sockets}/tpad.sock"
        config = (
            f'follow_interval = "1s"\n[listen]\ngrpc = "off"\nuds = "{self.sockets}/tpad.sock"\n'
            f'http = "127.0.0.1:0"\n[[models]]\nname = "m"\nroot = "{root}"\n{model_keys}'
            f'[levels.dram]\ncapacity = "{dram}"\n{more}'
        )
        (at / "tpad.toml").write_text(config)
        self.log = at / "tpad.log"
        with open(self.log, "wb") as log:
            command = [program("tpad"), "serve", "--config", at / "tpad.toml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            ended = self.process.poll()
            assert ended is None and time.monotonic() < deadline, self.log.read_text()
            found = re.search(r"http=127\.0\.0\.1:(\d+)", self.log.read_text())
            if found and "model loaded" in self.log.read_text():
                self.http = f"http://127.0.0.1:{found[1]}"
                return
            time.sleep(0.02)

    def connect(self, **options: object) -> tpad.Client:
        """A client of the daemon."""
        return tpad.connect(self.address, **options)

    def metric(self, name: str) -> float:
        """A metric's sum over its labels."""
        text = urllib.request.urlopen(f"{self.http}/metrics", timeout=5).read().decode()
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def stop(self) -> None:
        """Ends the daemon."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.sockets, ignore_errors=True)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


def imported(at: Path, source: Path, *arguments: object) -> Path:
    """A copy of a checkpoint, published."""
    root = at / "model"
    shutil.copytree(source, root)
    tpactl(at, "import", root, "--model", "m", *arguments)
    return root
