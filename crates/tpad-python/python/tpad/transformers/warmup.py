"""Readying a device while a model's weights are read.

A process pays for a GPU once: for its context, for each library, and for each kernel that is
used for the first time. Together that takes longer than to copy a model's dense weights. So it
is done in a thread beside the copy: by running the model, without experts, on whatever lies in
its weights by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tpad import _tpad


class NoExperts(nn.Module):
    """Stands where experts will."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """What experts of zeros would return."""
        return torch.zeros_like(hidden_states)


class Warmup:
    """Runs what readies a device in threads of its own."""

    def __init__(self, device: torch.device, executor: ThreadPoolExecutor | None) -> None:
        self._device = device
        self._executor = executor
        self._begun: list[Future[None]] = []

    def run(
        self, model: PreTrainedModel, between: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Begins to run a step of a model whose experts are ``NoExperts``. ``between`` is what
        its experts compute between their products: readied behind it, while the first step
        waits for its experts, and not waited for."""
        self.begin(lambda: step(model, self._device))
        if self._executor is not None:
            stepped = self._begun[-1]

            def behind() -> None:
                stepped.result()
                self._gate(model, between)

            self._executor.submit(quietly, behind)

    def begin(self, work: Callable[[], object]) -> None:
        """Begins something that has to be over before the device is used."""
        if self._executor is not None:
            self._begun.append(self._executor.submit(quietly, work))

    def settle(self) -> None:
        """Waits for all that has to be over."""
        wait(self._begun)

    def _gate(
        self, model: PreTrainedModel, between: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        row = torch.zeros((1, 16), dtype=model.dtype, device=self._device)
        with torch.no_grad():
            made = between(row)
            made += made * made


def quietly(work: Callable[[], object]) -> None:
    """Whatever fails here fails again where somebody is told."""
    with suppress(Exception):
        work()


@contextmanager
def warmup(device: torch.device) -> Iterator[Warmup]:
    """A device is made ready inside of it; at its end what the first step needs is."""
    if device.type != "cuda":
        yield Warmup(device, None)
        return
    executor = ThreadPoolExecutor(2, "tpad-warmup")
    warm = Warmup(device, executor)
    try:
        # Both want the device's one context: the driver makes it while torch readies itself.
        warm.begin(lambda: _tpad.open_device(str(device)))
        warm.begin(lambda: torch.zeros(1, device=device))
        yield warm
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        warm.settle()
        executor.shutdown(wait=False)


class Enough(Exception):
    """Nothing behind this has kernels of its own."""


def step(model: PreTrainedModel, device: torch.device) -> None:
    """One token through a model, for the sake of the kernels: through its layers until each
    kind was seen, and then through what comes after the last."""
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    states: list[torch.Tensor] = []

    def stop(_: nn.Module, __: object, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)
        raise Enough

    whole: Any = model
    inner = whole.model
    hook = inner.layers[last_of_new_kind(inner.layers)].register_forward_hook(stop)
    try:
        # A thread begins on the first device, whatever the caller's is.
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with here, torch.no_grad():
            with suppress(Enough):
                model(input_ids=token, use_cache=True)
            logits = whole.get_output_embeddings()(inner.norm(states[0]))
            int(logits[0, -1].argmax())
    finally:
        hook.remove()


def last_of_new_kind(layers: Iterable[nn.Module]) -> int:
    """The place of the last layer that differs from all before it: in its modules, or in what
    its attention sees."""
    kinds: dict[tuple[object, ...], int] = {}
    for place, layer in enumerate(layers):
        attention = getattr(layer, "self_attn", None)
        sees = getattr(layer, "attention_type", None), getattr(attention, "sliding_window", None)
        kinds.setdefault((*sees, *(type(module) for module in layer.modules())), place)
    return max(kinds.values())
