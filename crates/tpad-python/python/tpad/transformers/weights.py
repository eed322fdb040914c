"""One expert's tensors as matrices that transformers' arithmetic takes.

Blocks of a checkpoint hold an expert in the way it was stored: three matrices or two,
with biases or scales. Here they are told apart by role, and what is quantized is
unpacked when it is used, so that a cache holds the stored bytes and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .errors import UnsupportedWeights


@dataclass(frozen=True)
class ExpertWeights:
    """Matrices of one expert, ``[out, in]`` unless its family is transposed."""

    down: torch.Tensor
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


#: How checkpoints call the parts of an expert, by the end of what follows the expert's
#: place in a tensor's name.
PARTS = {
    "w1": "gate",
    "w2": "down",
    "w3": "up",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
}
SUFFIXES = ("weight_scale_inv", "weight", "blocks", "scales", "bias")


def part_of(name: str) -> tuple[str, str]:
    """The part of an expert that a tensor is, and what of it: ``("gate", "weight")``."""
    for suffix in SUFFIXES:
        for joint in (".", "_"):
            if name.endswith(joint + suffix):
                part = name[: -len(suffix) - 1].rsplit(".", 1)[-1]
                if part in PARTS:
                    return PARTS[part], suffix
    last = name.rsplit(".", 1)[-1]
    if last in PARTS:
        return PARTS[last], "weight"
    raise UnsupportedWeights(
        f"tensor {name!r} is no part of an expert that is understood here: "
        f"{', '.join(sorted(PARTS))}, with {', '.join(SUFFIXES)} or without"
    )


class Unpack:
    """Turns a block's tensors into matrices of the type that a model computes in."""

    def __init__(self, dtype: torch.dtype, block_size: tuple[int, int] | None = None) -> None:
        self.dtype = dtype
        self.block_size = block_size

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> ExpertWeights:
        """``tensors`` are a block's, by name."""
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, what = part_of(name)
            parts.setdefault(part, {})[what] = tensor
        made = {part: self.matrix(part, stored) for part, stored in parts.items()}
        made |= {
            f"{part}_bias": stored["bias"].to(self.dtype)
            for part, stored in parts.items()
            if "bias" in stored
        }
        return ExpertWeights(**made)

    def matrix(self, part: str, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The matrix that a part's tensors stand for; the tensor itself where it is one."""
        if "blocks" in stored:
            # Only checkpoints with packed weights need it.
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            blocks, scales = stored["blocks"][None], stored["scales"][None]
            return convert_moe_packed_tensors(blocks, scales, dtype=self.dtype)[0]
        weight = stored["weight"]
        if "weight_scale_inv" in stored:
            return scaled(weight, stored["weight_scale_inv"], self.dtype, self.block_size)
        if weight.dtype.itemsize < 2:
            raise UnsupportedWeights(
                f"an expert's {part} is stored as {weight.dtype} without weight_scale_inv; "
                "supported are float types, FP8 with block scales and MXFP4"
            )
        return weight.to(self.dtype)


def scaled(
    weight: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    block_size: tuple[int, int] | None,
) -> torch.Tensor:
    """A matrix of FP8 times the scale of each of its blocks, rounded once.

    The last block of a row or a column may be cut off by the matrix's edge.
    """
    rows, columns = weight.shape
    height, width = block_size or (-(-rows // scale.shape[0]), -(-columns // scale.shape[1]))
    whole = scale.float().repeat_interleave(height, 0).repeat_interleave(width, 1)
    if whole.shape[0] < rows or whole.shape[1] < columns:
        raise UnsupportedWeights(
            f"scales {tuple(scale.shape)} of {height} x {width} blocks do not cover a matrix of "
            f"{rows} x {columns}"
        )
    return (weight.float() * whole[:rows, :columns]).to(dtype)
