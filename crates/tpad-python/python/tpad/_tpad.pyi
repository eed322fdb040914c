"""The native half of tpad. What is not imported by ``tpad`` itself is its own business."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
import torch

from ._keys import BlockKey, RouterKey

__version__: str

_Done = Callable[[Any, BaseException | None], object] | None
_Dtype = np.dtype[Any]

class Tensor:
    """One tensor of a block: a read-only view of its elements where they lie, row by row.

    It supports the buffer protocol, ``__array__`` and DLPack, and everything made from it without
    a copy keeps the block's lease. NumPy's arrays refuse to be written to. PyTorch has no
    read-only tensors: a write into one that is held in place ends the process, and one on a GPU
    would change what others read; ``clone()`` what is to be changed.
    """

    @property
    def name(self) -> str:
        """The name in the checkpoint. Experts cut from one stacked tensor share its name."""
    @property
    def role(self) -> str:
        """The projection that it belongs to: see :meth:`Block.by_role`."""
    @property
    def part(self) -> str:
        """What it does there: see :meth:`Block.by_role`."""
    @property
    def dtype(self) -> str:
        """The element type as safetensors spells it: ``"BF16"``."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Stored elements in each dimension, the slowest first. A slice of a stacked tensor has
        lost the expert axis."""
    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
    @property
    def device(self) -> str:
        """Where it is: ``"cpu"`` or ``"cuda:N"``."""
    @property
    def address(self) -> int:
        """The address of its first element, in this process or on the device. It means nothing
        once the lease is over."""
    @property
    def orientation(self) -> Literal["out_in", "in_out"] | None:
        """Which axis of a weight is which: ``"out_in"`` as ``torch.nn.Linear`` has it."""
    @property
    def gate_up(self) -> Literal["concatenated", "interleaved"] | None:
        """How gate and up share the output axis of a fused tensor."""
    @property
    def values_per_element(self) -> int:
        """Logical values in one stored element: 2 for FP4 in bytes, 8 for INT4 in ``I32``."""
    @property
    def sliced(self) -> bool:
        """Whether it is one expert's slice of a stacked tensor."""
    def numpy(self) -> np.ndarray[Any, _Dtype]:
        """A NumPy array over the elements, without a copy, which cannot be written to.

        Raises:
            ImportError: ``BF16`` and the small floating-point types need ``ml_dtypes``.
            TypeError: ``F4`` and ``F6`` elements fill no byte; the tensor is on a GPU.
        """
    def torch(self) -> torch.Tensor:
        """A ``torch.Tensor`` over the elements, without a copy, where they are. It must not be
        written to: ``clone()`` to own. On a GPU the lease ends after the work that was submitted
        to the device before the last view went. ``F4`` becomes ``float4_e2m1fn_x2`` with half the
        last dimension."""
    def raw(self) -> memoryview:
        """The bytes, read-only, without a copy. BufferError for a tensor on a GPU."""
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __array__(
        self, dtype: Any | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, _Dtype]: ...
    def __dlpack__(
        self,
        *,
        stream: Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule, without a copy: with the flag that says that it is read-only where
        ``max_version`` takes version 1, and without it for older consumers."""
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def _dlpack(self, bytes: bool, /) -> Any: ...

class Block(Mapping[str, Tensor]):
    """A block: one expert at one layer, one tier's router at one layer, or one dense tensor.

    A read-only mapping from the checkpoint's tensor names to tensors, in the order in which they
    lie. Where :attr:`held` is true they are the daemon's own memory, and the block is a lease on
    it: it ends when the block and every view of its tensors are gone. ``release()``, or the end of
    ``with block:``, lets go of the block's own part.
    """

    @property
    def key(self) -> BlockKey | RouterKey | str:
        """What it is; a dense tensor's name for a dense tensor."""
    @property
    def id(self) -> str:
        """The BLAKE3 digest of its bytes, in hexadecimal: equal blocks have equal ids."""
    @property
    def source_expert(self) -> int | None:
        """The expert's number in the checkpoint it came from."""
    @property
    def router_column(self) -> int | None:
        """The expert's column in the checkpoint's router."""
    @property
    def level(self) -> Literal["hbm", "dram", "nvme", "object_store"] | None:
        """Where the daemon found it."""
    @property
    def held(self) -> bool:
        """Whether the tensors are the daemon's own memory, without a copy."""
    @property
    def device(self) -> str:
        """Where the tensors are: ``"cpu"`` or ``"cuda:N"``."""
    @property
    def nbytes(self) -> int:
        """The bytes of all tensors with the padding between them."""
    @property
    def released(self) -> bool:
        """Whether :meth:`release` was called."""
    def release(self) -> None:
        """Lets go of the block: its tensors can be asked for no more (ValueError). The lease ends
        here unless tensors or arrays made from them are left; the last of them ends it then."""
    def by_role(self, role: str, part: str = "weight") -> Tensor:
        """The tensor of a role: ``"gate"``, ``"up"``, ``"down"``, ``"gate_up"``, ``"router"``,
        ``"tier_head"``, ``"group_heads"`` or ``"other"``, and its part: ``"weight"``, ``"bias"``,
        ``"scale"``, ``"global_scale"``, ``"input_scale"``, ``"zero_point"``, ``"group_index"``,
        ``"shape"`` or ``"correction_bias"``. KeyError where there is none."""
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Pending:
    """Experts on their way, from :meth:`tpad.Client.begin_experts`. When this is dropped, what
    has come is given back."""

    def done(self) -> bool:
        """Whether :meth:`wait` would return, or raise, at once."""
    def wait(self) -> list[Block]:
        """Waits for the blocks and returns them, in the order in which they were asked for. Raises
        what :meth:`tpad.Client.experts` raises, and ValueError when they were taken before."""
    def cancel(self) -> None:
        """Gives up what was asked for; what has come of it is given back."""

class Prefetch:
    """A prefetch under way. It goes on when this object is dropped; :meth:`cancel` ends it."""

    def cancel(self) -> None:
        """Ends it. What the daemon is reading arrives."""
    def done(self) -> bool:
        """Whether it is over."""
    @overload
    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Waits for its end, and returns what became of it: ``asked``, ``there``, ``fetched``,
        ``no_room`` and ``failed``, each with ``blocks`` and ``bytes``. Raises what the daemon said;
        Cancelled; DeadlineExceeded after ``timeout`` seconds."""
    @overload
    def wait(self, timeout: float | None, done: _Done) -> Any: ...

class TierMask:
    """One active tier of a mask."""

    @property
    def tier(self) -> str:
        """The tier's id."""
    @property
    def k_group(self) -> int:
        """Groups of the tier for a token."""
    @property
    def k_expert(self) -> int:
        """Experts of the tier for a token."""
    @property
    def experts(self) -> list[int]:
        """Experts of each group, masked ones included."""
    @property
    def indexed(self) -> bool:
        """Whether its blocks can be fetched."""
    def allowed(self) -> bytes:
        """One byte for each expert, in the order of groups and experts: 1 for one that may be
        picked. ``numpy.frombuffer(tier.allowed(), bool)`` is the same as an array."""
    def sources(self, layer: int) -> list[list[tuple[int, int]]] | None:
        """Where its experts came from at a layer: for each group a list of (expert, router
        column). None where the mask does not say."""

class Mask:
    """Which experts a router may pick, at one revision and for one TierSet."""

    @staticmethod
    def build(k_tier: int, tiers: Sequence[tuple[str, int, int, list[list[bool]]]]) -> Mask:
        """A mask that no daemon made: ``k_tier``, and for each tier its id, ``k_group``,
        ``k_expert`` and its groups, each a list of bools, one for each expert."""
    @property
    def revision(self) -> int:
        """The manifest's number."""
    @property
    def generation(self) -> int:
        """The daemon's count of swaps; no part of the etag."""
    @property
    def etag(self) -> str:
        """Equal masks have equal etags, on every daemon."""
    @property
    def k_tier(self) -> int:
        """Tiers for a token."""
    @property
    def tiers(self) -> list[TierMask]:
        """The active tiers, in manifest order."""
    @property
    def masked(self) -> list[tuple[str, str, str]]:
        """What is masked: a tier's id, the reason and what there is to say of it."""
    @property
    def resident_level(self) -> Literal["hbm", "dram", "nvme", "object_store"] | None:
        """The slowest level that counts as resident; None where that was not asked for."""
    @property
    def resident_layers(self) -> list[int]:
        """The layers of which it says what is resident."""
    def costs(self, layer: int) -> list[list[list[str]]]:
        """What it costs to read each block of a layer: for each active tier its groups, each a list
        of a level or ``"unavailable"`` for each expert. ValueError where that was not asked for."""

class Task:
    def cancel(self) -> None: ...

class Watch:
    @overload
    def next(self) -> Mask | tuple[str, str] | None: ...
    @overload
    def next(self, done: _Done) -> Any: ...
    def close(self) -> None: ...

class Connection:
    def address(self) -> str: ...
    def why_no_handoff(self) -> str | None: ...
    def handoff(self) -> dict[str, Any] | None: ...
    def close(self) -> None: ...
    def closed(self) -> bool: ...
    def models(self, timeout: float | None = None, done: _Done = None) -> Any: ...
    def describe(self, model: str, timeout: float | None = None, done: _Done = None) -> Any: ...
    def status(self, timeout: float | None = None, done: _Done = None) -> Any: ...
    def file(
        self, model: str, name: str, timeout: float | None = None, done: _Done = None
    ) -> Any: ...
    def hold(
        self, model: str, tier: str | int, group: int, expert: int, layer: int
    ) -> Block | None: ...
    def expert(
        self,
        model: str,
        tier: str | int,
        group: int,
        expert: int,
        layer: int,
        device: Any = None,
        timeout: float | None = None,
        done: _Done = None,
    ) -> Any: ...
    def experts(
        self,
        model: str,
        keys: Iterable[tuple[str | int, int, int, int]],
        device: Any = None,
        timeout: float | None = None,
        done: _Done = None,
    ) -> Any: ...
    def begin_experts(
        self,
        model: str,
        keys: Iterable[tuple[str | int, int, int, int]],
        device: Any = None,
        timeout: float | None = None,
    ) -> Pending: ...
    def router(
        self,
        model: str,
        tier: str | int,
        layer: int,
        device: Any = None,
        timeout: float | None = None,
        done: _Done = None,
    ) -> Any: ...
    def dense(
        self,
        model: str,
        names: list[str] | None = None,
        device: Any = None,
        timeout: float | None = None,
        done: _Done = None,
    ) -> Any: ...
    def prefetch(
        self, model: str, keys: Iterable[tuple[str | int, int, int, int]]
    ) -> Prefetch: ...

class Router:
    def __init__(self, scoring: str) -> None: ...
    @staticmethod
    def complete(scoring: str) -> str: ...
    def route(
        self,
        mask: Mask,
        resident_at: int | None,
        tokens: int,
        tiers: Sequence[tuple[Any, Any, Any, Any]],
        seeds: list[int] | None,
    ) -> tuple[int, list[bytes]]: ...

def connect(
    address: str,
    handoff: str,
    handoff_socket: str | None,
    worker: str | None,
    timeout: float | None,
    connect_timeout: float,
    verify: bool,
    done: _Done = None,
) -> Any: ...
def default_address() -> str: ...
def open_device(device: object) -> None: ...
def expect(
    connection: Connection,
    model: str,
    keys: Iterable[tuple[str | int, int, int, int]],
    device: Any,
) -> bool: ...
def pending() -> list[tuple[int, int]]: ...
def mask(
    connection: Connection,
    model: str,
    tier_set: Any,
    resident: str | None,
    layers: list[int] | None,
    sources: bool,
    timeout: float | None = None,
    done: _Done = None,
) -> Any: ...
def watch(
    connection: Connection, model: str, tier_set: Any, sources: bool, done: _Done = None
) -> Any: ...
def import_checkpoint(
    root: str,
    model: str,
    plan: str | None,
    out: str | None,
    dry_run: bool,
    state_dir: str | None,
    instance_credentials: bool,
    progress: Callable[[str, int, int], object] | None,
) -> dict[str, Any]: ...
def add_tier(
    root: str,
    from_: str,
    id: str | int,
    budget: int,
    placement: str,
    routing: tuple[int, int, int],
    plan: str | None,
    dry_run: bool,
    retention_days: int,
    instance_credentials: bool,
    progress: Callable[[str, int, int], object] | None,
) -> dict[str, Any]: ...
def publish_document(
    root: str, document: bytes, major: bool, dry_run: bool, instance_credentials: bool
) -> dict[str, Any]: ...
def activate(
    root: str,
    revision: int | None,
    tiers: list[str | int] | None,
    reason: str | None,
    instance_credentials: bool,
) -> dict[str, Any]: ...
def rollback(root: str, reason: str | None, instance_credentials: bool) -> dict[str, Any]: ...
def history(root: str, instance_credentials: bool) -> dict[str, Any]: ...
