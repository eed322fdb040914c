"""The router in PyTorch: docs/routing.md, for many tokens at once and where the logits are.

Every step is one rounded operation of f32 (or of f64 where the document says so), which CPUs and
GPUs do alike; sums and exponentials, where libraries differ, are spelled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import torch

from ._errors import FailedPrecondition, InvalidArgument
from ._tpad import Mask
from .router import Routed, Router, TierLogits, _seeds

Tensor = torch.Tensor

_LANES = 8
_STRIDE = 4
_NONE = 0xFFFFFFFF


@dataclass
class _Tier:
    """A tier with allowed experts: a run of the candidates, cut into groups."""

    place: int
    k_group: int
    k_expert: int
    begin: int
    end: int
    groups: list[tuple[int, int, int]]
    """Number, and the run of candidates."""


@dataclass
class _Layout:
    """What a mask allows, at a layer if what is resident counts."""

    mask: Mask
    """Kept, so that nothing else gets its id."""
    sizes: list[tuple[int, int]]
    """Experts and groups of each active tier."""
    tiers: list[_Tier]
    names: list[tuple[int, int, int]]
    """Tier's place, group and expert of each candidate."""
    columns: list[int]
    """Where each candidate is in the tiers' logits, one after the other."""
    on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Columns and names, by device."""

    @classmethod
    def of(cls, mask: Mask, resident_at: int | None) -> _Layout:
        if mask.k_tier == 0:
            raise InvalidArgument("k_tier is 0", reason="ZERO_K")
        near = None if resident_at is None else _resident(mask, resident_at)
        layout = cls(mask, [], [], [], [])
        before = 0
        for place, tier in enumerate(mask.tiers):
            for what, k in (("k_group", tier.k_group), ("k_expert", tier.k_expert)):
                if k == 0:
                    raise InvalidArgument(f"{what} of tier {tier.tier} is 0", reason="ZERO_K")
            allowed, begin, groups, at = tier.allowed(), len(layout.names), [], 0
            for group, experts in enumerate(tier.experts):
                first = len(layout.names)
                for expert in range(experts):
                    if allowed[at] and (near is None or near[place][group][expert]):
                        layout.names.append((place, group, expert))
                        layout.columns.append(before + at)
                    at += 1
                if len(layout.names) > first:
                    groups.append((group, first, len(layout.names)))
            if groups:
                end = len(layout.names)
                layout.tiers.append(
                    _Tier(place, tier.k_group, tier.k_expert, begin, end, groups)
                )
            layout.sizes.append((at, len(tier.experts)))
            before += at
        if not layout.names:
            raise FailedPrecondition("the mask allows no expert", reason="NOTHING_ALLOWED")
        return layout

    def at(self, device: torch.device) -> tuple[Tensor, Tensor]:
        known = self.on.get(device)
        if known is None:
            known = (
                torch.tensor(self.columns, device=device),
                torch.tensor(self.names, dtype=torch.int32, device=device),
            )
            self.on[device] = known
        return known


def _resident(mask: Mask, layer: int) -> list[list[list[bool]]]:
    level = mask.resident_level
    if level is None or layer not in mask.resident_layers:
        raise FailedPrecondition(
            f"the mask does not tell what is resident at layer {layer}: ask for it",
            reason="NOT_RESIDENT",
        )
    classes = ["hbm", "dram", "nvme", "object_store"]
    near = set(classes[: classes.index(level) + 1])
    return [[[cost in near for cost in group] for group in tier] for tier in mask.costs(layer)]


def route(
    router: Router,
    mask: Mask,
    inputs: list[TierLogits],
    resident_at: int | None,
    seed: int | Sequence[int] | None,
) -> Routed:
    """Backs ``Router.route``."""
    layout = router._layouts.get((id(mask), resident_at))
    if layout is None:
        if len(router._layouts) >= 256:
            router._layouts.clear()
        layout = router._layouts[(id(mask), resident_at)] = _Layout.of(mask, resident_at)
    scoring = router.scoring
    logits, bias = _collect(layout, inputs, bool(scoring["correction_bias"]))
    tokens, device = logits.shape[0], logits.device
    seeds = _seeds(seed, tokens)
    values = _values(scoring["function"], logits, router.exact)
    scores = values if bias is None else values + bias
    # An order in which what comes first wins a tie, then by logit, then by score.
    ranks = None if seeds is None else _ranks(mask, layout.names, seeds, device)
    kept = _best_tiers(layout, inputs, mask, logits, seeds)
    chosen, valid, widths = [], [], []
    for tier, tier_kept in zip(layout.tiers, kept, strict=True):
        allowed = _best_groups(tier, inputs, mask, scoring["groups"], logits, scores, seeds)
        if tier_kept is not None:
            column = tier_kept[:, None].expand(tokens, tier.end - tier.begin)
            allowed = column if allowed is None else allowed & column
        everything = torch.arange(tier.begin, tier.end, device=device).expand(tokens, -1)
        ordered, there = _sorted(everything, allowed, scores, logits, ranks)
        width = min(tier.k_expert, tier.end - tier.begin)
        chosen.append(ordered[:, :width])
        valid.append(there[:, :width])
        widths.append(width)
    width = sum(sorted(widths, reverse=True)[: mask.k_tier])
    picked, there = _sorted(
        torch.cat(chosen, 1), torch.cat(valid, 1), scores, logits, ranks
    )
    picked, there = picked[:, :width], there[:, :width]
    weights = _weights(scoring, values, logits, picked, there, router.exact)
    names = layout.at(device)[1][picked]
    names = torch.where(there[..., None], names, -1)
    return Routed(
        names[..., 0], names[..., 1], names[..., 2], weights, there.sum(1, dtype=torch.int32)
    )


def _collect(
    layout: _Layout, inputs: list[TierLogits], corrected: bool
) -> tuple[Tensor, Tensor | None]:
    """The logits of what is allowed, and its correction biases: checked."""
    tiers = layout.mask.tiers
    tokens = inputs[0].experts.shape[0]
    for tier, given, (experts, groups) in zip(tiers, inputs, layout.sizes, strict=True):
        if corrected != (given.correction_bias is not None):
            how = "has no correction bias, which" if corrected else "has a correction bias, but"
            which = "adds" if corrected else "does not know"
            raise InvalidArgument(
                f"tier {tier.tier} {how} the manifest's scoring {which}", reason="INPUTS"
            )
        for what, found, wanted in (
            ("logits", given.experts, (tokens, experts)),
            ("correction biases", given.correction_bias, (experts,)),
            ("group logits", given.groups, (tokens, groups)),
            ("tier logits", given.tier, (tokens,)),
        ):
            if found is not None and tuple(found.shape) != wanted:
                raise InvalidArgument(
                    f"tier {tier.tier} has {what} of shape {tuple(found.shape)}, {wanted} is "
                    "expected",
                    reason="INPUTS",
                )
    columns = layout.at(inputs[0].experts.device)[0]
    logits = torch.cat([given.experts.float() for given in inputs], 1)[:, columns]
    read = [logits]
    bias = None
    if corrected:
        biases = [given.correction_bias for given in inputs]
        bias = torch.cat([one.float() for one in biases if one is not None])[columns]
        read.append(bias)
    for layout_tier in layout.tiers:
        given = inputs[layout_tier.place]
        if given.groups is not None:
            read.append(given.groups.float()[:, [group for group, _, _ in layout_tier.groups]])
        if given.tier is not None:
            read.append(given.tier.float())
    if not bool(torch.stack([torch.isfinite(part).all() for part in read]).all()):
        raise InvalidArgument(
            "a logit, bias or head of something that is allowed is not finite", reason="NOT_FINITE"
        )
    return logits, bias


def _values(function: str, logits: Tensor, exact: bool) -> Tensor:
    if function == "softmax":
        return _softmax(logits, None, exact)
    if function == "softmax_after_top_k":
        return logits
    if function == "sigmoid":
        return 1.0 / (1.0 + expf(-logits))
    softplus = torch.where(
        logits > 20.0, logits, torch.log1p(expf(logits.clamp(max=20.0)).double()).float()
    )
    return softplus.double().sqrt().float()


def _softmax(logits: Tensor, there: Tensor | None, exact: bool) -> Tensor:
    """exp(x - max) times the reciprocal of their sum, in eight lanes."""
    if there is not None:
        logits = torch.where(there, logits, -torch.inf)
    if not exact:
        return torch.softmax(logits, 1)
    most = logits.max(1, keepdim=True).values
    values = expf(logits - most)
    sums = torch.zeros((values.shape[0], _LANES), dtype=values.dtype, device=values.device)
    for begin in range(0, values.shape[1], _LANES):
        lanes = values[:, begin : begin + _LANES]
        sums[:, : lanes.shape[1]] += lanes
    return values * (1.0 / _in_order(sums))[:, None]


def _in_order(values: Tensor) -> Tensor:
    """The sum of each row, from the first to the last."""
    total = torch.zeros(values.shape[:1], dtype=values.dtype, device=values.device)
    for column in values.unbind(1):
        total = total + column
    return total


def _four_sums(parts: list[Tensor]) -> Tensor:
    whole = len(parts) // _STRIDE * _STRIDE
    total = torch.zeros_like(parts[0])
    for first in range(_STRIDE):
        mine = parts[first:whole:_STRIDE] + (parts[whole:] if first == 0 else [])
        part = torch.zeros_like(parts[0])
        for value in mine:
            part = part + value
        total = total + part
    return total


def _weight_sum(weights: Tensor) -> Tensor:
    """The sum that weights are divided by, of whole rows."""
    count = weights.shape[1]
    if count < _LANES:
        return _four_sums(list(weights.unbind(1)))
    whole = count // _LANES * _LANES
    tail = _in_order(weights[:, whole:])
    lanes = _four_sums(list(weights[:, :whole].reshape(weights.shape[0], -1, _LANES).unbind(1)))
    total = tail
    for lane in lanes.unbind(1):
        total = total + lane
    return total


def _weights(
    scoring: dict[str, Any],
    values: Tensor,
    logits: Tensor,
    picked: Tensor,
    there: Tensor,
    exact: bool,
) -> Tensor:
    function = scoring["function"]
    chosen_logits = logits.gather(1, picked)
    if function == "softmax_after_top_k":
        weights = _softmax(chosen_logits, there, exact)
    else:
        weights = values.gather(1, picked)
    weights = torch.where(there, weights, 0.0)
    if scoring["normalize"]:
        if exact:
            counts = there.sum(1)
            total = torch.zeros(weights.shape[:1], dtype=weights.dtype, device=weights.device)
            # The order of a sum depends on how many there are.
            for count in _counts(there, counts):
                total = torch.where(counts == count, _weight_sum(weights[:, :count]), total)
        else:
            total = weights.sum(1)
        if function in ("sigmoid", "sqrt_softplus"):
            total = total + 1e-20
        divided = weights / total[:, None]
        if function == "softmax":
            without = _softmax(chosen_logits, there, exact)
            divided = torch.where((total == 0.0)[:, None], without, divided)
        weights = divided
    weights = weights * torch.tensor(scoring["scale"], dtype=torch.float32, device=weights.device)
    return torch.where(there, weights, 0.0)


def _counts(there: Tensor, counts: Tensor) -> list[int]:
    """The numbers of choices that tokens have. Asks the device."""
    return [int(count) for count in torch.unique(counts).tolist()] if there.shape[0] else []


def _best_tiers(
    layout: _Layout,
    inputs: list[TierLogits],
    mask: Mask,
    logits: Tensor,
    seeds: list[int] | None,
) -> list[Tensor | None]:
    """Which tokens keep each tier; None for all."""
    if len(layout.tiers) <= mask.k_tier:
        return [None] * len(layout.tiers)
    scores = []
    for tier in layout.tiers:
        given = inputs[tier.place]
        if given.tier is not None:
            scores.append(given.tier.double())
            continue
        scores.append(_log_sum_exp(torch.stack(_group_sums(tier, given, logits), 1)))
    names = [(tier.place, _NONE, _NONE) for tier in layout.tiers]
    kept = _best(torch.stack(scores, 1), mask.k_tier, mask, names, seeds)
    return list(kept.unbind(1))


def _best_groups(
    tier: _Tier,
    inputs: list[TierLogits],
    mask: Mask,
    how: str,
    logits: Tensor,
    scores: Tensor,
    seeds: list[int] | None,
) -> Tensor | None:
    """Which of a tier's candidates are in the groups that tokens keep; None for all."""
    if len(tier.groups) <= tier.k_group:
        return None
    given = inputs[tier.place]
    if given.groups is not None or how == "log_sum_exp":
        by_group = _group_sums(tier, given, logits)
    elif how == "max":
        by_group = [scores[:, a:b].max(1).values.double() for _, a, b in tier.groups]
    else:
        by_group = [
            _top_two_sum(scores[:, a:b]).double() for _, a, b in tier.groups
        ]
    names = [(tier.place, group, _NONE) for group, _, _ in tier.groups]
    kept = _best(torch.stack(by_group, 1), tier.k_group, mask, names, seeds)
    sizes = torch.tensor([b - a for _, a, b in tier.groups], device=logits.device)
    return kept.repeat_interleave(sizes, 1)


def _group_sums(tier: _Tier, given: TierLogits, logits: Tensor) -> list[Tensor]:
    """Each group's head, or the log-sum-exp of its experts' logits."""
    if given.groups is not None:
        return [given.groups[:, group].double() for group, _, _ in tier.groups]
    return [_log_sum_exp(logits[:, a:b].double()) for _, a, b in tier.groups]


def _log_sum_exp(values: Tensor) -> Tensor:
    most = values.max(1, keepdim=True).values
    return most[:, 0] + (values - most).exp().sum(1).log()


def _top_two_sum(scores: Tensor) -> Tensor:
    if scores.shape[1] == 1:
        return scores[:, 0]
    two = scores.topk(2, 1).values
    return two[:, 0] + two[:, 1]


def _best(
    scores: Tensor,
    k: int,
    mask: Mask,
    names: list[tuple[int, int, int]],
    seeds: list[int] | None,
) -> Tensor:
    """Which of some tiers or groups are among the k best."""
    # Zeros are equal whatever their sign, which a sort by bits would not know.
    scores = scores + 0.0
    if seeds is None:
        order = scores.argsort(dim=1, descending=True, stable=True)
    else:
        first = _ranks(mask, names, seeds, scores.device).argsort(dim=1, stable=True)
        ranked = scores.gather(1, first).argsort(dim=1, descending=True, stable=True)
        order = first.gather(1, ranked)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter(1, order[:, :k], True)


def _sorted(
    candidates: Tensor,
    there: Tensor | None,
    scores: Tensor,
    logits: Tensor,
    ranks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Candidates by score, then logit, then the rule for ties; what is not there comes last."""
    if there is None:
        there = torch.ones_like(candidates, dtype=torch.bool)
    # Columns are in the mask's order before, or are brought there.
    first = candidates if ranks is None else ranks.gather(1, candidates)
    order = first.argsort(dim=1, stable=True)
    for key in (logits, scores):
        values = torch.where(there, key.gather(1, candidates) + 0.0, -torch.inf)
        again = values.gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, again)
    return candidates.gather(1, order), there.gather(1, order)


def _ranks(
    mask: Mask, names: list[tuple[int, int, int]], seeds: list[int], device: torch.device
) -> Tensor:
    """The places of what has these names when it is ordered by hash: for each seed a row."""
    ids = [tier.tier.encode() for tier in mask.tiers]
    rows = {seed: _ranks_of(ids, names, seed) for seed in set(seeds)}
    return torch.tensor(np.stack([rows[seed] for seed in seeds]), device=device)


def _ranks_of(
    ids: list[bytes], names: list[tuple[int, int, int]], seed: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    hashes = []
    for tier, group, expert in names:
        numbers = group.to_bytes(4, "little") + expert.to_bytes(4, "little")
        mixed = 0xCBF29CE484222325
        for byte in seed.to_bytes(8, "little") + ids[tier] + b"\0" + numbers:
            mixed = (mixed ^ byte) * 0x100000001B3 % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        hashes.append(mixed ^ mixed >> 31)
    order = sorted(range(len(names)), key=lambda at: (hashes[at], names[at]))
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks


# The exponential: in doubles, of x / ln 2 in 32nds, from a table and a polynomial of degree 3. It
# is the method of the C libraries that Linux has, whose results it gives.

_BITS = 5
_PARTS = 1 << _BITS
_SHIFT = float.fromhex("0x1.8p+52")
_PER_PART = float.fromhex("0x1.71547652b82fep+0") * _PARTS
_CUBIC = float.fromhex("0x1.c6af84b912394p-5") / _PARTS / _PARTS / _PARTS
_SQUARE = float.fromhex("0x1.ebfce50fac4f3p-3") / _PARTS / _PARTS
_LINEAR = float.fromhex("0x1.62e42ff0c52d6p-1") / _PARTS
_OVERFLOW = float.fromhex("0x1.62e42ep6")
_UNDERFLOW = float.fromhex("-0x1.9fe368p6")


def _table() -> list[int]:
    """The bits of 2 ** (n / 32), without n's part of the exponent."""
    table = []
    with localcontext() as context:
        context.prec = 60
        for part in range(_PARTS):
            power = float(Decimal(2) ** (Decimal(part) / _PARTS))
            table.append(int(np.float64(power).view(np.int64)) - (part << (52 - _BITS)))
    return table


_POWERS = torch.tensor(_table(), dtype=torch.int64)
_POWERS_ON: dict[torch.device, Tensor] = {}


def expf(x: Tensor) -> Tensor:
    """The exponential of f32, element by element."""
    powers = _POWERS_ON.get(x.device)
    if powers is None:
        powers = _POWERS_ON[x.device] = _POWERS.to(x.device)
    within = x.clamp(_UNDERFLOW, _OVERFLOW)
    scaled = within.double() * _PER_PART
    whole = scaled + _SHIFT
    number = whole.view(torch.int64)
    rest = scaled - (whole - _SHIFT)
    factor = (powers[number % _PARTS] + (number << (52 - _BITS))).view(torch.float64)
    square = rest * rest
    value = (rest * _CUBIC + _SQUARE) * square + (rest * _LINEAR + 1.0)
    value = (value * factor).float()
    value = torch.where(x > _OVERFLOW, torch.inf, value)
    return torch.where(x < _UNDERFLOW, 0.0, value)
