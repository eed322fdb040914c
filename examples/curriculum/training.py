"""Training the base, and a tier upon it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn import functional
from transformers import MixtralConfig, MixtralForCausalLM

from .grown import GrownBlock, TierShape, grow
from .text import Text

ROWS, LENGTH = 12, 96
#: How much the balance of the load counts beside the loss of the text.
BALANCE = 0.05


def small_config() -> MixtralConfig:
    """A Mixtral of half a million parameters, over bytes."""
    return MixtralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )


def text_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Nats for a byte."""
    logits = model(tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Text, rows: int = 24) -> float:
    """Nats for a byte of text that nothing was trained on."""
    model.eval()
    return float(text_loss(model, text.judged_by(rows, LENGTH)))


def train_base(text: Text, steps: int, seed: int = 0) -> MixtralForCausalLM:
    """A small model of one kind of text; the same one every time."""
    torch.manual_seed(seed)
    model = MixtralForCausalLM._from_config(small_config(), experts_implementation="eager")
    return run(model, text, steps, seed, list(model.parameters()), [], 0.0)


def train_tier(
    model: nn.Module, text: Text, steps: int, seed: int, *, balance: float = BALANCE
) -> list[GrownBlock]:
    """Trains a new tier and its heads upon a base that stays as it is."""
    blocks = grow(model, TierShape(), seed)
    new = [parameter for block in blocks for parameter in block.new.parameters()]
    run(model, text, steps, seed, new, blocks, balance)
    return blocks


def run(
    model: nn.Module,
    text: Text,
    steps: int,
    seed: int,
    parameters: list[nn.Parameter],
    blocks: list[GrownBlock],
    balance: float,
) -> nn.Module:
    """Trains some parameters of a model."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        loss = text_loss(model, text.batch(ROWS, LENGTH, draw))
        for block in blocks:
            loss = loss + balance * (block.imbalance() - 1) / len(blocks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def load_variation(model: nn.Module, blocks: list[GrownBlock], text: Text) -> float:
    """The coefficient of variation of the new experts' load on held-out text, over layers.

    0: all are used alike. With four experts and one for a token, 1.73: one has all of it.
    """
    held_out_loss(model, text)
    loads = [block.chosen for block in blocks]
    return float(torch.stack([load.std(correction=0) / load.mean() for load in loads]).mean())


def digest(parameters: dict[str, torch.Tensor]) -> str:
    """A digest of tensors and their names."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(parameters.items()):
        state.update(name.encode())
        state.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
