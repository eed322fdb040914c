"""The curriculum's step: a model grows by a tier, and nothing that exists changes.

    python examples/train_tier.py DIR [--programs DIR] [--seed N] [--joint]

1. A small Mixtral learns this repository's documents, byte by byte, and is published in
   DIR/model as the tier `base`. A daemon serves it and a worker runs it.
2. The base is frozen. A new tier of experts and its router heads learn the repository's
   code, with a loss that keeps the load on the experts even.
3. The tier is published with `tpad.publish` and activated. The worker, which watches its
   mask, takes it up as it runs. Digests show that nothing else changed, and a worker that
   asks for the old tiers says what it said, to the bit.
4. With --joint the base learns, too. That is no tier: `add_tier` refuses it, and it is
   published as a new major.

It takes minutes on a CPU and needs `tpad[transformers]` and the program `tpad`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import MixtralForCausalLM

import tpad
import tpad.publish

sys.path.insert(0, str(Path(__file__).parent))

from curriculum import joint
from curriculum.grown import tier_tensors
from curriculum.serving import Worker, daemon, logits_of_set
from curriculum.text import code, prose
from curriculum.training import (
    BALANCE,
    digest,
    held_out_loss,
    load_variation,
    train_base,
    train_tier,
)

NAME, TIER = "curriculum", "code"


@dataclass
class Outcome:
    """What a run showed."""

    #: Nats for a byte of held-out code: the base alone, the grown model where it was trained,
    #: and the worker before and after it took the tier up.
    base_loss: float = 0.0
    grown_loss: float = 0.0
    worker_loss_before: float = 0.0
    worker_loss_after: float = 0.0
    #: Coefficients of variation of the load on the new experts.
    load_variation: float = 0.0
    load_variation_unbalanced: float | None = None
    #: The base's weights in training, before and after.
    frozen_digests: list[str] = field(default_factory=list)
    #: The published base and dense tensors: names of their indexes, before and after.
    published_digests: list[tuple[str, str]] = field(default_factory=list)
    #: Whether the old TierSet's logits are the same bits before and after.
    old_set_same: bool = False
    worker_tiers: list[str] = field(default_factory=list)
    model_version: str = ""
    joint_refused: str = ""
    joint_version: str = ""
    served_after_joint: int = 0


def published(root: Path) -> tuple[str, str]:
    """The names of the indexes of the newest revision's base tier and dense tensors.

    An index is named by the digest of what it says, digests of all bytes included.
    """
    manifest = tpad.publish.history(root).revisions[-1]["manifest"]
    base = next(tier for tier in manifest["tiers"] if tier["id"] == "base")
    return base["index"]["digest"], manifest["dense"]["digest"]


def curriculum(
    place: Path,
    programs: Path | None = None,
    *,
    seed: int = 0,
    base_steps: int = 300,
    steps: int = 150,
    compare: bool = True,
    with_joint: bool = False,
    base: MixtralForCausalLM | None = None,
    say=print,
) -> Outcome:
    """All steps; `compare` trains the tier without the balancing loss, too.

    A `base` that was trained before is used as it is.
    """
    seen, text = Outcome(), code()
    root = place / "model"
    if base is None:
        say("training the base on the documents ...")
        base = train_base(prose(), base_steps)
    base.save_pretrained(root)
    tpad.publish.import_checkpoint(root, NAME, state_dir=place / "state")
    tpad.publish.activate(root)
    seen.base_loss = held_out_loss(base, text)
    seen.published_digests.append(published(root))
    tokens = text.judged_by(8, 64)

    with daemon(root, NAME, [place / "joint"], programs) as address:
        worker = Worker(address, NAME, text)
        seen.worker_loss_before = held_out_loss(worker.model, text)
        old = worker.logits(tokens)
        say(f"held-out code: {seen.worker_loss_before:.3f} nats a byte with the base")

        frozen = dict(base.state_dict())
        seen.frozen_digests.append(digest(frozen))
        if compare:
            again = copy.deepcopy(base)
            uneven = train_tier(again, text, steps, seed, balance=0.0)
            seen.load_variation_unbalanced = load_variation(again, uneven, text)
        say(f"training the tier, seed {seed} ...")
        blocks = train_tier(base, text, steps, seed, balance=BALANCE)
        seen.grown_loss = held_out_loss(base, text)
        seen.load_variation = load_variation(base, blocks, text)
        seen.frozen_digests.append(digest(frozen))

        (place / "tier").mkdir()
        save_file(tier_tensors(blocks, TIER), place / "tier" / "model.safetensors")
        added = joint.add(root, place / "tier", TIER, blocks)
        seen.model_version = added.model_version
        seen.published_digests.append(published(root))
        tpad.publish.activate(root, tiers=["base", TIER], reason="it reads code")
        seen.worker_tiers, seen.worker_loss_after = worker.news.get(timeout=120)
        say(
            f"held-out code: {seen.worker_loss_after:.3f} nats a byte in the worker, which runs "
            f"{' and '.join(seen.worker_tiers)} now; load varies by {seen.load_variation:.2f}"
            + (
                f", without the balancing loss by {seen.load_variation_unbalanced:.2f}"
                if compare
                else ""
            )
        )
        new = logits_of_set(address, NAME, ["base"], tokens)
        seen.old_set_same = torch.equal(old, new)
        say(f"the old tiers say what they said, to the bit: {seen.old_set_same}")

        if with_joint:
            say("training all of it ...")
            joint.tune(base, blocks, text, max(20, steps // 4), seed)
            at = place / "joint"
            seen.joint_refused, major = joint.publish(root, at, NAME, TIER, base, blocks)
            seen.joint_version = major.model_version
            say(f"as a tier it is refused: {seen.joint_refused[:200]} ...")
            say(
                f"published as version {seen.joint_version}; {seen.model_version} is served until "
                "it is activated"
            )
            seen.served_after_joint = tpad.connect(address).model(NAME).revision
        worker.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", type=Path, help="a directory to make")
    parser.add_argument("--programs", type=Path, help="where tpad is, if not on the path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150, help="of the tier's training")
    parser.add_argument("--joint", action="store_true", help="tune the base, too, as a new major")
    options = parser.parse_args()
    options.place.mkdir(parents=True)
    seen = curriculum(
        options.place.resolve(),
        options.programs,
        seed=options.seed,
        steps=options.steps,
        with_joint=options.joint,
    )
    print(seen)


if __name__ == "__main__":
    main()
