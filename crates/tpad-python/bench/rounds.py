"""Timed decoding, one system after the other in every round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def settle(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class System:
    """One way to run the model, with a sequence of its own that goes on from round to round."""

    name: str
    model: torch.nn.Module
    #: Bytes that were copied to the device so far, where that is known.
    missed: Callable[[], int]
    #: Tokens of a round that it runs; slow ones run fewer.
    tokens: int
    #: Called when its turn is over.
    leave: Callable[[], None] = lambda: None
    cache: object = None
    at: int = 0
    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    error: str = ""

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """The logits after one more token."""
        from transformers import DynamicCache

        if self.cache is None:
            self.cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            out = self.model(input_ids=token.view(1, 1), cache=self.cache, use_cache=True)
        return out.logits[0, -1]

    def run(self, tokens: torch.Tensor, device: torch.device, *, timed: bool) -> torch.Tensor:
        """Runs tokens; the logits after the last."""
        tokens = tokens.to(device)
        before = self.missed()
        settle(device)
        begun = time.perf_counter()
        for token in tokens:
            logits = self.step(token)
            # A worker has to know what to feed next before it goes on.
            int(logits.argmax())
        settle(device)
        spent = time.perf_counter() - begun
        if timed:
            self.seconds.append(spent / len(tokens))
            self.bytes.append((self.missed() - before) // len(tokens))
        return logits

    def result(self) -> dict:
        """Medians over rounds."""
        if not self.seconds:
            return {"system": self.name, "error": self.error}
        per_token = statistics.median(self.seconds)
        return {
            "system": self.name,
            "error": self.error,
            "seconds_per_token": per_token,
            "tokens_per_second": 1 / per_token,
            "missed_bytes_per_token": statistics.mean(self.bytes),
            "mean_seconds_per_token": statistics.mean(self.seconds),
            "rounds": self.seconds,
            "missed_rounds": self.bytes,
        }


def interleaved(
    systems: list[System],
    vocab: int,
    rounds: int,
    warm: int,
    device: torch.device,
    until: float,
    copy_rate: Callable[[], float],
) -> tuple[list[float], dict[str, float]]:
    """Runs every system in every round on the same tokens, each in another order.

    Returns the copy rates that were measured before each round, and how far each system's
    first logits are from those of the first system, as a part of the largest.
    """
    draw = torch.Generator().manual_seed(7)
    rates, first = [], {}
    lead = None
    for number in range(-1, rounds):
        if time.monotonic() > until:
            break
        # A system that runs fewer tokens is given the same tokens from the same place.
        tokens = torch.randint(3, vocab, (max(s.tokens for s in systems),), generator=draw)
        rates.append(copy_rate())
        turn = number % len(systems)
        for system in systems[turn:] + systems[:turn]:
            if system.error:
                continue
            try:
                if number >= 0:
                    system.run(tokens[: system.tokens], device, timed=True)
                    system.leave()
                    continue
                # All of them after the same tokens; the rest is to fill their caches.
                logits = system.run(tokens[:2], device, timed=False).float()
                lead = logits if lead is None else lead
                first[system.name] = float((logits - lead).abs().max() / lead.abs().max())
                if system.tokens > 2:
                    system.run(tokens[2 : min(system.tokens, warm)], device, timed=False)
                system.leave()
            except Exception as error:
                system.error = f"{type(error).__name__}: {error}"
    return rates, first


def plain_copy_rate(nbytes: int, device: torch.device) -> Callable[[], float]:
    """Bytes a second of plain copies of pinned memory, as large as an expert."""
    pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    pinned.fill_(1)
    place = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def measure() -> float:
        rates = []
        for _ in range(5):
            settle(device)
            begun = time.perf_counter()
            place.copy_(pinned, non_blocking=True)
            settle(device)
            rates.append(nbytes / (time.perf_counter() - begun))
        return statistics.median(rates)

    return measure
