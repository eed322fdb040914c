"""The publisher's side: import a checkpoint, add a tier, decide which revision is served.

What ``tpactl import``, ``tier add``, ``publish``, ``activate``, ``rollback`` and ``revisions`` do,
for training code. Roots are directories, ``file://``, ``s3://``, ``gs://``, ``az://`` or
``https://`` URLs; credentials come from the environment, as everywhere. Each function waits, with
the GIL released; in asyncio call it with ``asyncio.to_thread``. Ctrl-C leaves no revision behind.

``progress`` is called a few times a second, by the thread that waits, with the phase
(``"headers"``, counted in shards; ``"digests"``, ``"verification"``, ``"writing"``, in bytes), what
of it is done, and the phase's total. An exception that it raises ends the work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import _tpad

__all__ = [
    "Activation",
    "Added",
    "Changed",
    "History",
    "Imported",
    "Placement",
    "Progress",
    "activate",
    "add_tier",
    "history",
    "import_checkpoint",
    "publish_document",
    "rollback",
]

Progress = Callable[[str, int, int], object]
Placement = Literal["hbm", "dram", "nvme", "object_store"]
Root = str | os.PathLike[str]


@dataclass(frozen=True)
class _Published:
    outcome: str
    """``"written"``, ``"unchanged"`` where the newest revision says the same, or ``"dry_run"``."""
    url: str
    """The revision's document."""
    revision: int
    model_version: str
    """The weights' version, ``"MAJOR.MINOR"``: growth steps the minor."""
    manifest: dict[str, Any] = field(repr=False)
    """The document; of a dry run it lacks the indexes' digests."""


@dataclass(frozen=True)
class Imported(_Published):
    """What an import came to."""

    layout: str
    """The layout that was recognised."""
    blocks: int
    image_bytes: int
    resumed_blocks: int
    """Blocks that an interrupted import had digested before."""
    parameters: list[int]
    """Logical parameters of each tier, in the manifest's order."""
    notes: list[str]


@dataclass(frozen=True)
class Added(_Published):
    """What adding a tier came to."""

    layout: str
    blocks: int
    image_bytes: int
    parameters: int
    """Logical parameters of the tier's experts."""
    parameter_budget: int
    compared_blocks: int
    """Blocks of the model that the checkpoint has, too, and that are equal."""
    reused_bytes: int
    """Bytes that an interrupted run had uploaded before."""
    changes: dict[str, Any]
    """What changed, as ``tpactl manifest diff --json`` has it."""
    notes: list[str]


@dataclass(frozen=True)
class Changed(_Published):
    """What publishing an edited document came to."""

    previous_version: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Activation:
    """A record of which revision is served."""

    activation: int
    revision: int
    default_tier_set: list[str] | None
    """The tiers of a request that names none; None for the manifest's own."""
    created_at: str | None
    reason: str | None


@dataclass(frozen=True)
class History:
    """What a root has."""

    revisions: list[dict[str, Any]]
    """Oldest first: ``revision``, ``active``, ``model_version``, ``refused``, ``manifest``."""
    activations: list[Activation]
    active: int | None
    """The revision that daemons given the root serve."""


def import_checkpoint(
    root: Root,
    model: str,
    *,
    plan: str | os.PathLike[str] | None = None,
    out: Root | None = None,
    dry_run: bool = False,
    state_dir: Root | None = None,
    instance_credentials: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Publishes a revision that points into the shards of a checkpoint in the Hugging Face layout.

    Reads every byte once and rewrites none. Interrupted, it goes on where it stopped when it is
    called again.

    Args:
        root: the checkpoint.
        model: the model's name.
        plan: how experts are sorted into tiers and groups: TOML, as text or the path of a file
            (docs/import.md); without it there is one tier.
        out: where the manifest is written, if not to the checkpoint itself.
        dry_run: reads headers only, and writes nothing.
        state_dir: where an interrupted import keeps its digests; by default below the user's cache
            directory.
        instance_credentials: takes credentials from the machine.

    Raises:
        InvalidArgument, FailedPrecondition: a layout that is not recognised, or contradicts itself.
    """
    state = default_state() if state_dir is None else os.fspath(state_dir)
    out_root = None if out is None else os.fspath(out)
    said = _tpad.import_checkpoint(
        os.fspath(root),
        model,
        plan_text(plan),
        out_root,
        dry_run,
        state,
        instance_credentials,
        progress,
    )
    return Imported(**said)


def add_tier(
    root: Root,
    checkpoint: Root,
    tier: str | int,
    *,
    budget: int,
    placement: Placement,
    k_expert: int,
    k_group: int = 1,
    k_tier: int = 1,
    plan: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    retention_days: int = 7,
    instance_credentials: bool = False,
    progress: Progress | None = None,
) -> Added:
    """Adds a tier to the newest revision at ``root``, and touches nothing that exists.

    Takes the new experts and a routing head for every MoE layer from ``checkpoint`` (docs/tiers.md
    has its layouts). What the checkpoint holds of the model besides must equal it byte for byte.

    Args:
        root: the model's root, which has a revision.
        checkpoint: the checkpoint with the new tier's tensors.
        tier: the new tier's id.
        budget: the most logical parameters that its experts may have.
        placement: its home.
        k_expert: experts of the tier for a token; ``k_group`` groups, ``k_tier`` tiers.
        plan: which of the checkpoint's experts are the tier's: TOML, as text or a file's path.
        dry_run: says what would change, and writes nothing.
        retention_days: days after which the store's clean-up may take objects that no revision
            names.

    Raises:
        FailedPrecondition: the contract does not allow it: an old weight differs, the budget is
            exceeded, the id is taken. The message lists everything that is wrong.
    """
    said = _tpad.add_tier(
        os.fspath(root),
        os.fspath(checkpoint),
        tier,
        budget,
        placement,
        (k_tier, k_group, k_expert),
        plan_text(plan),
        dry_run,
        retention_days,
        instance_credentials,
        progress,
    )
    return Added(**said)


def publish_document(
    root: Root,
    document: Mapping[str, Any],
    *,
    major: bool = False,
    dry_run: bool = False,
    instance_credentials: bool = False,
) -> Changed:
    """Publishes an edited manifest as the next revision: ``tpactl publish``.

    What breaks workers of the newest revision is refused with every violation; with ``major`` it
    becomes the next major version.
    """
    text = json.dumps(document).encode()
    said = _tpad.publish_document(os.fspath(root), text, major, dry_run, instance_credentials)
    return Changed(**said)


def activate(
    root: Root,
    revision: int | None = None,
    *,
    tiers: Sequence[str | int] | Literal["manifest"] | None = None,
    reason: str | None = None,
    instance_credentials: bool = False,
) -> Activation:
    """Has the daemons of a root serve a revision, the highest by default.

    ``tiers`` become those of requests that name none; ``"manifest"`` for the manifest's own;
    without it they stay as they are.
    """
    if tiers is not None and tiers != "manifest" and not tiers:
        raise ValueError("tiers: name at least one, or \"manifest\"")
    wanted = None if tiers is None else [] if tiers == "manifest" else list(tiers)
    return Activation(
        **_tpad.activate(os.fspath(root), revision, wanted, reason, instance_credentials)
    )


def rollback(
    root: Root, *, reason: str | None = None, instance_credentials: bool = False
) -> Activation:
    """Has the daemons of a root serve again what they served before the last activation."""
    return Activation(**_tpad.rollback(os.fspath(root), reason, instance_credentials))


def history(root: Root, *, instance_credentials: bool = False) -> History:
    """A root's revisions, and the activations that chose among them."""
    said = _tpad.history(os.fspath(root), instance_credentials)
    records = [Activation(**record) for record in said["activations"]]
    return History(said["revisions"], records, said["active"])


def plan_text(plan: str | os.PathLike[str] | None) -> str | None:
    """A plan's TOML: a string with a line of it, or a file's path."""
    if plan is None or (isinstance(plan, str) and ("\n" in plan or "=" in plan)):
        return plan
    return Path(plan).read_text()


def default_state() -> str | None:
    """Where ``tpactl import`` keeps digests, too."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        return str(Path(cache, "tpad", "import"))
    home = os.environ.get("HOME", "")
    return str(Path(home, ".cache", "tpad", "import")) if os.path.isabs(home) else None
