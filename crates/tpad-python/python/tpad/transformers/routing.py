"""Routers of a model whose experts fall into tiers.

The experts of the active tiers are counted through: an index of a layer is a place in
`keys`. Where the only active tier is all that the checkpoint's router chooses from, its router
is transformers' own, and the model routes as the unmodified one does. Otherwise the reference
router chooses (`tpad.router`), from each tier's own logits: what is masked has no row, and so
no probability.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tpad import Block, BlockKey, Client, FailedPrecondition, Mask, TierMask, TierSet

from .dense import Assign, put
from .errors import UnsupportedWeights
from .families import Family
from .store import ServedStore
from .tiered import TieredRouter

#: What transformers' routers call the parts of a router block.
PARTS = {
    "weight": "weight",
    "bias": "bias",
    "e_score_correction_bias": "correction_bias",
}


@dataclass(frozen=True)
class ActiveTier:
    """One tier that may be picked from."""

    tier: str
    k_group: int
    k_expert: int
    #: For each group, which of its experts may be picked.
    groups: list[list[bool]]

    @property
    def experts(self) -> int:
        return sum(map(len, self.groups))


class Routing:
    """The routers and keys of a model for one tier set at one revision."""

    def __init__(
        self,
        client: Client,
        model_name: str,
        tier_set: TierSet,
        model: PreTrainedModel,
        family: Family,
        assign: Assign,
    ) -> None:
        self.family = family
        self.assign = assign
        self.torch_model = model
        # The routers as the configuration makes them, without weights.
        self.patterns = {
            layer: copy.deepcopy(getattr(block, family.router))
            for layer, block in family.blocks(model)
        }
        self._read(client, model_name, tier_set)

    def again(self, client: Client, model_name: str, tier_set: TierSet) -> Routing:
        """The same model's for another tier set, or at another revision."""
        other = copy.copy(self)
        other._read(client, model_name, tier_set)
        return other

    def _read(self, client: Client, model_name: str, tier_set: TierSet) -> None:
        # A swap may come between two answers; three in a row are no swaps.
        for _ in range(3):
            mask, published = client.mask(model_name, tier_set), client.model(model_name)
            if published.revision == mask.revision:
                break
        else:
            raise FailedPrecondition(
                f"model {model_name} went from revision {mask.revision} to {published.revision} "
                "while it was read, and before: load it again when it is settled"
            )
        self.published = published
        self.revision = mask.revision
        self.k_tier = mask.k_tier
        self.scoring = published.manifest["scoring"]
        self.active = [active(tier) for tier in mask.tiers]
        self.tiers = [tier.tier for tier in self.active]
        self.mask = mask
        self.keys = {layer: self._keys(mask, layer) for layer in self.patterns}
        self.routers = {}
        for layer in self.patterns:
            blocks = [client.router(model_name, tier, layer) for tier in self.tiers]
            self.routers[layer] = [own_parts(block) for block in blocks]

    def _keys(self, mask: Mask, layer: int) -> list[BlockKey]:
        """The experts of a layer in the order of their rows."""
        keys = []
        for tier in self.active:
            for group, experts in enumerate(tier.groups):
                keys += [BlockKey(tier.tier, group, e, layer) for e in range(len(experts))]
        if len(self.active) == 1:
            keys = [keys[row] for row in self._order(mask, layer)]
        return keys

    def _order(self, mask: Mask, layer: int) -> list[int]:
        """The rows of the only tier: as the checkpoint's router has them where it is all of that
        router, so that sums are formed as there, and as the mask has them otherwise."""
        sources, count = mask.tiers[0].sources(layer), self.active[0].experts
        if sources is None or count != self.patterns[layer].num_experts:
            return list(range(count))
        columns = [column for group in sources for _, column in group]
        return sorted(range(len(columns)), key=columns.__getitem__)

    def install(self, store: ServedStore) -> int:
        """Puts the routers into the model and the keys into the store.

        Returns the bytes of what is the worker's own: dense tensors and routers.
        """
        taken = 0
        for layer, block in self.family.blocks(self.torch_model):
            router = self._router(layer)
            taken += sum(t.nbytes for t in router.state_dict(keep_vars=True).values())
            setattr(block, self.family.router, router)
        self.routers = {}
        self.assign.settle()
        store.replace(self.keys)
        return self.assign.bytes + taken

    def predictor(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What a layer's router picks for given hidden states, now and after `adopt`."""
        block = dict(self.family.blocks(self.torch_model))[layer]

        def picks(hidden_states: torch.Tensor) -> torch.Tensor:
            index: torch.Tensor = getattr(block, self.family.router)(hidden_states)[2]
            return index

        return picks

    def _router(self, layer: int) -> nn.Module:
        name = f"model.layers.{layer}.mlp.{self.family.router}"
        parts = [
            {part: self.assign.own(f"{name}.{part}", tensor) for part, tensor in of.items()}
            for of in self.routers[layer]
        ]
        pattern = self.patterns[layer]
        if len(self.active) == 1 and (router := self._flat(pattern, parts[0], layer)):
            return router
        return TieredRouter(self.mask, self.scoring, [t.groups for t in self.active], parts)

    def _flat(
        self, pattern: Any, parts: Mapping[str, torch.Tensor], layer: int
    ) -> nn.Module | None:
        """transformers' own router, if the only tier is what that chooses from."""
        tier = self.active[0]
        groups = len(tier.groups)
        whole = tier.experts == pattern.num_experts and all(map(all, tier.groups))
        own_heads = "tier_head" in parts or "group_heads" in parts
        if not whole or own_heads or tier.k_expert != pattern.top_k:
            return None
        if hasattr(pattern, "topk_group"):
            sizes = {len(group) for group in tier.groups}
            same = groups == pattern.num_group and tier.k_group == pattern.topk_group
            if not same or len(sizes) > 1:
                return None
        elif tier.k_group < groups:
            return None
        router: nn.Module = copy.deepcopy(pattern)
        order = torch.tensor(self._order(self.mask, layer), device=self.assign.device)
        for name in router.state_dict():
            if name not in parts:
                raise UnsupportedWeights(
                    f"tier {tier.tier} has a router without {name} at layer {layer}; its model "
                    f"type {self.family.model_type} needs it"
                )
            put(router, name, parts[name][order])
        return router


def active(tier: TierMask) -> ActiveTier:
    """A tier of a mask."""
    allowed, groups, at = [byte == 1 for byte in tier.allowed()], [], 0
    for count in tier.experts:
        groups.append(allowed[at : at + count])
        at += count
    return ActiveTier(tier.tier, tier.k_group, tier.k_expert, groups)


def own_parts(block: Block) -> dict[str, torch.Tensor]:
    """A router block's tensors by transformers' names, copied out of the daemon's memory."""
    known = {part: name for name, part in PARTS.items()}
    parts = {}
    with block:
        for tensor in block.values():
            if tensor.role == "router":
                parts[known.get(tensor.part, tensor.part)] = tensor.torch().clone()
            else:
                parts[tensor.role] = tensor.torch().clone()
    return parts
