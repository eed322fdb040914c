"""docs/python.md: every snippet, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import tpad

from serving import REPOSITORY, program

PAGE = REPOSITORY / "docs/python.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_snippet_of_the_first_hour_runs(request: pytest.FixtureRequest) -> None:
    snippets = FENCE.findall(PAGE.read_text())
    kinds = [kind for kind, _ in snippets]
    assert set(kinds) == {"sh", "python", "text"} and kinds.count("python") >= 12
    # A short name, since a socket will be in there.
    with tempfile.TemporaryDirectory(prefix="tpad-docs-") as place:
        run_all(Path(place), [(kind, text) for kind, text in snippets if kind != "text"])


def run_all(place: Path, snippets: list[tuple[str, str]]) -> None:
    """Shell and Python by turns, each with one session: a shell that runs the Python's pieces when
    it comes to them."""
    dist = os.environ.get("TPAD_TEST_DIST")
    script = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    pieces = []
    for at, (kind, text) in enumerate(snippets):
        if kind == "sh":
            if "dist/" in text and dist is None:
                # The wheel is there when `cargo xtask python` runs this; by hand, what is tested
                # is what is imported here.
                stand_in = place / "worker/bin/python"
                stand_in.parent.mkdir(parents=True)
                stand_in.write_text(
                    f'#!/bin/sh\nPYTHONPATH={Path(tpad.__file__).parents[1]} '
                    f'exec {sys.executable} "$@"\n'
                )
                stand_in.chmod(0o755)
                continue
            script.append(text)
        else:
            pieces.append(compile_check(at, text))
            # The session waits for its turn, and says when it is done.
            script.append(f"echo {at} >&3; read -r done <&4; test \"$done\" = {at}")
    (place / "session.py").write_text(session(snippets))
    (place / "page.sh").write_text("\n".join(script))
    if dist is not None:
        (place / "dist").symlink_to(dist)
    environment = {
        **os.environ,
        "PATH": f"{program('tpad').parent}:{os.environ['PATH']}",
        "TPAD_ADDR": f"unix://{place}/tpad.sock",
        "PYTHONPATH": str(Path(tpad.__file__).parents[1]),
        "XDG_CACHE_HOME": str(place / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": os.environ.get("TPAD_TEST_WHEELS", ""),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    os.mkfifo(place / "turn")
    os.mkfifo(place / "done")
    with (place / "log").open("wb") as log:
        python = subprocess.Popen(
            [sys.executable, "session.py"], cwd=place, env=environment, stdout=log, stderr=log
        )
        shell = subprocess.Popen(
            ["bash", "-c", "exec 3>turn 4<done; . ./page.sh"],
            cwd=place,
            env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
            stdout=log,
            stderr=log,
        )
        try:
            code = shell.wait(timeout=180)
        finally:
            for process in (shell, python):
                if process.poll() is None:
                    process.terminate()
                    process.wait(timeout=20)
    said = (place / "log").read_text()
    assert code == 0, said
    assert "model    demo: revision 1" in said, said


def compile_check(at: int, text: str) -> None:
    compile(text, f"snippet {at}", "exec")


def session(snippets: list[tuple[str, str]]) -> str:
    """A program that runs each piece of Python when it is told to."""
    pieces = {at: text for at, (kind, text) in enumerate(snippets) if kind == "python"}
    return textwrap.dedent(
        f"""
        import os, sys
        pieces = {pieces!r}
        names = {{"__name__": "__main__"}}
        turn, done = open("turn"), open("done", "w")
        for line in turn:
            at = int(line)
            print("snippet", at, flush=True)
            try:
                exec(compile(pieces[at], f"docs/python.md, snippet {{at}}", "exec"), names)
            except BaseException:
                import traceback
                traceback.print_exc()
                print(pieces[at], file=sys.stderr, flush=True)
                os._exit(1)
            print(at, file=done, flush=True)
        """
    )
