"""Which model families can run with served experts, and what differs between them.

A family says where transformers keeps a layer's router and experts. Everything else
of a model (attention, norms, shared experts, the block around the experts) is
transformers' own code, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import UnsupportedFamily


@dataclass(frozen=True)
class Family:
    """What a model type calls the parts of its sparse blocks."""

    model_type: str
    #: The attribute of a sparse block that holds its router.
    router: str = "gate"
    #: Whether an expert's matrices lie as ``[in, out]``, gate and up alternating, with biases.
    transposed: bool = False

    def blocks(self, model: Any) -> Iterator[tuple[int, Any]]:
        """The layers that have experts: their numbers and their sparse blocks."""
        for number, layer in enumerate(model.model.layers):
            if hasattr(layer.mlp, "experts"):
                yield number, layer.mlp


FAMILIES = {
    family.model_type: family
    for family in (
        Family("mixtral"),
        Family("qwen3_moe"),
        Family("olmoe"),
        Family("deepseek_v3"),
        Family("gpt_oss", router="router", transposed=True),
    )
}


def family_of(model_type: str) -> Family:
    """The family of a configuration's ``model_type``."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedFamily(
            f"model type {model_type!r} cannot run with served experts; supported are {known}. "
            "Load it with transformers as usual, or fetch its experts with tpad.Client.experts"
        ) from None
