"""Tuning the base and the new tier together: what breaks workers, and so is a new major."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import tpad
import tpad.publish

from .grown import GrownBlock, tier_tensors
from .text import Text
from .training import BALANCE, run


def tune(model: nn.Module, blocks: list[GrownBlock], text: Text, steps: int, seed: int) -> None:
    """Lets everything learn, the base included."""
    model.requires_grad_(True)
    run(model, text, steps, seed, list(model.parameters()), blocks, BALANCE)


def flat_tensors(model: nn.Module, blocks: list[GrownBlock]) -> dict[str, torch.Tensor]:
    """All weights as one checkpoint of Mixtral's layout: the new experts after the base's."""
    tensors = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if ".mlp." not in name
    }
    for number, block in enumerate(blocks):
        at = f"model.layers.{number}.block_sparse_moe"
        base = block.base
        tensors[f"{at}.gate.weight"] = torch.cat([base.gate.weight, block.new.head]).detach()
        gate_up = torch.cat([base.experts.gate_up_proj, block.new.gate_up]).detach()
        down = torch.cat([base.experts.down_proj, block.new.down]).detach()
        for expert in range(len(down)):
            gate, up = gate_up[expert].chunk(2)
            tensors[f"{at}.experts.{expert}.w1.weight"] = gate.contiguous()
            tensors[f"{at}.experts.{expert}.w3.weight"] = up.contiguous()
            tensors[f"{at}.experts.{expert}.w2.weight"] = down[expert].contiguous()
    return tensors


def publish(
    root: Path, at: Path, name: str, tier: str, model: nn.Module, blocks: list[GrownBlock]
) -> tuple[str, tpad.publish.Imported]:
    """Tries to add the tuned weights as a tier, which is refused, and publishes a new major.

    Returns why they were refused, and what was published.
    """
    at.mkdir()
    tensors = flat_tensors(model, blocks)
    dense = {k: v for k, v in tensors.items() if ".block_sparse_moe." not in k}
    (at / "tier").mkdir()
    save_file(dense | tier_tensors(blocks, "tuned"), at / "tier" / "model.safetensors")
    try:
        add(root, at / "tier", "tuned", blocks)
    except tpad.TpadError as refused:
        why = str(refused)
    else:
        raise RuntimeError("weights that differ were taken for the model's own")
    save_file(tensors, at / "model.safetensors")
    config = dict(model.config.to_dict())
    count = model.config.num_local_experts
    config["num_local_experts"] = count + blocks[0].shape.experts
    model.config.__class__.from_dict(config).save_pretrained(at)
    plan = PLAN.format(tier=tier, last=count - 1, first=count, end=config["num_local_experts"] - 1)
    return why, tpad.publish.import_checkpoint(at, name, plan=plan, out=root)


def add(root: Path, at: Path, tier: str, blocks: list[GrownBlock]) -> tpad.publish.Added:
    """Publishes a tier whose tensors lie in a directory."""
    shape = blocks[0].shape
    parameters = sum(block.new.gate_up.numel() + block.new.down.numel() for block in blocks)
    return tpad.publish.add_tier(
        root,
        at,
        tier,
        budget=parameters,
        placement="dram",
        k_expert=shape.per_token,
        # A token uses both tiers while this one is active.
        k_tier=2,
    )


PLAN = """
default_tier_set = ["base"]
[[tiers]]
id = "base"
k_tier = 1
k_expert = 2
[[tiers.groups]]
experts = "0-{last}"
[[tiers]]
id = "{tier}"
k_tier = 2
k_expert = 1
[[tiers.groups]]
experts = "{first}-{end}"
"""
