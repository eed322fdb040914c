"""The experts that a worker holds: at most a budget of bytes, the longest unused go first.

What is held is whatever the source gives: a lease on the daemon's memory, or a copy. The
cache knows neither; it counts bytes, keeps in place what is being computed with, and lets
go of the rest.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic

from .errors import BudgetTooSmall
from .holding import Counters, H, K, Source

#: Guesses are fetched so many bytes at a time: enough to fill a bus.
AT_A_TIME = 32 << 20


class _Entry(Generic[K, H]):
    __slots__ = ("guess", "held", "key", "nbytes", "pins")

    def __init__(self, key: K, nbytes: int, guess: bool) -> None:
        self.key = key
        self.nbytes = nbytes
        self.held: H | None = None
        self.pins = 0
        self.guess = guess


class ExpertCache(Generic[K, H]):
    """Blocks by key within a budget."""

    def __init__(self, source: Source[K, H], budget: int) -> None:
        self.source = source
        self.budget = budget
        self.bytes = 0
        self.counters = Counters()
        #: What fetching one block takes, of late.
        self.fetch_seconds: float | None = None
        self._entries: OrderedDict[K, _Entry[K, H]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="tpad-prefetch")

    def use(self, keys: Sequence[K]) -> Generator[H, None, None]:
        """Each block, in order. One is in place until the next is asked for."""
        with self._changed:
            self.counters.uses += len(keys)
            self.counters.picked.update(keys)
        at = 0
        while at < len(keys):
            window = self._acquire(keys[at:])
            try:
                for entry in window:
                    if entry.held is not None:
                        yield entry.held
            finally:
                with self._changed:
                    for entry in window:
                        entry.pins -= 1
                    self._changed.notify_all()
            at += len(window)

    def guess(self, keys: Sequence[K]) -> None:
        """Brings blocks that are likely to be used next, as far as there is room; never waits."""
        with self._changed:
            absent = [key for key in keys if key not in self._entries]
            if self._closed or not absent:
                return
            self.counters.guesses += len(absent)
            self.counters.guessed.update(absent)
        if self.source.warm(absent):
            return
        with self._changed:
            entries = []
            for key in absent:
                entry = self._reserve(key, guess=True)
                if entry is None:
                    break
                entries.append(entry)
            if entries:
                self._ahead.submit(self._fill_ahead, entries)

    def close(self) -> None:
        """Lets go of everything."""
        with self._changed:
            self._closed = True
        self._ahead.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            for entry in list(self._entries.values()):
                if not entry.pins:
                    self._drop(entry)

    def clear(self) -> None:
        """Lets go of what nobody is computing with."""
        with self._changed:
            for entry in list(self._entries.values()):
                if entry.held is not None and not entry.pins:
                    self._drop(entry)

    def _acquire(self, keys: Sequence[K]) -> list[_Entry[K, H]]:
        """The first of the keys that fit together, one at least, each pinned."""
        while True:
            with self._changed:
                window, missing = self._plan(keys)
            if missing:
                self._fill(missing, window)
            with self._changed:
                while any(self._entries.get(e.key) is e and e.held is None for e in window):
                    self._changed.wait()
                if all(entry.held is not None for entry in window):
                    return window
                # Another thread's fetch failed: its blocks are absent again, ask for them here.
                for entry in window:
                    entry.pins -= 1

    def _plan(self, keys: Sequence[K]) -> tuple[list[_Entry[K, H]], list[_Entry[K, H]]]:
        """Pins what is there of the keys and reserves what is not, as far as that fits."""
        while True:
            there = {key: self._entries[key] for key in keys if key in self._entries}
            for entry in there.values():
                entry.pins += 1
            window: list[_Entry[K, H]] = []
            missing: list[_Entry[K, H]] = []
            for key in keys:
                known = there.get(key)
                if known is None:
                    new = bool(window) and self.source.nbytes(key) is None
                    known = None if new else self._reserve(key, guess=False)
                    if known is None:
                        break
                    known.pins += 1
                    missing.append(known)
                window.append(known)
            taken = set(map(id, window))
            for entry in there.values():
                if id(entry) not in taken:
                    entry.pins -= 1
            if window:
                break
            # What is further down the list may stand in the way of its first.
            first = self._reserve(keys[0], guess=False)
            if first is not None:
                first.pins += 1
                window = missing = [first]
                break
            if not self._changed.wait(timeout=60.0):
                raise BudgetTooSmall(
                    f"the expert budget of {self.budget} bytes has no room for one of "
                    f"{self.source.nbytes(keys[0])} bytes: {self.bytes} bytes are in use; raise "
                    "expert_budget"
                )
        fresh = set(map(id, missing))
        for entry in window:
            self._entries.move_to_end(entry.key)
            if id(entry) not in fresh:
                self.counters.hits += 1
                if entry.guess:
                    entry.guess = False
                    self.counters.guesses_used += 1
        return window, missing

    def _reserve(self, key: K, *, guess: bool) -> _Entry[K, H] | None:
        nbytes = self.source.nbytes(key)
        if nbytes is None:
            return None if guess else self._reserve_all(key)
        if nbytes > self.budget:
            raise self._too_small(nbytes)
        victims: list[_Entry[K, H]] = []
        room = self.budget - self.bytes
        if room < nbytes:
            for old in self._entries.values():
                if old.pins or old.held is None:
                    continue
                victims.append(old)
                room += old.nbytes
                if room >= nbytes:
                    break
            else:
                return None
        for old in victims:
            self._drop(old)
            self.counters.evictions += 1
        entry: _Entry[K, H] = _Entry(key, nbytes, guess)
        self._entries[key] = entry
        self.bytes += nbytes
        return entry

    def _reserve_all(self, key: K) -> _Entry[K, H] | None:
        """The whole budget, for a block of a size that nobody knows yet."""
        if any(old.pins or old.held is None for old in self._entries.values()):
            return None
        for old in list(self._entries.values()):
            self._drop(old)
            self.counters.evictions += 1
        entry: _Entry[K, H] = _Entry(key, self.budget, guess=False)
        self._entries[key] = entry
        self.bytes += self.budget
        return entry

    def _too_small(self, nbytes: int) -> BudgetTooSmall:
        return BudgetTooSmall(
            f"one expert takes {nbytes} bytes and expert_budget is {self.budget}: raise it to a "
            "few experts at least"
        )

    def _drop(self, entry: _Entry[K, H]) -> None:
        del self._entries[entry.key]
        self.bytes -= entry.nbytes
        if entry.guess:
            self.counters.guesses_wasted += 1
        if entry.held is not None:
            entry.held.release()
            entry.held = None

    def _fill(self, entries: list[_Entry[K, H]], pinned: list[_Entry[K, H]]) -> None:
        """Fetches into entries that are reserved; takes them back if that fails."""
        begun = time.perf_counter()
        try:
            blocks = self.source.fetch([entry.key for entry in entries])
        except BaseException:
            with self._changed:
                for entry in pinned:
                    entry.pins -= 1
                for entry in entries:
                    entry.guess = False
                    self._drop(entry)
                self._changed.notify_all()
            raise
        spent = (time.perf_counter() - begun) / len(entries)
        with self._changed:
            before = spent if self.fetch_seconds is None else self.fetch_seconds
            self.fetch_seconds = 0.95 * before + 0.05 * spent
            for entry, held in zip(entries, blocks, strict=True):
                entry.held = held
                self.bytes += held.nbytes - entry.nbytes
                entry.nbytes = held.nbytes
                self.counters.fetched.add(entry.key)
                self.counters.fetches += 1
                self.counters.fetched_bytes += entry.nbytes
            self.counters.peak_bytes = max(self.counters.peak_bytes, self.bytes)
            if self.bytes > self.budget and len(entries) == 1:
                for entry in pinned:
                    entry.pins -= 1
                self._drop(entries[0])
                raise self._too_small(entries[0].nbytes)
            self._changed.notify_all()

    def _fill_ahead(self, entries: list[_Entry[K, H]]) -> None:
        while entries:
            # In turns, so that a large one that is right does not wait for one that is wrong.
            count, size = 1, entries[0].nbytes
            while count < len(entries) and size < AT_A_TIME:
                size += entries[count].nbytes
                count += 1
            # One that fails is no failure: whoever needs the block asks again and is told.
            with suppress(Exception):
                self._fill(entries[:count], [])
            entries = entries[count:]
