"""Names of blocks."""

from __future__ import annotations

from typing import NamedTuple


class BlockKey(NamedTuple):
    """One expert at one layer. Any tuple of the four will do where one is asked for."""

    tier: str
    """The tier's id, as text."""
    group: int
    """The group, from 0 within the tier."""
    expert: int
    """The expert, from 0 within the group."""
    layer: int
    """The layer's number in the checkpoint's tensor names."""


class RouterKey(NamedTuple):
    """One tier's router heads at one layer."""

    tier: str
    layer: int
