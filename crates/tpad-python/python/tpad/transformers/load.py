"""Loading a model so that its experts stay with the daemon."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from tpad import Client, Model, TierSet

from . import dense
from .cache import ExpertCache
from .experts import ServedExperts
from .families import family_of
from .routing import Routing
from .served import Served
from .source import ClientSource, hands_over
from .store import ServedStore
from .warmup import NoExperts, warmup
from .weights import Unpack

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
#: Dense tensors are asked for so many at a time: each is held until it is copied.
DENSE_AT_A_TIME = 32


def load(
    client: Client,
    model: Model | str | None = None,
    device: torch.device | str = "cpu",
    *,
    expert_budget: int | str,
    tier_set: TierSet = None,
    dtype: torch.dtype | None = None,
    prefetch: bool = True,
    in_place: bool | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A transformers model whose experts are fetched as its routers pick them.

    Configuration, dense weights and routers come from the daemon; dense weights and routers
    are the worker's own afterwards. Experts are used where the daemon has them: on the CPU in
    its host memory, on a GPU in its GPU memory. The model runs, and generates, as any other;
    ``model.tpad`` says what it holds and lets go of it.

    Args:
        client: what ``tpad.connect`` returned, on the daemon's machine for the sake of speed.
        model: a model's name, or ``client.model(...)``; the daemon's only one without it.
        device: where the model computes.
        expert_budget: the most bytes of experts that the worker holds at a time, leases and
            copies alike: a number, or ``"8GiB"``. Those that were unused longest go first.
        tier_set: the tiers that may be picked from; the model's default ones without it. They
            are what they are when the model is loaded: see ``model.tpad.adopt``.
        dtype: the type to compute in, if not the checkpoint's own.
        prefetch: whether to fetch what the next layer is likely to pick.
        in_place: False copies experts to the device instead of holding the daemon's memory.
            By default they are copied only where the daemon hands over no memory of the device.
        attn_implementation: as ``from_pretrained`` has it.

    Raises:
        UnsupportedFamily: the model's type has no served form.
        MissingWeights: the published model lacks tensors of its configuration.
        BudgetTooSmall: the budget has no room for one expert; raised at the first step.
    """
    published = client.model(model if model is None or isinstance(model, str) else model.name)
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    budget = bytes_of(expert_budget)
    family = family_of(published.config().get("model_type", ""))
    with warmup(device) as warm:
        with files(client, published) as directory:
            config, block_size, own_dtype = dense.read_config(directory)
            dtype = dtype or own_dtype
            made = dense.skeleton(config, dtype, attn_implementation)
            if "generation_config.json" in published.files:
                made.generation_config = GenerationConfig.from_pretrained(directory)
        assign = dense.Assign(made, device, dtype, block_size)
        wanted = dense.wanted(made, family)
        routing = Routing(client, published.name, tier_set, made, family, assign)
        if in_place is None:
            in_place = device.type != "cuda" or hands_over(client, device)
        unpack = Unpack(dtype, block_size)
        source = ClientSource(client, published.name, unpack, device, in_place=in_place)
        cache = ExpertCache(source, budget)
        store = ServedStore(cache, routing.keys, guesses=prefetch)
        served = Served(client, routing.published, routing, source, cache, store)
        layers = [(layer, block, block.experts) for layer, block in family.blocks(made)]
        for _, block, _ in layers:
            block.experts = NoExperts()
        assign.place_all(wanted)
        served.dense_bytes = routing.install(store)
        dense.finish(made, device)
        experts: Any = layers[0][2]
        warm.run(made, experts._apply_gate if family.transposed else experts.act_fn)
        copy_dense(client, published, wanted, assign)
    for (layer, block, experts), after in zip(layers, [*layers[1:], None], strict=True):
        ahead = None if after is None else (after[0], routing.predictor(after[0]))
        block.experts = ServedExperts(
            experts, store, layer, transposed=family.transposed, ahead=ahead
        )
    object.__setattr__(made, "tpad", served)
    return made


def tokenizer(client: Client, model: Model | str | None = None) -> Any:
    """The tokenizer of a published model, from the files that were published with it."""
    published = client.model(model if model is None or isinstance(model, str) else model.name)
    with files(client, published) as directory:
        return AutoTokenizer.from_pretrained(directory)


@contextmanager
def files(client: Client, published: Model) -> Iterator[str]:
    """A directory with a model's small files, which transformers only reads from one."""
    with tempfile.TemporaryDirectory(prefix="tpad-") as directory:
        for name in published.files:
            path = Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.file(published, name))
        yield directory


def copy_dense(client: Client, published: Model, wanted: list[str], assign: dense.Assign) -> None:
    """Copies the dense tensors that the model needs; each is let go of when it is copied."""
    for at in range(0, len(wanted), DENSE_AT_A_TIME):
        names = wanted[at : at + DENSE_AT_A_TIME]
        tensors = client.dense(published, names)
        packed = [name for name, tensor in tensors.items() if tensor.dtype.startswith("F8_")]
        if packed:
            tensors |= client.dense(published, [name + dense.SCALE for name in packed])
        assign.put_all({name: tensor.torch() for name, tensor in tensors.items()})
    assign.settle()


def bytes_of(size: int | str) -> int:
    """A size as a number, or as text with a unit."""
    if isinstance(size, int):
        value = size
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB)?", size.strip())
        if match is None:
            raise ValueError(f'expert_budget={size!r}: a number of bytes, or "8GiB" is expected')
        value = int(float(match[1]) * UNITS[match[2] or ""])
    if value <= 0:
        raise ValueError(f"expert_budget={size!r}: it has to be more than nothing")
    return value
