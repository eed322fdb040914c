"""The experts of a whole model, as its layers count them."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

from tpad import BlockKey

from .cache import ExpertCache
from .source import ServedExpert
from .weights import ExpertWeights

#: A layer, and experts that it is likely to use next.
Guess = tuple[int, Sequence[int]]

#: How fast what was measured is forgotten.
MEMORY = 0.95


class ServedStore:
    """Experts by layer and index from a cache of blocks by key."""

    def __init__(
        self,
        cache: ExpertCache[BlockKey, ServedExpert],
        keys: Mapping[int, Sequence[BlockKey]],
        *,
        guesses: bool,
    ) -> None:
        self.cache = cache
        self.keys = keys
        self.guesses = guesses
        self._guessed: dict[int, frozenset[int]] = {}
        #: How often guesses for a layer were right of late, fetched or not.
        self.right: dict[int, float] = {}
        #: Seconds from the last block that a layer waited for to what the next one picks.
        self.lead: dict[int, float] = {}
        self._guessed_at = 0.0

    def use(
        self,
        layer: int,
        experts: Sequence[int],
        likely: Guess | None = None,
        *,
        in_order: bool = True,
    ) -> Generator[tuple[int, ExpertWeights], None, None]:
        """The experts' places and weights, in order or what is there first; each in place until
        the next is asked for. What is likely to be used by another layer next is asked for
        behind them."""
        self._judge(layer, experts)
        keys = self.keys[layer]
        meanwhile = None if likely is None else lambda: self.guess(*likely)
        wanted = [keys[expert] for expert in experts]
        with closing(self.cache.use_placed(wanted, meanwhile, in_order=in_order)) as held:
            for place, expert in held:
                weights = expert.weights()
                # A guess gains what is between the layer's last block and the next one's wish.
                self._guessed_at = time.perf_counter()
                yield place, weights

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Experts that a layer is likely to use next."""
        self._guessed[layer] = frozenset(experts)
        self._guessed_at = time.perf_counter()
        if self.guesses:
            keys = self.keys[layer]
            # What is only told costs nothing that is needed.
            fetch = self.is_worth_it(layer)
            self.cache.guess([keys[expert] for expert in experts], fetch=fetch)

    def is_worth_it(self, layer: int) -> bool:
        """Whether fetching guesses gains time: a right one saves what it is ahead by, of a
        fetch's time at most, and a wrong one costs a fetch's time, for which what is needed waits.
        """
        right, lead = self.right.get(layer), self.lead.get(layer)
        fetch = self.cache.fetch_seconds
        if right is None or lead is None or fetch is None:
            return True
        return right * min(lead, fetch) > (1 - right) * fetch

    def _judge(self, layer: int, experts: Sequence[int]) -> None:
        guessed = self._guessed.pop(layer, None)
        if guessed:
            right = len(guessed.intersection(experts)) / len(guessed)
            lead = time.perf_counter() - self._guessed_at
            self.right[layer] = blend(self.right.get(layer), right)
            self.lead[layer] = blend(self.lead.get(layer), lead)

    def replace(self, keys: Mapping[int, Sequence[BlockKey]]) -> None:
        """Other experts from here on; those that are held stay held."""
        self.keys = keys
        self._guessed.clear()
        self.right.clear()
        self.lead.clear()


def blend(before: float | None, now: float) -> float:
    """A mean in which the past fades."""
    return now if before is None else MEMORY * before + (1 - MEMORY) * now
