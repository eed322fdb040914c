"""A model that ran before its weights were there is the same model afterwards."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torch

import tpad
import tpad.transformers
from checkpoints import configuration, prompt, unmodified, write
from serving import Daemon, import_checkpoint
from tpad.transformers import warmup
from tpad.transformers.dense import skeleton
from tpad.transformers.staging import SMALL_BYTES, STAGE_BYTES, Staging

FAMILIES = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"]


class AtOnce:
    """Runs on the CPU, in this thread, what a GPU has run beside the copy, and tells of errors."""

    def __init__(self) -> None:
        self.steps = 0

    def run(self, model: torch.nn.Module, between) -> None:
        warmup.step(model, torch.device("cpu"))
        warmup.Warmup(torch.device("cpu"), None)._gate(model, between)
        self.steps += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_before_the_weights_leaves_nothing_behind(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(family, tmp_path / "model")
    import_checkpoint(tmp_path / "model", "m", tmp_path)
    warm = AtOnce()

    @contextmanager
    def at_once(device: torch.device) -> Iterator[AtOnce]:
        yield warm

    monkeypatch.setattr(importlib.import_module("tpad.transformers.load"), "warmup", at_once)
    with (
        Daemon(tmp_path, {"m": tmp_path / "model"}) as daemon,
        tpad.connect(daemon.address) as client,
    ):
        model = tpad.transformers.load(client, "m", expert_budget="4MiB")
        assert warm.steps == 1 and model.tpad.counters.uses == 0, "no expert was asked for"
        tokens = prompt(23, rows=3)
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, unmodified(tmp_path / "model")(tokens).logits)
        model.tpad.close()


@pytest.mark.parametrize(
    ("family", "last"),
    [("mixtral", 0), ("qwen3_moe", 0), ("olmoe", 0), ("deepseek_v3", 1), ("gpt_oss", 1)],
)
def test_a_warm_up_ends_where_no_layer_is_new(family: str, last: int) -> None:
    config = configuration(family)
    if family == "deepseek_v3":
        config.first_k_dense_replace = 1
    model = skeleton(config, torch.bfloat16, None)
    assert warmup.last_of_new_kind(model.model.layers) == last < config.num_hidden_layers - 1


def test_what_fails_while_warming_up_is_left_to_whoever_runs_the_model() -> None:
    with warmup.ThreadPoolExecutor(1) as executor:
        warm = warmup.Warmup(torch.device("cpu"), executor)
        warm.run(torch.nn.Identity(), torch.nn.Identity())  # type: ignore[arg-type]
        warm.settle()


def test_what_experts_compute_is_readied_behind_the_step_and_not_waited_for() -> None:
    model = skeleton(configuration("mixtral"), torch.bfloat16, None)
    model.to_empty(device="cpu")
    for layer in model.model.layers:
        layer.mlp.experts = warmup.NoExperts()
    held, reached = threading.Event(), threading.Event()

    def between(row: torch.Tensor) -> torch.Tensor:
        assert row.dtype == torch.bfloat16
        assert held.wait(10)
        reached.set()
        return row

    with warmup.ThreadPoolExecutor(1) as executor:
        warm = warmup.Warmup(torch.device("cpu"), executor)
        warm.run(model, between)
        warm.settle()
        assert not reached.is_set()
        held.set()
    assert reached.is_set()


def test_on_the_cpu_nothing_is_warmed_up() -> None:
    with warmup.warmup(torch.device("cpu")) as warm:
        warm.run(None, None)  # type: ignore[arg-type]
        warm.settle()


def tensors() -> Iterator[torch.Tensor]:
    """Tensors of each way that a copy may take."""
    draw = torch.Generator().manual_seed(3)
    yield torch.zeros(())
    yield torch.zeros(0, 7)
    yield torch.randn(5, 7, generator=draw)
    for numel in (SMALL_BYTES // 2, STAGE_BYTES // 2, 5 * STAGE_BYTES // 4 + 3):
        yield torch.randn(numel, generator=draw).to(torch.bfloat16)
    yield torch.randn(3000, 3001, generator=draw).t()
    yield torch.randn(1500, 1500, generator=draw).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_copies_are_whole_whatever_their_size(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    staging = Staging(torch.device(device))
    made = []
    for tensor in tensors():
        given = tensor.clone()
        place = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        staging.fill(place, given)
        # What is given may go as soon as it returns.
        given.zero_()
        made.append((tensor, place))
    staging.settle()
    for tensor, place in made:
        assert torch.equal(place.cpu().float(), tensor.float())
