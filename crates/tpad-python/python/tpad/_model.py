"""What a daemon says of its models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._errors import FailedPrecondition, NotFound, TpadError
from ._keys import BlockKey


@dataclass(frozen=True)
class ModelSummary:
    """One model of a daemon."""

    name: str
    """The name that requests use."""
    root: str
    """Where its checkpoint is, as the daemon reaches it."""
    state: str
    """``"serving"``, ``"loading"`` or ``"failed"``."""
    reason: str
    """Why it cannot be read; empty when it can."""
    revision: int
    """The manifest's number; 0 when none is loaded."""
    generation: int
    """The daemon's count of swaps."""
    tiers: list[str]
    """Its tiers, in manifest order."""
    default_tier_set: list[str]
    """The tiers of a request that names none."""
    activation: int
    """The activation record that chose the revision; 0 for none."""
    pinned: bool
    """Whether it stays on its revision whatever its root says."""

    @classmethod
    def _of(cls, said: Mapping[str, Any]) -> ModelSummary:
        return cls(**{name: said[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Group:
    """One group of a tier."""

    experts: int
    """How many experts it has."""
    hidden_size: int | None
    """The width of the model in elements, where the manifest tells."""
    intermediate_size: int | None
    """The width of an expert in elements, where the manifest tells."""


@dataclass(frozen=True)
class Tier:
    """One tier of a model."""

    id: str
    placement: str
    """Its home: ``"hbm"``, ``"dram"``, ``"nvme"`` or ``"object_store"``."""
    groups: list[Group]
    k_tier: int
    """Tiers for a token, as the manifest has it; a mask says what is in force."""
    k_group: int
    """Groups of the tier for a token."""
    k_expert: int
    """Experts of the tier for a token."""
    parameters: int
    """Logical parameters of its experts."""
    parameter_budget: int
    """The most that it may have."""
    bytes: int
    """Bytes of all its blocks, padding included."""
    skipped: str
    """Why it is not served; empty when it is."""

    @property
    def experts(self) -> int:
        """Experts of all groups."""
        return sum(group.experts for group in self.groups)


@dataclass(frozen=True)
class Model:
    """One model of a daemon, as it was when it was asked for."""

    name: str
    revision: int
    generation: int
    tiers: dict[str, Tier]
    """By id, in manifest order."""
    layers: list[int]
    """MoE layers, by their numbers in the checkpoint's tensor names."""
    default_tier_set: list[str]
    files: list[str]
    """What ``client.file`` answers to."""
    dense_tensors: int
    """How many dense tensors there are."""
    manifest: dict[str, Any] = field(repr=False)
    """The manifest document."""
    _config: bytes | None = field(repr=False, default=None)
    _sources: _Sources | TpadError | None = field(repr=False, default=None, compare=False)

    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``. NotFound if it has none."""
        if self._config is None:
            raise NotFound(f"model {self.name} has no config.json", reason="FILE_NOT_FOUND")
        config: dict[str, Any] = json.loads(self._config)
        return config

    def key(self, layer: int, source_expert: int) -> BlockKey:
        """The block of the checkpoint's expert ``source_expert`` at ``layer``: how an engine that
        knows "expert 37 of layer 5" finds it. NotFound if no tier has it."""
        return self._lookup().key(self, layer, source_expert)

    def keys(self, layer: int) -> dict[int, BlockKey]:
        """All blocks of a layer by the checkpoint's expert. NotFound for a layer without
        experts."""
        return dict(self._lookup().layer(self, layer))

    def source(self, key: tuple[str | int, int, int, int]) -> int:
        """The checkpoint's number of an expert: the reverse of :meth:`key`."""
        return self._lookup().source(self, key).expert

    def router_column(self, key: tuple[str | int, int, int, int]) -> int:
        """The column of the checkpoint's router at the key's layer that scores it."""
        return self._lookup().source(self, key).column

    def _lookup(self) -> _Sources:
        if isinstance(self._sources, TpadError):
            raise self._sources
        if self._sources is None:
            raise FailedPrecondition(f"model {self.name} was described without its sources")
        return self._sources


@dataclass(frozen=True)
class Source:
    """Where an expert is in the checkpoint it came from."""

    expert: int
    """Its number there."""
    column: int
    """Its column in that layer's router."""


class _Sources:
    """Keys by the experts that they came from, and the reverse."""

    def __init__(self, tiers: Iterable[tuple[str, list[dict[str, Any]]]]) -> None:
        self._sources: dict[BlockKey, Source] = {}
        self._keys: dict[int, dict[int, BlockKey]] = {}
        for tier, runs in tiers:
            for run in runs:
                for layer in run["layers"]:
                    known = self._keys.setdefault(layer, {})
                    for group, experts in enumerate(run["groups"]):
                        for expert, (number, column) in enumerate(experts):
                            key = BlockKey(tier, group, expert, layer)
                            # Tiers that were added number their own experts from 0 again: the
                            # first in manifest order is the checkpoint's.
                            known.setdefault(number, key)
                            self._sources[key] = Source(number, column)

    def layer(self, model: Model, layer: int) -> dict[int, BlockKey]:
        known = self._keys.get(layer)
        if known is None:
            raise NotFound(
                f"model {model.name} has no experts at layer {layer}; it has some at "
                f"{', '.join(map(str, model.layers))}",
                reason="LAYER_NOT_FOUND",
            )
        return known

    def key(self, model: Model, layer: int, source_expert: int) -> BlockKey:
        known = self.layer(model, layer)
        key = known.get(source_expert)
        if key is None:
            raise NotFound(
                f"no tier of model {model.name} has the checkpoint's expert {source_expert} of "
                f"layer {layer}; {len(known)} others are there",
                reason="EXPERT_NOT_FOUND",
            )
        return key

    def source(self, model: Model, key: tuple[str | int, int, int, int]) -> Source:
        tier, group, expert, layer = key
        found = self._sources.get(BlockKey(str(tier), group, expert, layer))
        if found is None:
            raise NotFound(f"model {model.name} has no {key}", reason="EXPERT_NOT_FOUND")
        return found


def model_of(
    said: Mapping[str, Any], config: bytes | None, sources: _Sources | TpadError | None
) -> Model:
    """A model, of what the native half says."""
    tiers = {
        tier["id"]: Tier(
            **{
                **{name: tier[name] for name in Tier.__dataclass_fields__},
                "groups": [Group(**group) for group in tier["groups"]],
            }
        )
        for tier in said["tier_details"]
    }
    return Model(
        name=said["name"],
        revision=said["revision"],
        generation=said["generation"],
        tiers=tiers,
        layers=said["layers"],
        default_tier_set=said["default_tier_set"],
        files=said["files"],
        dense_tensors=said["dense_tensors"],
        manifest=json.loads(said["manifest_json"] or "{}"),
        _config=config,
        _sources=sources,
    )
