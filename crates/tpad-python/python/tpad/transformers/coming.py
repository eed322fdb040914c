"""Blocks that a worker's cache asked for and has not got yet, and what it knows of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Generic

from .holding import Asked, H, K

#: Blocks are asked for so many bytes at a time: enough to fill a bus.
AT_A_TIME = 32 << 20


class Entry(Generic[K, H]):
    """A block of the cache: held, on its way, or neither after it failed to come."""

    __slots__ = ("coming", "guess", "held", "key", "nbytes", "pins", "refused")

    def __init__(self, key: K, nbytes: int, guess: bool) -> None:
        self.key = key
        self.nbytes = nbytes
        self.held: H | None = None
        self.coming: Coming[K, H] | None = None
        #: How many compute with it or wait for it.
        self.pins = 0
        #: It was fetched unasked, and not used yet.
        self.guess = guess
        #: Why it cannot be held, once that is known.
        self.refused: Exception | None = None

    @property
    def is_there(self) -> bool:
        """Whether nobody has to wait for it."""
        coming = self.coming
        return self.held is not None or (coming is not None and coming.asked.done())

    @property
    def is_dead(self) -> bool:
        """Whether nobody needs it and nothing brings it."""
        return not self.pins and self.held is None and self.coming is None


class Coming(Generic[K, H]):
    """Blocks that were asked for together."""

    __slots__ = ("asked", "begun", "entries", "guess", "landing")

    def __init__(self, entries: list[Entry[K, H]], asked: Asked[H], guess: bool) -> None:
        self.entries = entries
        self.asked = asked
        self.guess = guess
        self.begun = time.perf_counter()
        #: A thread waits for them.
        self.landing = False

    @property
    def is_over(self) -> bool:
        """Whether all came, or do not come any more."""
        return all(entry.coming is not self for entry in self.entries)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for one of them."""
        return any(entry.pins for entry in self.entries)


def in_turns(entries: Iterable[Entry[K, H]]) -> Iterator[list[Entry[K, H]]]:
    """Such as are asked for together: a large one does not wait for the next, a small one does
    not cost a call of its own."""
    turn: list[Entry[K, H]] = []
    size = 0
    for entry in entries:
        if turn and size >= AT_A_TIME:
            yield turn
            turn, size = [], 0
        turn.append(entry)
        size += entry.nbytes
    if turn:
        yield turn
