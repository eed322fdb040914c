"""The reference router: a token's logits become experts and weights, through a mask.

The formulas and the order of operations are those of docs/routing.md. For NumPy it is the Rust
client's own router. For PyTorch it is written in PyTorch, runs where the logits are, and gives the
same experts and the same bits of the weights (but see :class:`Router` about ``sqrt_softplus``).

    router = tpad.router.Router(model)
    mask = client.mask(model)
    routed = router.route(mask, [logits])        # [tokens, experts], one for each active tier
    keys = routed.keys(mask, layer=5)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _tpad
from ._errors import InvalidArgument
from ._keys import BlockKey
from ._model import Model
from ._tpad import Mask

if TYPE_CHECKING:
    import torch

__all__ = ["Routed", "Router", "TierLogits", "gather"]

Array = Any
"""A NumPy array or a ``torch.Tensor``; all of one call are of one kind."""


@dataclass(frozen=True)
class TierLogits:
    """One active tier's inputs for some tokens at one layer."""

    experts: Array
    """``[tokens, experts]``: one for each expert of the tier, masked ones included, in order of
    groups and experts; a router's own bias is part of them."""
    correction_bias: Array | None = None
    """``[experts]``: added to scores for selection only; there exactly when the scoring has it."""
    groups: Array | None = None
    """``[tokens, groups]``, where the tier brings a head that scores its groups."""
    tier: Array | None = None
    """``[tokens]``, where the tier brings a head that scores itself."""


@dataclass(frozen=True)
class Routed:
    """What some tokens use, the best first: arrays of the kind that the logits were, ``[tokens, k]``
    but for ``count``. Where a token has fewer choices than the row is long, the rest of its row is
    -1, with weights of 0."""

    tier: Array
    """Places in ``mask.tiers``."""
    group: Array
    expert: Array
    weight: Array
    """float32: what the experts' outputs are multiplied by."""
    count: Array
    """``[tokens]``: how many choices a token has."""

    def keys(self, mask: Mask, layer: int) -> list[list[BlockKey]]:
        """What to ask the daemon for: for each token the blocks that it uses."""
        ids = [tier.tier for tier in mask.tiers]
        columns = [_host(column).tolist() for column in (self.tier, self.group, self.expert)]
        counts = _host(self.count).tolist()
        return [
            [BlockKey(ids[t], g, e, layer) for t, g, e in list(zip(*row, strict=True))[:count]]
            for *row, count in zip(*columns, counts, strict=True)
        ]

    def distinct(self, mask: Mask, layer: int) -> list[BlockKey]:
        """The blocks that any of the tokens uses, once each, in the order of the mask."""
        return sorted(
            {key for row in self.keys(mask, layer) for key in row}, key=_order_of(mask)
        )


class Router:
    """A router for one model's scoring. It holds no weights, and asks no daemon.

    Selections and weights are bit for bit those of the Rust client. In PyTorch the exponential is
    computed as glibc's ``expf`` is, in doubles, on whichever device; for ``sqrt_softplus`` (DeepSeek
    V4) the logarithm is correctly rounded, which older C libraries' is not: weights may differ by 4
    units in the last place there.

    Args:
        scoring: a model of a client, or the ``scoring`` of its manifest.
        exact: for PyTorch: sums in the documented order, step by step. Without it, PyTorch's own
            softmax and sums are used, in fewer steps: weights differ in their last bits, and
            selections only where scores are that close.
    """

    def __init__(self, scoring: Model | Mapping[str, Any], *, exact: bool = True) -> None:
        given = scoring.manifest.get("scoring", {}) if isinstance(scoring, Model) else scoring
        text = json.dumps(dict(given))
        self._native = _tpad.Router(text)
        self.scoring: dict[str, Any] = json.loads(_tpad.Router.complete(text))
        """The scoring, with its defaults."""
        self.exact = exact
        self._layouts: dict[tuple[int, int | None], Any] = {}

    def route(
        self,
        mask: Mask,
        tiers: Sequence[TierLogits | Array],
        *,
        resident_at: int | None = None,
        seed: int | Sequence[int] | None = None,
    ) -> Routed:
        """Routes tokens at one layer through what the mask allows.

        Args:
            mask: as ``client.mask`` answers.
            tiers: the inputs of each active tier, in the mask's order; an array alone is the
                logits. bf16 and other types are converted to f32.
            resident_at: routes through what is allowed and resident at this layer; the mask must
                have been asked for with ``resident``.
            seed: which of equal experts is taken: the one with the least hash of this seed, of one
                seed for each token; without one the first in the mask's order.

        Raises:
            FailedPrecondition: nothing is allowed (reason ``NOTHING_ALLOWED``).
            InvalidArgument: a k of 0, inputs that do not fit the mask, or one that is read is not
                finite.
        """
        inputs = [
            tier if isinstance(tier, TierLogits) else TierLogits(tier) for tier in tiers
        ]
        if len(inputs) != len(mask.tiers):
            raise InvalidArgument(
                f"the mask has {len(mask.tiers)} tiers, {len(inputs)} were given", reason="INPUTS"
            )
        if any(_is_torch(tier.experts) for tier in inputs):
            from ._router_torch import route

            return route(self, mask, inputs, resident_at, seed)
        return self._route_numpy(mask, inputs, resident_at, seed)

    def _route_numpy(
        self,
        mask: Mask,
        inputs: list[TierLogits],
        resident_at: int | None,
        seed: int | Sequence[int] | None,
    ) -> Routed:
        tokens = len(inputs[0].experts)
        given = []
        for tier in inputs:
            experts = _f32(tier.experts, "logits", (tokens, None))
            bias = _f32_or_none(tier.correction_bias, "a correction bias", (None,))
            groups = _f32_or_none(tier.groups, "group logits", (tokens, None))
            head = _f32_or_none(tier.tier, "tier logits", (tokens,))
            given.append((experts, bias, groups, head))
        seeds = _seeds(seed, tokens)
        width, columns = self._native.route(mask, resident_at, tokens, given, seeds)
        places, group, expert, weight, count = columns
        shape = (tokens, width)
        return Routed(
            np.frombuffer(places, np.int32).reshape(shape),
            np.frombuffer(group, np.int32).reshape(shape),
            np.frombuffer(expert, np.int32).reshape(shape),
            np.frombuffer(weight, np.float32).reshape(shape),
            np.frombuffer(count, np.int32),
        )


def gather(mask: Mask, layer: int, router: Array) -> list[TierLogits]:
    """Each active tier's logits, taken from those of the checkpoint's whole router: columns of
    ``[tokens, columns]``. The mask must have come with sources.

    Raises:
        InvalidArgument: the mask does not say where a tier's experts came from at the layer, or
            the router is too short.
    """
    tiers = []
    for tier in mask.tiers:
        sources = tier.sources(layer)
        if sources is None:
            raise InvalidArgument(
                f"the mask has no sources of tier {tier.tier} at layer {layer}: ask for one with "
                "sources",
                reason="INPUTS",
            )
        columns = [column for group in sources for _, column in group]
        if columns and max(columns) >= router.shape[-1]:
            raise InvalidArgument(
                f"tier {tier.tier} at layer {layer} is scored by column {max(columns)}, the router "
                f"has {router.shape[-1]}",
                reason="INPUTS",
            )
        tiers.append(TierLogits(router[..., columns]))
    return tiers


def _is_torch(array: object) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"


def _host(array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    if _is_torch(array):
        tensor: torch.Tensor = array
        return tensor.cpu().numpy()
    return np.asarray(array)


def _f32(
    array: Array, what: str, shape: tuple[int | None, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.ascontiguousarray(array, dtype=np.float32)
    fits = values.ndim == len(shape) and all(
        wanted is None or wanted == found for wanted, found in zip(shape, values.shape, strict=True)
    )
    if not fits:
        expected = ["tokens" if n == shape[0] and n is not None else "..." for n in shape]
        raise InvalidArgument(
            f"{what} of shape {values.shape}: [{', '.join(expected)}] is expected, with as many "
            "tokens as the first tier's logits",
            reason="INPUTS",
        )
    return values


def _f32_or_none(
    array: Array | None, what: str, shape: tuple[int | None, ...]
) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return None if array is None else _f32(array, what, shape)


def _seeds(seed: int | Sequence[int] | None, tokens: int) -> list[int] | None:
    if seed is None:
        return None
    seeds = [seed] * tokens if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != tokens:
        raise InvalidArgument(f"{len(seeds)} seeds for {tokens} tokens", reason="INPUTS")
    return seeds


def _order_of(mask: Mask) -> Any:
    places = {tier.tier: place for place, tier in enumerate(mask.tiers)}
    return lambda key: (places[key.tier], key.group, key.expert)
