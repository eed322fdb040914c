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
Asked = TypeVar("Asked", bound=Hashable, contravariant=True)
Given = TypeVar("Given", bound=Held, covariant=True)


class Source(Protocol[Asked, Given]):
    """Where blocks come from."""

    def nbytes(self, key: Asked) -> int | None:
        """What holding the block takes; None while no block like it was seen."""

    def fetch(self, keys: Sequence[Asked]) -> Sequence[Given]:
        """The blocks, in the order asked; all or an exception."""

    def warm(self, keys: Sequence[Asked]) -> bool:
        """Has blocks brought near without holding them. False: hold them to that end."""


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
