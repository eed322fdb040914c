"""Two kinds of text that this repository has: its documents, and its code. Tokens are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
#: Bytes of each kind; more is more to learn from and no more to wait for.
MOST = 600_000


@dataclass(frozen=True)
class Text:
    """Bytes to train on, and others to be judged by."""

    train: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(cls, *patterns: str) -> Text:
        """The files that match, in the order of their names, a tenth of them held out."""
        files = sorted({path for pattern in patterns for path in REPOSITORY.glob(pattern)})
        if not files:
            raise FileNotFoundError(f"{REPOSITORY} has no {' or '.join(patterns)}")
        whole = b"".join(path.read_bytes() for path in files)[:MOST]
        tokens = torch.frombuffer(bytearray(whole), dtype=torch.uint8).long()
        cut = len(tokens) * 9 // 10
        return cls(tokens[:cut], tokens[cut:])

    def batch(self, rows: int, length: int, draw: torch.Generator) -> torch.Tensor:
        """Windows of the training text."""
        starts = torch.randint(len(self.train) - length, (rows,), generator=draw)
        return torch.stack([self.train[start : start + length] for start in starts])

    def judged_by(self, rows: int, length: int) -> torch.Tensor:
        """The same windows of the held-out text every time, spread over it."""
        step = (len(self.held_out) - length) // rows
        return torch.stack([self.held_out[n * step : n * step + length] for n in range(rows)])


def prose() -> Text:
    """What the base learns."""
    return Text.of("docs/*.md", "*.md")


def code() -> Text:
    """What the new tier is for."""
    return Text.of("crates/tpad-manifest/src/**/*.rs", "crates/tpad-index/src/**/*.rs")
