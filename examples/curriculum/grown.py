"""A model with a tier more, in a form that gradients go through.

The routing is the reference router's for two active tiers of one group each
(docs/routing.md): the best of each tier by its own logits, weights by a softmax over all of
them, normalized over the chosen. Only the selection has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class TierShape:
    """How many experts the new tier has, and how many of them a token uses."""

    experts: int = 4
    per_token: int = 1


class NewTier(nn.Module):
    """A layer's new experts and the head that scores them."""

    def __init__(self, base: nn.Module, shape: TierShape, draw: torch.Generator) -> None:
        super().__init__()
        # They begin as the base's experts, a little apart, so that nothing is lost at first.
        source = [n % base.num_experts for n in range(shape.experts)]

        def near(stacked: torch.Tensor) -> nn.Parameter:
            copied = stacked.detach()[source].clone()
            noise = torch.randn(copied.shape, generator=draw) * copied.std() * 0.3
            return nn.Parameter(copied + noise)

        self.gate_up, self.down = near(base.gate_up_proj), near(base.down_proj)
        hidden = base.gate_up_proj.shape[-1]
        self.head = nn.Parameter(torch.randn(shape.experts, hidden, generator=draw) * 0.02)


class GrownBlock(nn.Module):
    """In the place of a sparse block: the base's experts and the new tier's together."""

    def __init__(self, block: nn.Module, shape: TierShape, draw: torch.Generator) -> None:
        super().__init__()
        self.base = block
        self.new = NewTier(block.experts, shape, draw)
        self.shape = shape
        #: Of the last step: how often each new expert was chosen, and its mean probability.
        self.chosen = self.likely = torch.zeros(shape.experts)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As transformers' block has it."""
        state = hidden_states.reshape(-1, hidden_states.shape[-1])
        old = functional.linear(state, self.base.gate.weight)
        new = functional.linear(state, self.new.head)
        best_old = old.topk(self.base.top_k, -1).indices
        best_new = new.topk(self.shape.per_token, -1).indices
        self.chosen = functional.one_hot(best_new, self.shape.experts).float().mean((0, 1))
        self.likely = new.softmax(-1).mean(0)
        index = torch.cat([best_old, best_new + old.shape[-1]], -1)
        weights = torch.cat([old, new], -1).softmax(-1).gather(-1, index)
        weights = weights / weights.sum(-1, keepdim=True)
        experts = self.base.experts
        gate_up = torch.cat([experts.gate_up_proj, self.new.gate_up])
        down = torch.cat([experts.down_proj, self.new.down])
        result = torch.zeros_like(state)
        for expert in index.unique().tolist():
            token, at = torch.where(index == expert)
            gate, up = functional.linear(state[token], gate_up[expert]).chunk(2, -1)
            made = functional.linear(experts.act_fn(gate) * up, down[expert])
            result = result.index_add(0, token, made * weights[token, at, None])
        return result.view_as(hidden_states)

    def imbalance(self) -> torch.Tensor:
        """1 when the new experts are used alike, up to their number when one is used alone."""
        return self.shape.experts * (self.chosen * self.likely).sum()


def grow(model: nn.Module, shape: TierShape, seed: int) -> list[GrownBlock]:
    """Gives every layer of a model a new tier and freezes all that was there."""
    model.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    blocks = []
    for layer in model.model.layers:
        layer.mlp = GrownBlock(layer.mlp, shape, draw)
        blocks.append(layer.mlp)
    return blocks


def tier_tensors(blocks: list[GrownBlock], tier: str) -> dict[str, torch.Tensor]:
    """The tier's tensors by the names that `tier add` takes (docs/tiers.md)."""
    tensors = {}
    for number, block in enumerate(blocks):
        at = f"tpad_tiers.{tier}.layers.{number}"
        for expert in range(block.shape.experts):
            of = f"{at}.groups.0.experts.{expert}"
            gate, up = block.new.gate_up.detach()[expert].chunk(2)
            tensors[f"{of}.gate_proj.weight"] = gate.contiguous()
            tensors[f"{of}.up_proj.weight"] = up.contiguous()
            tensors[f"{of}.down_proj.weight"] = block.new.down.detach()[expert].contiguous()
        tensors[f"{at}.router.weight"] = block.new.head.detach().contiguous()
    return tensors
