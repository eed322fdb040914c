"""The load of clients in Python: the same rule as `src/closed_loop.rs`.

Workers warm up, each finishes what it began, and they wait for one another. Then
all clocks are read and the measured time begins. It ends with the last answer to
a request that was sent before time was up.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import pathlib
import random
import threading
import time


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--addr", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--warmup", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--server", type=int, action="append", default=[])
    parser.add_argument("--processes", type=int, default=1)
    return parser


def keep_memory() -> None:
    """Has glibc keep what is freed. It returns large pieces to the kernel otherwise, and
    each message is then received into fresh pages, which cost more than its bytes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its maximum
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX


def trees_seconds(roots: list[int]) -> float:
    """User and system seconds of processes and all that they started."""
    parents, ticks = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # ended meanwhile
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            ticks[pid] = sum(map(int, fields[11:15]))
    counted = set()
    for pid in ticks:
        at = pid
        while at in ticks and at not in roots:
            at = parents[at]
        if at in roots:
            counted.add(pid)
    gone = [root for root in roots if root not in ticks]
    if gone:
        raise SystemExit(f"process {gone[0]} is gone")
    return sum(ticks[pid] for pid in counted) / os.sysconf("SC_CLK_TCK")


def report(outcomes) -> None:
    """Prints what the processes came to together."""
    latencies = sorted(latency for outcome in outcomes for latency in outcome["latencies"])

    def at(share: float) -> float:
        return latencies[min(int(len(latencies) * share), len(latencies) - 1)] * 1e3

    print(
        json.dumps(
            {
                "requests": len(latencies),
                "bytes": sum(outcome["bytes"] for outcome in outcomes),
                "seconds": max(outcome["seconds"] for outcome in outcomes),
                "client_cpu_seconds": sum(outcome["client"] for outcome in outcomes),
                # All of them look at the same servers.
                "server_cpu_seconds": max(outcome["server"] for outcome in outcomes),
                "p50_ms": at(0.5) if latencies else 0.0,
                "p99_ms": at(0.99) if latencies else 0.0,
            }
        )
    )


def run(options, connect) -> None:
    """Calls `connect()` in each worker, then what it returned with a key, which
    must return the number of bytes that came."""
    if options.processes == 1:
        report([measure(options, connect, lambda: None)])
        return
    # Before anything is connected: what has threads cannot be forked.
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(options.processes)
    answers = context.SimpleQueue()

    def child() -> None:
        try:
            answers.put(measure(options, connect, lambda: gate.wait(timeout=60)))
        except (Exception, SystemExit) as error:
            gate.abort()  # the others wait for nobody
            answers.put(f"{type(error).__name__}: {error}")

    children = [context.Process(target=child) for _ in range(options.processes)]
    for process in children:
        process.start()
    outcomes = [answers.get() for _ in children]
    for process in children:
        process.join()
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if failures:
        told = [failure for failure in failures if "BrokenBarrier" not in failure]
        raise SystemExit((told or failures)[0])
    report(outcomes)


def measure(options, connect, together):
    """One process's load; `together` returns when all processes are warm."""
    warmed = threading.Barrier(options.concurrency + 1)
    begun = threading.Barrier(options.concurrency + 1)
    totals, latencies, failures = [], [], []

    def work(n: int) -> None:
        chosen = random.Random(n)
        fetch = None
        try:
            fetch = connect()
            until = time.monotonic() + options.warmup
            while True:
                fetch(chosen.randrange(options.keys))
                if time.monotonic() >= until:
                    break
        except Exception as error:  # reported when all have passed the barriers
            failures.append(error)
        warmed.wait()
        begun.wait()
        if failures:
            return
        total, own = 0, []
        until = time.monotonic() + options.seconds
        try:
            while time.monotonic() < until:
                asked = time.monotonic()
                received = fetch(chosen.randrange(options.keys))
                own.append(time.monotonic() - asked)
                if abs(received - options.bytes) > options.bytes // 1000 + 64:
                    raise RuntimeError(f"{received} bytes in place of {options.bytes}")
                total += options.bytes
        except Exception as error:
            failures.append(error)
        totals.append(total)
        latencies.extend(own)

    # A process whose gate breaks ends with its threads where they are.
    workers = [
        threading.Thread(target=work, args=(n,), daemon=True) for n in range(options.concurrency)
    ]
    for worker in workers:
        worker.start()
    warmed.wait()
    together()
    client, server = trees_seconds([os.getpid()]), trees_seconds(options.server)
    began = time.monotonic()
    begun.wait()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - began
    client = trees_seconds([os.getpid()]) - client
    server = trees_seconds(options.server) - server
    if failures:
        raise SystemExit(f"{type(failures[0]).__name__}: {failures[0]}")
    return {
        "bytes": sum(totals),
        "seconds": seconds,
        "client": client,
        "server": server,
        "latencies": latencies,
    }


def values(directory: str):
    """Name and bytes of each value."""
    for path in sorted(pathlib.Path(directory).iterdir()):
        yield path.name, path.read_bytes()
