"""Experts, routers and dense tensors of Mixture-of-Experts models, from a tpad daemon.

    import tpad

    with tpad.connect("unix:///run/tpad/tpad.sock") as client:
        model = client.model("mixtral")
        with client.experts(model, [model.key(layer=5, source_expert=3)])[0] as block:
            gate = block.by_role("gate").numpy()

On the daemon's machine a block's tensors are the daemon's own memory, without a copy; elsewhere
a batch is received into a buffer for each block. ``tpad.aio`` has the same for asyncio.
"""

from collections.abc import Mapping

from . import _tpad
from ._client import Client, Device, Key, MaskWatch, TierSet, connect
from ._errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Disconnected,
    FailedPrecondition,
    GpuError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TpadError,
    Unavailable,
)
from ._keys import BlockKey, RouterKey
from ._model import Group, Model, ModelSummary, Tier
from ._tpad import Block, Mask, Pending, Prefetch, Tensor, TierMask, __version__

Mapping.register(Block)

__all__ = [
    "Block",
    "BlockKey",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Device",
    "Disconnected",
    "FailedPrecondition",
    "GpuError",
    "Group",
    "InvalidArgument",
    "Key",
    "Mask",
    "MaskWatch",
    "Model",
    "ModelSummary",
    "NotFound",
    "PermissionDenied",
    "Pending",
    "Prefetch",
    "ResourceExhausted",
    "RouterKey",
    "Tensor",
    "Tier",
    "TierMask",
    "TierSet",
    "TpadError",
    "Unavailable",
    "__version__",
    "connect",
]
