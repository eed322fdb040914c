"""Signals, forks, and workers that come and go."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import tpad

from serving import HEARS_CTRL_C, Daemon, wait_for

CYCLES = int(os.environ.get("TPAD_TEST_CYCLES", "20"))
"""How often workers come and are killed; 1000 takes some minutes."""


def python(script: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """A worker of its own."""
    command = [sys.executable, "-c", HEARS_CTRL_C + textwrap.dedent(script), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload,no-any-return]


def test_ctrl_c_ends_a_wait(daemon: Daemon) -> None:
    worker = python(
        """
        import sys, tpad
        client = tpad.connect(sys.argv[1])
        watch = client.watch("mixtral")
        next(watch)
        try:
            print("waits", flush=True)
            next(watch)
        except KeyboardInterrupt:
            # The client is as it was.
            print("interrupted", client.models()[0].state)
        """,
        daemon.address,
    )
    assert worker.stdout is not None and worker.stdout.readline() == "waits\n"
    start = time.monotonic()
    worker.send_signal(signal.SIGINT)
    try:
        out, err = worker.communicate(timeout=20)
    finally:
        # Others count who is connected.
        worker.kill()
    assert out == "interrupted serving\n", (out, err)
    assert time.monotonic() - start < 5


def test_others_run_while_one_waits(client: tpad.Client) -> None:
    watch = client.watch("mixtral")
    next(watch)
    events: list[object] = []
    waiting = threading.Thread(target=lambda: events.append(next(watch, "closed")), daemon=True)
    waiting.start()
    # The GIL is free: this thread goes on while that one waits for ever.
    for _ in range(20):
        assert client.models()
    assert waiting.is_alive() and not events
    watch.close()
    waiting.join(timeout=20)
    assert not waiting.is_alive() and events == ["closed"]


def test_a_forked_child_is_told(daemon: Daemon) -> None:
    """In a process of its own, since a test that hangs after a fork is not found out."""
    worker = python(
        """
        import os, sys, tpad
        client = tpad.connect(sys.argv[1], handoff="required")
        block = client.expert("mixtral", "base", 0, 0, 0)
        tensor = block.by_role("gate")
        watch = client.watch("mixtral")
        before = bytes(tensor.raw())
        child = os.fork()
        if child == 0:
            told = 0
            for call in (client.models, lambda: client.expert("mixtral", "base", 0, 0, 0),
                         lambda: next(watch), lambda: client.prefetch("mixtral", []),
                         tensor.raw, tensor.__dlpack__, tensor.numpy):
                try:
                    call()
                except tpad.FailedPrecondition as error:
                    told += error.reason == "FORKED" and "tpad.connect" in error.remedy
            # What was inherited is dropped, and changes nothing.
            del client, block, tensor, watch, call
            own = tpad.connect(sys.argv[1], handoff="required")
            same = bytes(own.expert("mixtral", "base", 0, 0, 0).by_role("gate").raw()) == before
            print(told, same, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(bytes(tensor.raw()) == before, client.expert("mixtral", "base", 0, 1, 0).held)
        """,
        daemon.address,
    )
    out, err = worker.communicate(timeout=60)
    assert out == "7 True\nTrue True\n", (out, err)


def test_multiprocessing_by_spawn_works(daemon: Daemon) -> None:
    worker = python(
        """
        import multiprocessing, sys, tpad
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            client = tpad.connect(sys.argv[1])
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(2, mp_context=spawn) as pool:
                there = pool.submit(tpad.connect, sys.argv[1])
                # A client is of its process: it cannot be sent.
                try:
                    there.result()
                except Exception as error:
                    print(type(error).__name__)
        """,
        daemon.address,
    )
    out, err = worker.communicate(timeout=60)
    assert out.strip() in {"TypeError", "PicklingError", "MaybeEncodingError"}, (out, err)


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes of its memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nothing_is_held(daemon: Daemon) -> bool:
    """Whether no worker is known, but for this process."""
    leases = daemon.status()["leases"]
    others = [worker for worker in leases["workers"] if worker["pid"] != os.getpid()]
    return not others and leases["bytes"] == 0 and leases["direct_bytes"] == 0


def test_workers_that_are_killed_leave_nothing(daemon: Daemon) -> None:
    gc.collect()
    script = """
        import sys, tpad
        client = tpad.connect(sys.argv[1], handoff="required")
        model = client.model("mixtral")
        keys = list(model.keys(0).values())
        blocks = client.experts(model, keys) + client.experts(model, keys)
        arrays = [block.by_role("gate").raw() for block in blocks]
        watch = client.watch(model)
        print("holds", flush=True)
        next(watch), next(watch)
        """
    wait_for(lambda: nothing_is_held(daemon), "nothing is held before")
    pid = daemon.process.pid
    before, memory = None, 0
    for cycle in range(CYCLES):
        workers = [python(script, daemon.address) for _ in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "holds\n", worker.communicate()
        assert not nothing_is_held(daemon)
        for worker in workers:
            worker.kill()
            worker.communicate()
        if cycle == min(4, CYCLES - 2):
            # What is made once is made by now.
            wait_for(lambda: nothing_is_held(daemon), "what they held is given back")
            before, memory = descriptors(pid), resident(pid)
    wait_for(lambda: nothing_is_held(daemon), "what they held is given back")
    assert before is not None
    wait_for(lambda: descriptors(pid) <= before, "their descriptors are closed")
    grown = resident(pid) - memory
    print(f"{2 * CYCLES} workers killed: the daemon grew by {grown} bytes")
    assert grown < 32 << 20


def test_clients_that_close_leave_nothing_in_this_process(daemon: Daemon) -> None:
    def cycle() -> None:
        with tpad.connect(daemon.address, handoff="required") as client:
            block = client.expert("mixtral", "base", 0, 0, 0)
            assert block.by_role("gate").numpy().shape == (96, 64)
            with tpad.connect(daemon.http_address) as remote:
                assert not remote.expert("mixtral", "base", 0, 0, 0).held

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    for _ in range(5):
        cycle()
    gc.collect()
    own = os.getpid()
    files, tasks, memory = descriptors(own), threads(), resident(own)
    for _ in range(CYCLES * 5):
        cycle()
    gc.collect()
    wait_for(lambda: descriptors(own) <= files + 2, "descriptors are closed")
    wait_for(lambda: threads() <= tasks + 2, "threads have ended")
    assert resident(own) - memory < 32 << 20
    wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "nothing is held")
