"""A source of blocks for the worker's cache, which counts what is out and can be held up."""

from __future__ import annotations

import threading

from tpad.transformers.cache import ExpertCache


class Piece:
    """A block that says when it was released."""

    def __init__(self, source: Pieces, key: int) -> None:
        self.source, self.key, self.nbytes = source, key, source.sizes(key)
        source.out += self.nbytes
        source.most = max(source.most, source.out)
        self.released = False

    def release(self) -> None:
        assert not self.released, f"{self.key} was released twice"
        self.released = True
        self.source.out -= self.nbytes


class Wanted:
    """Blocks that a source was asked for: they come when its gate is open."""

    def __init__(self, source: Pieces, keys) -> None:
        self.source, self.keys = source, list(keys)
        self.failing = bool(source.failing.intersection(keys))
        if source.once:
            source.failing = set()

    def done(self) -> bool:
        return self.source.gate.is_set()

    def wait(self) -> list[Piece]:
        assert self.source.gate.wait(10)
        if self.source.interrupt is not None:
            error, self.source.interrupt = self.source.interrupt, None
            raise error
        if self.failing:
            raise OSError(f"{self.keys} cannot be had")
        self.source.known = True
        return [Piece(self.source, key) for key in self.keys]

    def cancel(self) -> None:
        self.source.cancelled.append(self.keys)


class Pieces:
    """A source that counts what is out."""

    def __init__(self, sizes=lambda key: 10, known: bool = True) -> None:
        self.sizes, self.known = sizes, known
        self.out = self.most = 0
        self.asked: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.interrupt: BaseException | None = None
        self.failing: set[int] = set()
        self.once = False
        #: Whether somebody hears of guesses.
        self.hears = False
        self.told: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def nbytes(self, key: int) -> int | None:
        return self.sizes(key) if self.known else None

    def begin(self, keys) -> Wanted:
        self.asked.append(list(keys))
        return Wanted(self, keys)

    def warm(self, keys) -> bool:
        if self.hears:
            self.told.append(list(keys))
        return self.hears


def used(cache: ExpertCache, *keys: int) -> list[int]:
    """Uses blocks; their keys as they came."""
    came = []
    for piece in cache.use(keys):
        assert not piece.released
        came.append(piece.key)
    return came
