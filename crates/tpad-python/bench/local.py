"""A model whose dense weights come from the checkpoint's files and experts from a store here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from tpad.transformers import dense
from tpad.transformers.experts import ServedExperts
from tpad.transformers.families import family_of


def load_local(root: Path, device: torch.device, store) -> torch.nn.Module:
    """The unmodified model, but for the store of its experts."""
    config, block_size, dtype = dense.read_config(str(root))
    family = family_of(config.model_type)
    model = dense.skeleton(config, dtype, None)
    blocks = list(family.blocks(model))
    assign = dense.Assign(model, device, dtype, block_size)
    weights = json.loads((root / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in weights.items():
        if ".experts." in name:
            continue
        with safe_open(root / file, framework="pt") as shard:
            assign.put(name.replace("block_sparse_moe", "mlp"), shard.get_tensor(name))
    for layer, block in blocks:
        block.experts = ServedExperts(block.experts, store, layer, transposed=family.transposed)
    dense.finish(model, device)
    return model
