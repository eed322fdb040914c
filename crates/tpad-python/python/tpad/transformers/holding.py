"""What is held, where it comes from, and what is counted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar


class Held(Protocol):
    """A block that a source gave: readable until it is released."""

    @property
    def nbytes(self) -> int: ...

    def release(self) -> None: ...


K = TypeVar("K", bound=Hashable)
H = TypeVar("H", bound=Held)
Wanted = TypeVar("Wanted", bound=Hashable, contravariant=True)
Given = TypeVar("Given", bound=Held, covariant=True)


class Asked(Protocol[Given]):
    """Blocks that a source was asked for."""

    def done(self) -> bool:
        """Whether they came, or failed to."""

    def wait(self) -> Sequence[Given]:
        """The blocks, in the order asked; all or an exception."""

    def cancel(self) -> None:
        """Gives them up."""


class Source(Protocol[Wanted, Given]):
    """Where blocks come from."""

    def nbytes(self, key: Wanted) -> int | None:
        """What holding the block takes; None while no block like it was seen."""

    def begin(self, keys: Sequence[Wanted]) -> Asked[Given]:
        """Asks for blocks, and does not wait for them."""

    def warm(self, keys: Sequence[Wanted]) -> bool:
        """Has blocks brought near without holding them, in the place of those before. False: hold
        them to that end."""


@dataclass
class Counters:
    """What a cache has seen since it was made."""

    picked: set[Any] = field(default_factory=set)
    guessed: set[Any] = field(default_factory=set)
    fetched: set[Any] = field(default_factory=set)
    uses: int = 0
    hits: int = 0
    fetches: int = 0
    fetched_bytes: int = 0
    guesses: int = 0
    guesses_used: int = 0
    guesses_wasted: int = 0
    evictions: int = 0
    peak_bytes: int = 0
