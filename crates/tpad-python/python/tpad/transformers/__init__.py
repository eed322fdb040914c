"""Mixture-of-Experts models of transformers, with their experts served by tpad.

    import tpad, tpad.transformers

    client = tpad.connect()
    model = tpad.transformers.load(client, "mixtral", "cuda", expert_budget="8GiB")
    tokenizer = tpad.transformers.tokenizer(client, "mixtral")
    print(tokenizer.decode(model.generate(**tokenizer("Hello", return_tensors="pt"))[0]))

Importing it imports torch and transformers, which ``pip install tpad[transformers]`` brings.
`docs/transformers.md` says what is supported.
"""

from .errors import (
    BudgetTooSmall,
    MissingWeights,
    ModelChanged,
    UnsupportedFamily,
    UnsupportedWeights,
)
from .load import load, tokenizer
from .served import Memory, Served

__all__ = [
    "BudgetTooSmall",
    "Memory",
    "MissingWeights",
    "ModelChanged",
    "Served",
    "UnsupportedFamily",
    "UnsupportedWeights",
    "load",
    "tokenizer",
]
