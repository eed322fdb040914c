"""Copies of host memory to a device."""

from __future__ import annotations

import torch

#: Two of these are pinned: where one is on its way, the other is filled. Smaller ones cost
#: more turns, larger ones are slower to pin than they gain.
STAGE_BYTES = 8 << 20
#: What is smaller goes as it is.
SMALL_BYTES = 1 << 20


class Staging:
    """Fills tensors of a device from host memory that its driver knows nothing of.

    The driver copies such memory itself, through a buffer of its own and with one thread; from
    a pinned buffer that torch's threads fill, it goes three times as fast.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._turn = 0

    def fill(self, place: torch.Tensor, tensor: torch.Tensor) -> None:
        """Copies a tensor to a place of its shape and type; it may go when this returns. The copy
        may be under way: work of other streams waits for ``settle``."""
        host = tensor.device.type == "cpu" and place.device.type == "cuda"
        if not host or tensor.nbytes < SMALL_BYTES or not place.is_contiguous():
            place.copy_(tensor)
            return
        source = tensor.contiguous().flatten().view(torch.uint8)
        target = place.flatten().view(torch.uint8)
        for part, goal in zip(
            source.split(STAGE_BYTES), target.split(STAGE_BYTES), strict=True
        ):
            stage, taken = self._next()
            # What was in it before is where it belongs.
            taken.synchronize()
            staged = stage[: part.numel()]
            staged.copy_(part)
            goal.copy_(staged, non_blocking=True)
            taken.record(torch.cuda.current_stream(self.device))

    def settle(self) -> None:
        """Waits until everything is where it belongs, and gives the buffers back."""
        if self.device.type == "cuda":
            # With what is computed of it there.
            torch.cuda.current_stream(self.device).synchronize()
        self._stages = []

    def _next(self) -> tuple[torch.Tensor, torch.cuda.Event]:
        if not self._stages:
            with torch.cuda.device(self.device):
                self._stages = [
                    (
                        torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True),
                        torch.cuda.Event(),
                    )
                    for _ in range(2)
                ]
        self._turn ^= 1
        return self._stages[self._turn]
