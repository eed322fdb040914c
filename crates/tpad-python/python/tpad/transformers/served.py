"""What a model with served experts has besides: `model.tpad`."""

from __future__ import annotations

from dataclasses import dataclass

from tpad import BlockKey, Client, Model, TierSet

from .cache import ExpertCache
from .guard import Guard
from .holding import Counters
from .routing import Routing
from .source import ClientSource, ServedExpert
from .store import ServedStore


@dataclass(frozen=True)
class Memory:
    """Bytes that a worker has of a model."""

    #: Dense tensors and routers, which are the worker's own.
    dense: int
    #: Experts that it holds now, in place or copied.
    experts: int
    #: The most that it held since it was loaded.
    experts_peak: int
    #: What it may hold.
    expert_budget: int


class Served:
    """The daemon's side of a model that runs on it."""

    def __init__(
        self,
        client: Client,
        model: Model,
        routing: Routing,
        source: ClientSource,
        cache: ExpertCache[BlockKey, ServedExpert],
        store: ServedStore,
    ) -> None:
        self.guard = Guard(client, model, routing.tiers)
        source.check = self.guard.check
        self.client = client
        self.source = source
        self.model = model
        self.cache = cache
        self.store = store
        self._routing = routing
        self.dense_bytes = 0

    @property
    def tiers(self) -> list[str]:
        """The tiers whose experts the model picks from."""
        return self._routing.tiers

    @property
    def revision(self) -> int:
        """The revision that the tiers were taken from."""
        return self._routing.revision

    @property
    def in_place(self) -> bool:
        """Whether experts are used in the daemon's memory, or copied first."""
        return self.source.in_place

    @property
    def counters(self) -> Counters:
        """What was picked, guessed, fetched and given up since the model was loaded."""
        return self.cache.counters

    def memory(self) -> Memory:
        """What the worker holds."""
        cache = self.cache
        return Memory(self.dense_bytes, cache.bytes, cache.counters.peak_bytes, cache.budget)

    def adopt(self, tier_set: TierSet = None) -> list[str]:
        """Routes over another tier set, or over what is now the default; returns its tiers.

        Only routers are fetched; dense weights and the experts that are held stay. Call it
        between two steps, not during one. ModelChanged if the weights are others meanwhile.
        """
        routing = self._routing.again(self.client, self.model.name, tier_set)
        self.guard.expect(routing.published, routing.tiers)
        self._routing = routing
        self.dense_bytes = self._routing.install(self.store)
        return self.tiers

    def close(self) -> None:
        """Gives every lease back. The model cannot be run afterwards."""
        self.guard.close()
        self.cache.close()
