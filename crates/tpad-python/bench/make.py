"""A Mixtral-shaped checkpoint of random weights, written as fast as the disk takes it.

Random routers pick every expert equally often, and then no cache is better than its size.
So the routers here have a taste: one channel of the hidden state is nearly constant, and
the routers' weights for it are the logarithms of a Zipf law, in another order for each
layer. What is left of the logits depends on the token. The law is made up; it is no
recorded traffic.
"""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Shape:
    """What the model is like."""

    layers: int = 9
    hidden: int = 4096
    inner: int = 14336
    experts: int = 8
    per_token: int = 2
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    zipf: float = 1.0
    seed: int = 0

    @property
    def expert_bytes(self) -> int:
        """One expert's three matrices in BF16."""
        return 3 * self.hidden * self.inner * 2

    @property
    def experts_bytes(self) -> int:
        return self.layers * self.experts * self.expert_bytes

    def config(self) -> dict:
        """config.json."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.per_token,
            "vocab_size": self.vocab,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "transformers_version": "5.0.0",
        }


#: The constant channel's value beside others of deviation 1, and the deviation of weights.
CONSTANT, DEVIATION = 4.0, 0.012
#: The deviation of the part of the routers' logits that depends on the token: with it the
#: best of logits drawn around the logarithm of p is picked about as often as p says.
NOISE = 1.28


def shapes_of_layer(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    at, hidden, kv = (
        f"model.layers.{layer}",
        shape.hidden,
        shape.hidden // shape.heads * shape.kv_heads,
    )
    tensors = {
        f"{at}.input_layernorm.weight": (hidden,),
        f"{at}.post_attention_layernorm.weight": (hidden,),
        f"{at}.self_attn.q_proj.weight": (hidden, hidden),
        f"{at}.self_attn.k_proj.weight": (kv, hidden),
        f"{at}.self_attn.v_proj.weight": (kv, hidden),
        f"{at}.self_attn.o_proj.weight": (hidden, hidden),
        f"{at}.block_sparse_moe.gate.weight": (shape.experts, hidden),
    }
    for expert in range(shape.experts):
        of = f"{at}.block_sparse_moe.experts.{expert}"
        tensors[f"{of}.w1.weight"] = (shape.inner, hidden)
        tensors[f"{of}.w2.weight"] = (hidden, shape.inner)
        tensors[f"{of}.w3.weight"] = (shape.inner, hidden)
    return tensors


def value(name: str, size: tuple[int, ...], shape: Shape, draw: torch.Generator) -> torch.Tensor:
    """A tensor of the model, on the generator's device."""
    device = draw.device
    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=torch.bfloat16, device=device)
    made = torch.randn(size, generator=draw, device=device, dtype=torch.bfloat16)
    if name.endswith("embed_tokens.weight"):
        made[:, 0] = CONSTANT
        return made
    if name.endswith("gate.weight"):
        made *= NOISE / shape.hidden**0.5
        order = torch.randperm(shape.experts, generator=draw, device=device)
        ranks = torch.arange(1, shape.experts + 1, device=device, dtype=torch.float32)
        taste = -shape.zipf * ranks.log()
        made[order, 0] = (taste / CONSTANT).to(torch.bfloat16)
        return made
    return made * DEVIATION


def write_shard(
    path: Path, tensors: dict[str, tuple[int, ...]], shape: Shape, device: str, seed: int
) -> None:
    """A safetensors file, one tensor in memory at a time."""
    header, at = {}, 0
    for name, size in tensors.items():
        count = 2
        for axis in size:
            count *= axis
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = torch.Generator(device=device).manual_seed(seed)
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in tensors.items():
            made = value(name, size, shape, draw).cpu().contiguous()
            rest = memoryview(made.view(torch.uint8).numpy()).cast("B")
            while rest:
                rest = rest[file.write(rest) :]


def make(root: Path, shape: Shape, device: str, threads: int) -> None:
    """Writes the checkpoint: a shard for each layer and one for what is around them."""
    root.mkdir(parents=True)
    around = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
        "lm_head.weight": (shape.vocab, shape.hidden),
    }
    shards = [around] + [shapes_of_layer(shape, layer) for layer in range(shape.layers)]
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(write_shard, root / name, tensors, shape, device, shape.seed + n)
            for n, (name, tensors) in enumerate(zip(names, shards, strict=True))
        ]
        for job in jobs:
            job.result()
    weights = {
        tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors
    }
    index = {"metadata": {"shape": asdict(shape)}, "weight_map": weights}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text(json.dumps(shape.config(), indent=1))
