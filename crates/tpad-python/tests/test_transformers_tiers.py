"""Tier sets: what is masked is never picked, and growth changes no running worker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import torch

import tpad
import tpad.publish
import tpad.router
import tpad.transformers
from checkpoints import prompt, unmodified, write
from safetensors.torch import save_file
from serving import FIXTURES, Daemon, import_checkpoint, wait_for

torch.set_num_threads(1)

PLAN = """
default_tier_set = ["small"]
[[tiers]]
id = "small"
k_expert = 2
k_tier = 1
[[tiers.groups]]
experts = "5,0-2"
[[tiers]]
id = "large"
k_expert = 1
k_tier = 2
[[tiers.groups]]
experts = "3-4"
[[tiers.groups]]
experts = "6-7"
"""


@pytest.fixture
def cut(tmp_path: Path):
    """A daemon on Mixtral's fixture, its experts in two tiers."""
    root = tmp_path / "model"
    write("mixtral", root, initializer_range=0.08)
    (tmp_path / "plan.toml").write_text(PLAN)
    import_checkpoint(root, "m", tmp_path, "--plan", tmp_path / "plan.toml")
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        yield client


def masked_reference(root: Path, allowed: list[int]):
    """The unmodified model with -inf in the logits of what may not be picked."""
    model = unmodified(root)
    for layer in model.model.layers:
        gate = layer.mlp.gate

        def forward(states, gate=gate):
            states = states.reshape(-1, gate.hidden_dim)
            logits = torch.nn.functional.linear(states, gate.weight)
            closed = [e for e in range(gate.num_experts) if e not in allowed]
            logits[:, closed] = -torch.inf
            weights, index = torch.softmax(logits.float(), -1).topk(gate.top_k, -1)
            return logits, weights / weights.sum(-1, keepdim=True), index

        gate.forward = forward
    return model


def test_experts_outside_of_the_tier_set_are_never_picked(cut: tpad.Client, tmp_path: Path) -> None:
    model = tpad.transformers.load(cut, "m", expert_budget="1GiB")
    tokens, root = prompt(40, rows=4), tmp_path / "model"
    with torch.no_grad():
        logits = model(tokens).logits
        # Sums over fewer numbers are formed in another order: the last bit may differ.
        torch.testing.assert_close(logits, masked_reference(root, [0, 1, 2, 5])(tokens).logits)
        others = unmodified(root)(tokens).logits
        with pytest.raises(AssertionError):
            torch.testing.assert_close(logits, others)
    assert model.tpad.tiers == ["small"]
    assert {key.tier for key in model.tpad.counters.fetched} == {"small"}
    assert {cut.model("m").source(key) for key in model.tpad.counters.picked} == {0, 1, 2, 5}
    check_gate(cut, model, ["small"])
    model.tpad.close()


def check_gate(client: tpad.Client, model, tiers: list[str]) -> None:
    """A layer's router chooses and weighs as the reference router does, to the bit."""
    mask, router = client.mask("m", tiers), tpad.router.Router(client.model("m"))
    states = torch.randn(50, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    _, weights, index = model.model.layers[0].mlp.gate(states)
    logits = []
    for tier in tiers:
        with client.router("m", tier, 0) as block:
            heads = block.by_role("router").torch()
            logits.append(torch.nn.functional.linear(states, heads).float().numpy())
    routed = router.route(mask, logits)
    keys = model.tpad.store.keys[0]
    chosen = [[keys[i] for i in row if i >= 0] for row in index.tolist()]
    assert chosen == routed.keys(mask, 0)
    assert torch.equal(weights, torch.tensor(routed.weight))
    assert {key.tier for row in chosen for key in row} == set(tiers)


def test_several_tiers_route_as_the_reference_router_says(cut: tpad.Client) -> None:
    model = tpad.transformers.load(cut, "m", expert_budget="1GiB", tier_set=["small", "large"])
    check_gate(cut, model, ["small", "large"])
    with torch.no_grad():
        assert torch.isfinite(model(prompt(20)).logits).all()
    model.tpad.close()


def tier_checkpoint(at: Path, tier: str) -> None:
    """A tier of two experts for Mixtral's fixture."""
    at.mkdir()
    draw = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(2):
        of = f"tpad_tiers.{tier}.layers.{layer}"
        for expert in range(2):
            for name, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96))):
                made = torch.randn(shape, generator=draw).bfloat16()
                tensors[f"{of}.groups.0.experts.{expert}.{name}_proj.weight"] = made
        tensors[f"{of}.router.weight"] = torch.randn((2, 64), generator=draw).bfloat16()
    save_file(tensors, at / "model.safetensors")


def test_growth_changes_no_running_worker_until_it_adopts_it(tmp_path: Path) -> None:
    root = tmp_path / "model"
    shutil.copytree(FIXTURES["mixtral"], root)
    import_checkpoint(root, "m", tmp_path)
    tpad.publish.activate(root)
    tokens = prompt(30, rows=2)
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        model = tpad.transformers.load(client, "m", expert_budget="1GiB")
        with torch.no_grad():
            before = model(tokens).logits
        tier_checkpoint(tmp_path / "more", "more")
        tpad.publish.add_tier(
            root,
            tmp_path / "more",
            "more",
            budget=10**6,
            placement="object_store",
            k_expert=1,
            k_tier=2,
        )
        with client.watch("m") as masks:
            assert next(masks).revision == 1
            tpad.publish.activate(root, tiers=["base", "more"])
            assert [tier.tier for tier in next(masks).tiers] == ["base", "more"]
        model.tpad.cache.clear()
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, before), "the new tier leaked in"

        assert model.tpad.adopt() == ["base", "more"]
        with torch.no_grad():
            assert not torch.equal(model(tokens).logits, before)
        assert "more" in {key.tier for key in model.tpad.counters.fetched}

        # And back: the old set's outputs are the same bits after growth.
        assert model.tpad.adopt(["base"]) == ["base"]
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, before)
        old = tpad.transformers.load(client, "m", expert_budget="1GiB", tier_set=["base"])
        with torch.no_grad():
            assert torch.equal(old(tokens).logits, before)
        for worker in (model, old):
            worker.tpad.close()
        wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "leases are given back")


def test_a_worker_refuses_to_mix_the_weights_of_two_majors(tmp_path: Path) -> None:
    root = tmp_path / "model"
    write("mixtral", root / "first")
    write("mixtral", root / "second", seed=1)
    for version in ("first", "second"):
        tpad.publish.import_checkpoint(root / version, "m", out=root, state_dir=tmp_path / "state")
        if version == "first":
            tpad.publish.activate(root)
    bases = f'allowed_bases = ["{root}/first", "{root}/second"]'
    with (
        Daemon(tmp_path, {"m": root}, tail=bases) as daemon,
        tpad.connect(daemon.address) as client,
    ):
        model = tpad.transformers.load(client, "m", expert_budget="512KiB")
        with torch.no_grad():
            model(prompt(9))
        tpad.publish.activate(root, reason="a new major")
        wait_for(lambda: model.tpad.guard.changed, "the worker notices")
        with pytest.raises(tpad.transformers.ModelChanged, match="tier base, the dense tensors"):
            model(prompt(9, seed=2))
        with pytest.raises(tpad.transformers.ModelChanged, match="Load it again"):
            model.tpad.adopt()
        model.tpad.close()
        assert not model.tpad.guard._thread.is_alive()
        again = tpad.transformers.load(client, "m", expert_budget="1MiB")
        with torch.no_grad():
            assert torch.equal(
                again(prompt(9)).logits, unmodified(root / "second")(prompt(9)).logits
            )
        again.tpad.close()
