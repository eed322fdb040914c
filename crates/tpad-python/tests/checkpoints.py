"""Checkpoints of the supported families, larger than the fixtures, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from serving import FIXTURES
from transformers import AutoConfig, AutoModelForCausalLM, OlmoeConfig, PreTrainedModel

#: What makes a fixture's configuration one of some megabytes, so that a daemon's memory,
#: which is 1 MiB at least, can be smaller than its model.
LARGER = {
    "mixtral": {"num_hidden_layers": 4, "intermediate_size": 256, "hidden_size": 128},
    "qwen3_moe": {"num_hidden_layers": 4, "moe_intermediate_size": 192, "hidden_size": 128},
    "deepseek_v3": {"num_hidden_layers": 5, "moe_intermediate_size": 192, "hidden_size": 128},
    "gpt_oss": {
        "num_hidden_layers": 4,
        "intermediate_size": 192,
        "hidden_size": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


def configuration(family: str):
    """A family's configuration, large enough."""
    if family == "olmoe":
        return OlmoeConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=16,
            num_experts_per_tok=4,
            max_position_embeddings=256,
            pad_token_id=0,
            eos_token_id=None,
            dtype="bfloat16",
        )
    config = AutoConfig.from_pretrained(FIXTURES[family])
    for name, value in LARGER[family].items():
        setattr(config, name, value)
    return config


def write(family: str, root: Path, seed: int = 0, **changes: object) -> int:
    """Saves random weights in the family's layout; returns the bytes of the shards.

    Weights are ten times wider than a fresh model's, so that tokens differ in what they pick
    and in what they say.
    """
    config = configuration(family)
    config.initializer_range = 0.2
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(root, max_shard_size="1MB")
    return sum(path.stat().st_size for path in root.glob("*.safetensors"))


def unmodified(root: Path, **options: object) -> PreTrainedModel:
    """transformers' own model, with its eager experts, which are what is compared with."""
    options.setdefault("dtype", "auto")
    return AutoModelForCausalLM.from_pretrained(
        root, experts_implementation="eager", **options
    ).eval()


def prompt(count: int, rows: int = 1, seed: int = 1, vocab: int = 512) -> torch.Tensor:
    """Tokens."""
    return torch.randint(3, vocab, (rows, count), generator=torch.Generator().manual_seed(seed))


def greedy(model: PreTrainedModel, tokens: torch.Tensor, count: int = 64):
    """So many greedy tokens, with the logits that chose each."""
    said = model.generate(
        tokens,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return said.sequences[:, tokens.shape[1] :], torch.stack(said.logits, 1)
