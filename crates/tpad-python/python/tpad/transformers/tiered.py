"""Routing over several tiers: the reference router on each tier's own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tpad import Mask
from tpad.router import Router, TierLogits


class TieredRouter(nn.Module):
    """In the place of transformers' router where more than one tier is active.

    Returns logits, weights and indices as that does. An index of -1, for a token that has
    fewer choices than others, is no expert and has weight 0.
    """

    #: Where each group of each tier begins among the experts of all.
    starts: torch.Tensor

    def __init__(
        self,
        mask: Mask,
        scoring: Mapping[str, Any],
        tiers: Sequence[Sequence[Sequence[bool]]],
        parts: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:
        super().__init__()
        self.mask = mask
        self.router = Router(scoring)
        self.corrected = bool(scoring["correction_bias"])
        self.heads = nn.ModuleList(nn.Module() for _ in parts)
        for head, of in zip(self.heads, parts, strict=True):
            for name, tensor in of.items():
                head.register_buffer(name, tensor)
        starts, at, widest = [], 0, max(map(len, tiers))
        for groups in tiers:
            row = []
            for group in groups:
                row.append(at)
                at += len(group)
            starts.append(row + [0] * (widest - len(row)))
        device = parts[0]["weight"].device
        self.register_buffer("starts", torch.tensor(starts, device=device), persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of all active tiers, weights, and indices among their experts."""
        state = hidden_states.reshape(-1, hidden_states.shape[-1])
        tiers = [self._score(head, state) for head in self.heads]
        routed = self.router.route(self.mask, tiers)
        tier, group = routed.tier.clamp(min=0).long(), routed.group.clamp(min=0).long()
        index = self.starts[tier, group] + routed.expert
        index = torch.where(routed.tier < 0, -1, index)
        return torch.cat([of.experts for of in tiers], dim=1), routed.weight, index

    def _score(self, head: Any, state: torch.Tensor) -> TierLogits:
        state = state.to(head.weight.dtype)

        def scores(name: str) -> torch.Tensor | None:
            weight = getattr(head, name, None)
            return None if weight is None else functional.linear(state, weight.to(state.dtype))

        tier = scores("tier_head")
        return TierLogits(
            functional.linear(state, head.weight, getattr(head, "bias", None)),
            correction_bias=head.e_score_correction_bias if self.corrected else None,
            groups=scores("group_heads"),
            tier=None if tier is None else tier[:, 0],
        )
