"""The honest bar: what one would write by hand in the worker's own process.

All experts lie in pinned host memory. A fixed number of slots on the GPU hold those that
were used last; a miss is one asynchronous copy into the slot of the expert that was unused
longest, on the stream that computes, so that no synchronisation is needed and no slot is
written while an earlier kernel reads it. It makes no guesses: a copy of one is a copy less
for what is needed now. One process, no daemon, nothing verified, nothing
shared. It knows nothing of tpad's code; only the module around the experts is common, so
that both run the same arithmetic.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from tpad.transformers.weights import ExpertWeights

PROJECTIONS = ("w1", "w2", "w3")


class PinnedExperts:
    """Every expert of a checkpoint in pinned host memory."""

    def __init__(self, root: Path, shape, pin: bool) -> None:
        self.shape = shape
        self.layers: list[torch.Tensor] = []
        weights = json.loads((root / "model.safetensors.index.json").read_text())["weight_map"]
        for layer in range(shape.layers):
            # One allocation a layer: the allocator of pinned memory rounds up to powers of two.
            memory = torch.empty(shape.experts, shape.expert_bytes, dtype=torch.uint8)
            name = f"model.layers.{layer}.block_sparse_moe"
            with open(root / weights[f"{name}.gate.weight"], "rb") as file:
                read_experts(file, name, memory)
            if pin:
                pinned = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
                if int(pinned) != 0:
                    raise RuntimeError(f"cudaHostRegister of {memory.nbytes} bytes: {pinned}")
            self.layers.append(memory)
        self.pin = pin

    def close(self) -> None:
        """Gives the memory back."""
        for memory in self.layers if self.pin else ():
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        self.layers.clear()


def read_experts(file, name: str, memory: torch.Tensor) -> None:
    """Copies a layer's experts out of a shard, w1, w2, w3 of each one behind the other."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as whole:
        start = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:start])
        for expert in range(memory.shape[0]):
            at = 0
            for projection in PROJECTIONS:
                first, end = header[f"{name}.experts.{expert}.{projection}.weight"]["data_offsets"]
                stored = torch.frombuffer(
                    whole, dtype=torch.uint8, count=end - first, offset=start + first
                )
                memory[expert, at : at + end - first].copy_(stored)
                at += end - first
                del stored


def matrices(slot: torch.Tensor, shape) -> ExpertWeights:
    """A slot's bytes as the three matrices."""
    gate, down, up = slot.view(torch.bfloat16).view(3, -1)
    return ExpertWeights(
        gate=gate.view(shape.inner, shape.hidden),
        down=down.view(shape.hidden, shape.inner),
        up=up.view(shape.inner, shape.hidden),
    )


class PinnedLru:
    """A store of experts with a fixed number of slots on the device."""

    def __init__(self, experts: PinnedExperts, device: torch.device, budget: int) -> None:
        self.experts = experts
        shape = experts.shape
        count = max(shape.per_token, budget // shape.expert_bytes)
        self.slots = torch.empty(count, shape.expert_bytes, dtype=torch.uint8, device=device)
        self.views = [matrices(slot, shape) for slot in self.slots]
        self.free = list(range(count))
        self.there: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.missed_bytes = 0

    def use(
        self,
        layer: int,
        experts: Sequence[int],
        likely: object = None,
        *,
        in_order: bool = True,
    ) -> Generator[tuple[int, ExpertWeights]]:
        for place, expert in enumerate(experts):
            key = (layer, expert)
            slot = self.there.get(key)
            if slot is None:
                slot = self.free.pop() if self.free else self.there.popitem(last=False)[1]
                self.there[key] = slot
                source = self.experts.layers[layer][expert]
                self.slots[slot].copy_(source, non_blocking=True)
                self.missed_bytes += source.nbytes
            else:
                self.there.move_to_end(key)
            yield place, self.views[slot]


class Resident:
    """Every expert on the device: the floor under the time per token."""

    def __init__(self, experts: PinnedExperts, device: torch.device) -> None:
        self.memory = [layer.to(device) for layer in experts.layers]
        self.views = [[matrices(e, experts.shape) for e in layer] for layer in self.memory]
        self.missed_bytes = 0

    def use(
        self,
        layer: int,
        experts: Sequence[int],
        likely: object = None,
        *,
        in_order: bool = True,
    ) -> Generator[tuple[int, ExpertWeights]]:
        for place, expert in enumerate(experts):
            yield place, self.views[layer][expert]
