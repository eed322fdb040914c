"""What a worker holds of its experts, and what is on its way, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic

from .coming import Entry
from .errors import BudgetTooSmall
from .holding import Counters, H, K, Source


class Shelf(Generic[K, H]):
    """Blocks by key, the longest unused first. Whoever calls has the cache's lock."""

    def __init__(self, source: Source[K, H], budget: int) -> None:
        self.source = source
        self.budget = budget
        self.bytes = 0
        self.counters = Counters()
        self.entries: OrderedDict[K, Entry[K, H]] = OrderedDict()

    def plan(self, keys: Sequence[K]) -> tuple[list[Entry[K, H]], list[Entry[K, H]]]:
        """Pins what is there of the keys and reserves what is not, as far as that fits."""
        there: list[Entry[K, H]] = []
        window: list[Entry[K, H]] = []
        missing: list[Entry[K, H]] = []
        try:
            for key in dict.fromkeys(keys):
                if key in self.entries:
                    there.append(self.entries[key])
                    there[-1].pins += 1
            for key in keys:
                known = self.entries.get(key)
                if known is None:
                    new = bool(window) and self.source.nbytes(key) is None
                    known = None if new else self.reserve(key, guess=False)
                    if known is None:
                        break
                    missing.append(known)
                known.pins += 1
                window.append(known)
        except BaseException:
            self.undo(window)
            raise
        finally:
            self.undo(there)
        if not window:
            # What is further down the list may have stood in the way of its first.
            first = self.reserve(keys[0], guess=False)
            if first is None:
                return [], []
            first.pins += 1
            window = missing = [first]
        fresh = set(map(id, missing))
        for entry in window:
            self.entries.move_to_end(entry.key)
            if id(entry) not in fresh:
                self.counters.hits += 1
                if entry.guess:
                    entry.guess = False
                    self.counters.guesses_used += 1
        return window, missing

    def bury(self, entries: Iterable[Entry[K, H]]) -> None:
        """Drops those of the entries that nobody needs and nothing brings."""
        for entry in entries:
            if entry.is_dead:
                self.drop(entry)

    def undo(self, entries: Iterable[Entry[K, H]]) -> None:
        """Takes pins back that nobody has seen."""
        for entry in entries:
            entry.pins -= 1
            if entry.is_dead:
                self.drop(entry)

    def reserve(self, key: K, *, guess: bool) -> Entry[K, H] | None:
        """A place for a block, in that of what is unused longest; None while there is none."""
        nbytes = self.source.nbytes(key)
        if nbytes is None:
            return None if guess else self._reserve_all(key)
        if nbytes > self.budget:
            raise self.too_small(nbytes)
        victims: list[Entry[K, H]] = []
        room = self.budget - self.bytes
        if room < nbytes:
            for old in self.entries.values():
                if old.pins or old.held is None:
                    continue
                victims.append(old)
                room += old.nbytes
                if room >= nbytes:
                    break
            else:
                return None
        for old in victims:
            self.drop(old)
            self.counters.evictions += 1
        entry: Entry[K, H] = Entry(key, nbytes, guess)
        self.entries[key] = entry
        self.bytes += nbytes
        return entry

    def _reserve_all(self, key: K) -> Entry[K, H] | None:
        """The whole budget, for a block of a size that nobody knows yet."""
        if any(old.pins or old.held is None for old in self.entries.values()):
            return None
        for old in list(self.entries.values()):
            self.drop(old)
            self.counters.evictions += 1
        entry: Entry[K, H] = Entry(key, self.budget, guess=False)
        self.entries[key] = entry
        self.bytes += self.budget
        return entry

    def too_small(self, nbytes: int) -> BudgetTooSmall:
        """The budget will never hold one block of this size."""
        return BudgetTooSmall(
            f"one expert takes {nbytes} bytes and expert_budget is {self.budget}: raise it to a "
            "few experts at least"
        )

    def no_room(self, key: K) -> BudgetTooSmall:
        """All of the budget stays in use."""
        return BudgetTooSmall(
            f"the expert budget of {self.budget} bytes has no room for one of "
            f"{self.source.nbytes(key)} bytes: {self.bytes} bytes are in use; raise expert_budget"
        )

    def drop(self, entry: Entry[K, H]) -> None:
        """Lets go of a block."""
        if self.entries.get(entry.key) is not entry:
            return
        del self.entries[entry.key]
        self.bytes -= entry.nbytes
        if entry.guess:
            self.counters.guesses_wasted += 1
        if entry.held is not None:
            entry.held.release()
            entry.held = None
