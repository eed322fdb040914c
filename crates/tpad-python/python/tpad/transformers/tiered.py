"""Routing over several tiers: the reference router on each tier's own logits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tpad.router import Router


class TieredRouter(nn.Module):
    """In the place of transformers' router where more than one tier is active.

    Returns logits, weights and indices as it does; an index of -1 (a token whose tiers have
    fewer experts than others) is no expert and has weight 0.
    """

    def __init__(self, mask, scoring: dict, parts, active, pattern: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Module() for _ in parts)
        for head, of in zip(self.heads, parts, strict=True):
            for name, tensor in of.items():
                head.register_buffer(name, tensor)
        self.router = Router(scoring)
        self.mask = mask
