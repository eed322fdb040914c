"""The experts of a whole model, as its layers count them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

from tpad import BlockKey

from .cache import ExpertCache
from .source import ServedExpert
from .weights import ExpertWeights

#: A guess is worth its transfer when it is right this often; measured layer by layer with
#: the guesses themselves, whether they are fetched or not.
WORTH_GUESSING = 0.7
#: How fast old guesses are forgotten.
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
        #: How often guesses for a layer were right of late.
        self.right: dict[int, float] = {}

    def use(self, layer: int, experts: Sequence[int]) -> Generator[ExpertWeights, None, None]:
        """The experts' weights, in order; each in place until the next is asked for."""
        self._judge(layer, experts)
        keys = self.keys[layer]
        with closing(self.cache.use([keys[expert] for expert in experts])) as held:
            for expert in held:
                yield expert.weights()

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Experts that a layer is likely to use next."""
        self._guessed[layer] = frozenset(experts)
        if self.guesses and self.right.get(layer, 1.0) >= WORTH_GUESSING:
            keys = self.keys[layer]
            self.cache.guess([keys[expert] for expert in experts])

    def _judge(self, layer: int, experts: Sequence[int]) -> None:
        guessed = self._guessed.pop(layer, None)
        if guessed:
            right = len(guessed.intersection(experts)) / len(guessed)
            before = self.right.get(layer, 1.0)
            self.right[layer] = MEMORY * before + (1 - MEMORY) * right

    def replace(self, keys: Mapping[int, Sequence[BlockKey]]) -> None:
        """Other experts from here on; those that are held stay held."""
        self.keys = keys
        self._guessed.clear()
        self.right.clear()
