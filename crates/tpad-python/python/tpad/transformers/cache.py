"""The experts that a worker holds: at most a budget of bytes, the longest unused go first.

What is held is whatever the source gives: a lease on the daemon's memory, or a copy. The
cache knows neither; it counts bytes, keeps in place what is being computed with, and lets
go of the rest. It asks for all that is missing at once, gives what is there, and waits for
the rest one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from typing import Generic

from .coming import Coming, Entry, in_turns
from .holding import Counters, H, K, Source
from .shelf import Shelf

#: How long a block waits for others to be let go of.
PATIENCE = 60.0


class ExpertCache(Generic[K, H]):
    """Blocks by key within a budget."""

    def __init__(self, source: Source[K, H], budget: int) -> None:
        self.source = source
        #: What fetching one block takes, of late.
        self.fetch_seconds: float | None = None
        self._shelf: Shelf[K, H] = Shelf(source, budget)
        #: What was asked for and has not been taken in.
        self._coming: list[Coming[K, H]] = []
        self._changed = threading.Condition()
        self._landed = 0.0
        self._closed = False

    @property
    def budget(self) -> int:
        """What it may hold, in bytes."""
        return self._shelf.budget

    @property
    def bytes(self) -> int:
        """What it holds, and has reserved for what is on its way."""
        return self._shelf.bytes

    @property
    def counters(self) -> Counters:
        """What it has seen since it was made."""
        return self._shelf.counters

    def use(
        self, keys: Sequence[K], meanwhile: Callable[[], None] | None = None
    ) -> Generator[H, None, None]:
        """Each block, in order. One is in place until the next is asked for.

        ``meanwhile`` is called once what is missing of the first was asked for.
        """
        with closing(self.use_placed(keys, meanwhile, in_order=True)) as found:
            for _, held in found:
                yield held

    def use_placed(
        self, keys: Sequence[K], meanwhile: Callable[[], None] | None, *, in_order: bool
    ) -> Generator[tuple[int, H], None, None]:
        """As ``use``, each with its place among the keys; unless they are to come in order, what
        is there comes before what has to be waited for."""
        with self._changed:
            self.counters.uses += len(keys)
            self.counters.picked.update(keys)
        at = 0
        while at < len(keys):
            window = self._begin(keys[at:])
            try:
                if at == 0 and meanwhile is not None:
                    meanwhile()
                left = list(range(len(window)))
                while left:
                    there = (n for n in left if not in_order and window[n].is_there)
                    place = next(there, left[0])
                    left.remove(place)
                    yield at + place, self._arrived(window[place])
            finally:
                self._unpin(window)
            at += len(window)

    def guess(self, keys: Sequence[K], *, fetch: bool = True) -> None:
        """Brings blocks that are likely to be used next, as far as there is room; does not wait
        for them. Without ``fetch`` only where they can be brought near without being held."""
        with self._changed:
            absent = [key for key in dict.fromkeys(keys) if key not in self._shelf.entries]
            if self._closed or not absent:
                return
        told = False
        # Whatever keeps guesses from being told is told to whoever needs a block.
        with suppress(Exception):
            told = self.source.warm(absent)
        with self._changed:
            if not (told or fetch) or self._closed:
                return
            self.counters.guesses += len(absent)
            self.counters.guessed.update(absent)
            if told:
                return
            self._take_in()
            entries: list[Entry[K, H]] = []
            try:
                for key in absent:
                    entry = None if key in self._shelf.entries else self._shelf.reserve(key, guess=True)
                    if entry is None:
                        break
                    entries.append(entry)
                self._ask(entries, guess=True)
            except Exception:
                # No failure: whoever needs the block asks again and is told.
                pass
            finally:
                self._shelf.bury(entries)

    def close(self) -> None:
        """Lets go of everything; what is being computed with goes when that is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.clear()

    def clear(self) -> None:
        """Lets go of what nobody is computing with."""
        with self._changed:
            for coming in list(self._coming):
                if not coming.is_wanted and not coming.landing:
                    self._fail(coming, ())
            for entry in list(self._shelf.entries.values()):
                if not entry.pins and entry.coming is None:
                    self._shelf.drop(entry)

    def _begin(self, keys: Sequence[K]) -> list[Entry[K, H]]:
        """The first of the keys that fit together, one at least: each pinned, and asked for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with self._changed:
                if self._closed:
                    raise ValueError("the model was closed: its experts are let go of")
                self._take_in()
                window, missing = self._shelf.plan(keys)
                if window:
                    try:
                        self._ask(missing, guess=False)
                    except BaseException:
                        self._unpin(window)
                        raise
                    return window
                unwanted = next(
                    (it for it in self._coming if not it.is_wanted and not it.is_over), None
                )
                if unwanted is None:
                    if not self._changed.wait(deadline - time.monotonic()):
                        raise self._shelf.no_room(keys[0])
                    continue
            # What has the room can go when it is there.
            with suppress(Exception):
                self._land(unwanted)

    def _arrived(self, entry: Entry[K, H]) -> H:
        """A pinned block, waited for."""
        while True:
            with self._changed:
                if entry.held is not None:
                    return entry.held
                if entry.refused is not None:
                    raise entry.refused
                if entry.coming is None:
                    # Another thread's fetch of it failed, or a guess: it is asked for here.
                    self._ask([entry], guess=False)
                coming = entry.coming
            if coming is None:
                continue
            try:
                self._land(coming)
            except Exception:
                if not coming.guess:
                    raise

    def _ask(self, entries: Sequence[Entry[K, H]], *, guess: bool) -> None:
        """Asks the source for blocks that are reserved."""
        for turn in in_turns(entries):
            coming = Coming(turn, self.source.begin([entry.key for entry in turn]), guess)
            # First: what is on no list is never given up.
            self._coming.append(coming)
            for entry in turn:
                entry.coming = coming

    def _take_in(self) -> None:
        """Takes what came and nobody waits for: it may stay or go like what is held."""
        for coming in list(self._coming):
            if not coming.is_wanted and not coming.landing and coming.asked.done():
                # Whoever needs one that failed asks again and is told.
                with suppress(Exception):
                    self._land(coming)

    def _land(self, coming: Coming[K, H]) -> None:
        """Waits for what was asked for together, here or for the thread that does."""
        mine = False
        blocks: Sequence[H] = ()
        try:
            with self._changed:
                if coming.landing:
                    while not coming.is_over:
                        # An interrupt may keep the other thread from telling.
                        self._changed.wait(1.0)
                    return
                mine = True
                coming.landing = True
            # What came before somebody waited for it came nobody knows when.
            timed = not coming.guess and not coming.asked.done()
            blocks = coming.asked.wait()
            with self._changed:
                self._take(coming, blocks, timed)
        except BaseException:
            if mine:
                with self._changed:
                    self._fail(coming, blocks)
            raise
        finally:
            # Whatever interrupted even that, nobody is left waiting.
            if mine:
                for entry in coming.entries:
                    if entry.coming is coming:
                        entry.coming = None

    def _take(self, coming: Coming[K, H], blocks: Sequence[H], timed: bool) -> None:
        now = time.perf_counter()
        if timed:
            spent = (now - max(coming.begun, self._landed)) / len(blocks)
            before = spent if self.fetch_seconds is None else self.fetch_seconds
            self.fetch_seconds = 0.95 * before + 0.05 * spent
        self._landed = now
        alone = len(blocks) == 1
        for entry, held in zip(coming.entries, blocks, strict=True):
            more = held.nbytes - entry.nbytes
            if alone and self._shelf.bytes + more > self.budget:
                entry.refused = self._shelf.too_small(held.nbytes)
                raise entry.refused
            entry.held, entry.coming = held, None
            self._shelf.bytes += more
            entry.nbytes = held.nbytes
            self.counters.fetched.add(entry.key)
            self.counters.fetches += 1
            self.counters.fetched_bytes += entry.nbytes
        self.counters.peak_bytes = max(self.counters.peak_bytes, self.bytes)
        if coming in self._coming:
            self._coming.remove(coming)
        if self._closed:
            self.clear()
        self._changed.notify_all()

    def _fail(self, coming: Coming[K, H], blocks: Sequence[H]) -> None:
        """What was asked for does not come, or not all of it is taken. Those who need it find
        out by themselves."""
        if coming in self._coming:
            self._coming.remove(coming)
        coming.asked.cancel()
        for at, entry in enumerate(coming.entries):
            if entry.coming is coming:
                entry.coming, entry.guess = None, False
                if at < len(blocks):
                    blocks[at].release()
        self._shelf.bury(coming.entries)
        self._changed.notify_all()

    def _unpin(self, entries: Iterable[Entry[K, H]]) -> None:
        with self._changed:
            free = False
            for entry in entries:
                entry.pins -= 1
                free |= not entry.pins
                if entry.is_dead:
                    self._shelf.drop(entry)
            if self._closed:
                self.clear()
            if free:
                self._changed.notify_all()

