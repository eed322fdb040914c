"""The curriculum's example keeps the contract, whatever the seed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

import torch

from serving import REPOSITORY, program

sys.path.insert(0, str(REPOSITORY / "examples"))

import train_tier
from curriculum.text import prose
from curriculum.training import train_base

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base():
    """The base, trained once: it is the same every time."""
    return train_base(prose(), 250)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tier_that_is_trained_and_published_keeps_the_contract(
    seed: int, base, tmp_path: Path
) -> None:
    seen = train_tier.curriculum(
        tmp_path,
        program("tpad").parent,
        seed=seed,
        steps=120,
        with_joint=seed == 0,
        base=copy.deepcopy(base),
    )
    print(seen)
    # Held-out loss falls, where it was trained and in the worker that took the tier up.
    assert seen.worker_tiers == ["base", "code"]
    assert seen.worker_loss_before == pytest.approx(seen.base_loss, abs=1e-4)
    assert seen.worker_loss_after == pytest.approx(seen.grown_loss, abs=1e-4)
    assert seen.worker_loss_after < 0.9 * seen.worker_loss_before
    # The load on the new experts is more even than without the balancing loss.
    assert seen.load_variation < 0.7 * seen.load_variation_unbalanced
    # Nothing that existed changed: weights in training, bytes that are published, and outputs.
    assert seen.frozen_digests[0] == seen.frozen_digests[1]
    assert seen.published_digests[0] == seen.published_digests[1]
    assert seen.old_set_same
    assert seen.model_version == "1.1"
    if seed == 0:
        # What was trained jointly is no tier: it differs, by name, and is a new major.
        assert "differ" in seen.joint_refused, seen.joint_refused
        assert seen.joint_version == "2.0"
        assert seen.served_after_joint == 2


def test_digests_of_weights_tell_a_change(base) -> None:
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = train_tier.digest(weights)
    assert train_tier.digest(weights) == before
    next(iter(weights.values())).view(-1)[7] += 1e-3
    assert train_tier.digest(weights) != before
