"""Readies a GPU while a model is loaded: its context and the kernels of a first step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch.nn import functional


@contextmanager
def awake(device: torch.device, dtype: torch.dtype, hidden: int) -> Iterator[None]:
    """Does on another thread what the first step would do first, and is done at the end.

    A process that starts waits for its CUDA context, for the libraries of matrix products and
    for each kernel that it launches for the first time: half a second and more, in which the
    weights can come.
    """
    if device.type != "cuda":
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="tpad-wake") as waking:
        woken = waking.submit(step, device, dtype, hidden)
        yield
        woken.result()


def step(device: torch.device, dtype: torch.dtype, hidden: int) -> None:
    """The operations of a layer for one token, on zeros."""
    with torch.no_grad(), torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream()):
        state = torch.zeros(1, hidden, device=device, dtype=dtype)
        weight = torch.zeros(hidden, hidden, device=device, dtype=dtype)
        exact = state.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1.0)
        state = functional.silu(functional.linear(exact.to(dtype), weight)) * state
        heads = state.view(1, 1, 1, hidden)[..., :64]
        functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        chosen = torch.topk(torch.softmax(state[:, :8].float(), dim=-1), 2).indices
        placed = functional.one_hot(chosen, 8).permute(2, 1, 0)
        torch.where(placed[0])
        state.index_add_(0, torch.zeros(1, dtype=torch.long, device=device), state.clone())
        int(state.argmax())
        torch.cuda.current_stream().synchronize()
