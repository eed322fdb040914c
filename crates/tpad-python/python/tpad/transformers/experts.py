"""The experts of one layer, fetched as they are picked.

`ServedExperts` stands where transformers has a module with all experts of a layer stacked.
It takes the same arguments and computes each expert as transformers' eager implementation
does: the same operations in the same order, experts ascending. Where a checkpoint has gate
and up apart they are two products instead of one of both; each number is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from .weights import ExpertWeights


class Store(Protocol):
    """The experts of all layers, by layer and index."""

    def use(
        self,
        layer: int,
        experts: Sequence[int],
        likely: tuple[int, Sequence[int]] | None = None,
        *,
        in_order: bool = True,
    ) -> Generator[tuple[int, ExpertWeights], None, None]:
        """Their weights with their places among ``experts``: in order, or what is there first.
        ``likely`` is a layer, and what it is likely to use next."""


class ServedExperts(nn.Module):
    """A layer's experts, from a store."""

    #: transformers' module: its functions are used, its weights do not exist.
    original: Any
    #: The next layer with experts, and what its router picks for hidden states.
    ahead: tuple[int, Callable[[torch.Tensor], torch.Tensor]] | None

    def __init__(
        self,
        original: nn.Module,
        store: Store,
        layer: int,
        *,
        transposed: bool,
        ahead: tuple[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        # So it is no submodule.
        object.__setattr__(self, "original", original)
        object.__setattr__(self, "ahead", ahead)
        self.store = store
        self.layer = layer
        self.transposed = transposed

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """What transformers' experts return for the same routing."""
        picked, likely = self._look(hidden_states, top_k_index)
        hit = sorted({expert for row in picked for expert in row if expert >= 0})
        guess = (self.ahead[0], likely) if likely and self.ahead is not None else None
        if len(picked) == 1:
            return self._one(hidden_states, top_k_weights, picked[0], hit, guess)
        result = torch.zeros_like(hidden_states)
        places = _places(picked, hit, hidden_states.device)
        used = 0
        with closing(self.store.use(self.layer, hit, guess)) as blocks:
            for n, weights in blocks:
                at, token = places[hit[n]]
                state, weight = hidden_states[token], top_k_weights[token, at, None]
                part = self._expert(state, weights) * weight
                result.index_add_(0, token, part.to(result.dtype))
                used += 1
        return self._whole(result, used, hit)

    def _one(
        self,
        state: torch.Tensor,
        top_k_weights: torch.Tensor,
        picked: list[int],
        hit: list[int],
        guess: tuple[int, Sequence[int]] | None,
    ) -> torch.Tensor:
        """For one token: with what is there first, and added in the order of the experts."""
        result = torch.zeros_like(state)
        parts: dict[int, torch.Tensor] = {}
        added = 0
        with closing(self.store.use(self.layer, hit, guess, in_order=False)) as blocks:
            for n, weights in blocks:
                weight = top_k_weights[:, picked.index(hit[n]), None]
                parts[n] = (self._expert(state, weights) * weight).to(result.dtype)
                while added in parts:
                    result += parts.pop(added)
                    added += 1
        return self._whole(result, added, hit)

    def _whole(self, result: torch.Tensor, used: int, hit: list[int]) -> torch.Tensor:
        if used != len(hit):
            raise RuntimeError(
                f"layer {self.layer}: of {len(hit)} experts that were picked the store gave {used}"
            )
        return result

    def _look(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor
    ) -> tuple[list[list[int]], list[int] | None]:
        """What was picked here and what the next layer's router would pick now."""
        # Guesses are for decoding: a prompt's tokens together pick most experts anyway.
        if self.ahead is None or hidden_states.shape[0] > 4:
            return top_k_index.tolist(), None
        with torch.no_grad():
            likely = self.ahead[1](hidden_states)
        # One transfer for both, so that the device is waited for once.
        width = top_k_index.shape[1]
        both = torch.cat([top_k_index, likely.to(top_k_index.dtype)], dim=1).tolist()
        guesses = dict.fromkeys(e for row in both for e in row[width:] if e >= 0)
        return [row[:width] for row in both], list(guesses)

    def _expert(self, state: torch.Tensor, weights: ExpertWeights) -> torch.Tensor:
        if self.transposed:
            gate_up = state @ weights.of("gate_up") + weights.of("gate_up_bias")
            gated = self.original._apply_gate(gate_up)
            made: torch.Tensor = gated @ weights.down + weights.of("down_bias")
            return made
        if weights.gate_up is not None:
            gate, up = functional.linear(state, weights.gate_up).chunk(2, dim=-1)
        else:
            gate = functional.linear(state, weights.of("gate"))
            up = functional.linear(state, weights.of("up"))
        return functional.linear(self.original.act_fn(gate) * up, weights.down)


def _places(
    picked: list[list[int]], hit: list[int], device: torch.device
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """For each expert its places in the routing: position and token, by position first."""
    index = torch.tensor(picked).T
    places = {}
    for expert in hit:
        at, token = torch.where(index == expert)
        places[expert] = at.to(device), token.to(device)
    return places
