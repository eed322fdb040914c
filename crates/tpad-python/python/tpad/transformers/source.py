"""Experts from a daemon: leases on its memory, or copies of them on the worker's own device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from tpad import Block, BlockKey, Client, Pending

from .weights import ExpertWeights, Unpack, is_plain

#: How long a lease on a device may wait for a slot there. What is in the way are leases of
#: workers; who holds more than there is room for is to be told so, not to hang.
PATIENCE = 60.0


class ServedExpert(Protocol):
    """An expert that a worker holds."""

    @property
    def nbytes(self) -> int: ...

    def weights(self) -> ExpertWeights: ...

    def release(self) -> None: ...


class LeasedExpert:
    """An expert where the daemon has it: in place as long as it is held."""

    def __init__(self, block: Block, unpack: Unpack) -> None:
        self._block = block
        self._unpack = unpack
        self._tensors = tensors_of(block)
        self._weights = unpack(self._tensors) if is_plain(self._tensors, unpack.dtype) else None

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    def weights(self) -> ExpertWeights:
        """Its matrices: views where they are stored as they are used, else unpacked anew."""
        return self._weights or self._unpack(self._tensors)

    def release(self) -> None:
        """Gives the lease back; on a GPU, when the work submitted before is done."""
        self._weights, self._tensors = None, {}
        self._block.release()


class CopiedExpert:
    """An expert in memory of the worker's own device."""

    def __init__(self, block: Block, unpack: Unpack, device: torch.device) -> None:
        self._unpack = unpack
        self.nbytes = block.nbytes
        # The copy is over when `to` returns: from here on the daemon may use its memory again.
        self._tensors = {k: t.to(device, copy=True) for k, t in tensors_of(block).items()}
        self._weights = unpack(self._tensors) if is_plain(self._tensors, unpack.dtype) else None
        block.release()

    def weights(self) -> ExpertWeights:
        """Its matrices: as they are stored, or unpacked anew."""
        return self._weights or self._unpack(self._tensors)

    def release(self) -> None:
        """Frees the copy. The allocator gives its memory only to later work of its stream."""
        self._weights, self._tensors = None, {}


def tensors_of(block: Block) -> dict[tuple[str, str], torch.Tensor]:
    """A block's tensors by role and part, where they lie."""
    return {(tensor.role, tensor.part): tensor.torch() for tensor in block.values()}


class Asked:
    """Experts that a daemon was asked for."""

    def __init__(
        self, source: ClientSource, keys: Sequence[BlockKey], pending: Pending
    ) -> None:
        self._source, self._keys, self._pending = source, keys, pending

    def done(self) -> bool:
        """Whether they came, or failed to."""
        return self._pending.done()

    def wait(self) -> Sequence[ServedExpert]:
        """The experts, in the order asked."""
        return self._source.take(self._keys, self._pending.wait())

    def cancel(self) -> None:
        """Gives them up."""
        self._pending.cancel()


class ClientSource:
    """A daemon's experts by key."""

    def __init__(
        self, client: Client, name: str, unpack: Unpack, device: torch.device, *, in_place: bool
    ) -> None:
        self.client = client
        self.name = name
        #: Called after each fetch: raises if what came is of another version.
        self.check: Callable[[], None] = lambda: None
        self.unpack = unpack
        self.device = device
        #: Whether experts are used where the daemon has them, or copied to `device`.
        self.in_place = in_place
        self._seen: dict[tuple[str, int], int] = {}

    def nbytes(self, key: BlockKey) -> int | None:
        """What an expert of this tier and group takes: they are of one size."""
        return self._seen.get((key.tier, key.group))

    def begin(self, keys: Sequence[BlockKey]) -> Asked:
        """Asks for experts with one call, and does not wait for them."""
        on = self.device if self.in_place and self.device.type == "cuda" else None
        pending = self.client.begin_experts(
            self.name, keys, device=None if on is None else str(on), timeout=PATIENCE
        )
        return Asked(self, keys, pending)

    def take(self, keys: Sequence[BlockKey], blocks: Sequence[Block]) -> Sequence[ServedExpert]:
        """What came, as the model uses it."""
        try:
            self.check()
        except BaseException:
            for block in blocks:
                block.release()
            raise
        held: list[ServedExpert]
        if self.in_place:
            held = [LeasedExpert(block, self.unpack) for block in blocks]
        else:
            held = [CopiedExpert(block, self.unpack, self.device) for block in blocks]
        for key, expert in zip(keys, held, strict=True):
            known = self._seen.get((key.tier, key.group), 0)
            self._seen[key.tier, key.group] = max(known, expert.nbytes)
        return held

    def warm(self, keys: Sequence[BlockKey]) -> bool:
        """Guesses that are used on a GPU in place come there while nothing is waited for; those
        that would be copied come to the daemon's host memory only."""
        if not self.in_place:
            self.client.prefetch(self.name, list(keys))
            return True
        if self.device.type == "cuda":
            return self.client.expect_experts(self.name, keys, device=str(self.device))
        return False


def hands_over(client: Client, device: torch.device) -> bool:
    """Whether the daemon hands over memory of this device."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return any(uuid in known for known in client.devices)
