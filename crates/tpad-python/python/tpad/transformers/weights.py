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

    def of(self, part: str) -> torch.Tensor:
        """A part that the family's experts have."""
        found: torch.Tensor | None = getattr(self, part)
        if found is None:
            raise UnsupportedWeights(f"an expert has no {part}, which its model type needs")
        return found


ROLES = ("gate", "up", "down", "gate_up")


class Unpack:
    """Turns a block's tensors into matrices of the type that a model computes in."""

    def __init__(self, dtype: torch.dtype, block_size: tuple[int, int] | None = None) -> None:
        self.dtype = dtype
        self.block_size = block_size

    def __call__(self, tensors: Mapping[tuple[str, str], torch.Tensor]) -> ExpertWeights:
        """``tensors`` are a block's, by role and part."""
        made = {}
        for (role, part), tensor in tensors.items():
            if role not in ROLES or part not in ("weight", "scale", "bias"):
                raise UnsupportedWeights(
                    f"an expert has a tensor of role {role!r}, part {part!r}; what is understood "
                    f"are weights, scales and biases of {', '.join(ROLES)}"
                )
            if part == "weight":
                made[role] = self.matrix(role, tensor, tensors.get((role, "scale")))
            elif part == "bias":
                made[f"{role}_bias"] = tensor.to(self.dtype)
        return ExpertWeights(**made)

    def matrix(self, role: str, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """The matrix that a weight stands for; the weight itself where it is one."""
        if scale is None and weight.is_floating_point() and weight.dtype.itemsize > 1:
            return weight.to(self.dtype)
        if scale is not None and weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            return scaled(weight, scale, self.dtype, self.block_size)
        if scale is not None and weight.dtype == torch.uint8 and weight.dim() == 3:
            # Only checkpoints with packed weights need it.
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            return convert_moe_packed_tensors(weight[None], scale[None], dtype=self.dtype)[0]
        raise UnsupportedWeights(
            f"an expert's {role} is stored as {weight.dtype}, {tuple(weight.shape)}, "
            f"{'with' if scale is not None else 'without'} scales; understood are float types, "
            "FP8 with scales of blocks, and MXFP4 as gpt-oss has it"
        )


def is_plain(tensors: Mapping[tuple[str, str], torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether nothing is computed when these are unpacked."""
    return all(tensor.dtype == dtype for tensor in tensors.values())


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
