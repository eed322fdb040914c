"""What cannot run is refused in words that say what to do; nothing is imported unasked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torch

import tpad
import tpad.transformers
from serving import FIXTURES, Daemon, import_checkpoint
from tpad.transformers.load import bytes_of
from tpad.transformers.weights import Unpack, scaled


def test_importing_tpad_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, tpad, tpad.aio, tpad.publish, tpad.router;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def served(place: Path, change) -> Daemon:
    """A daemon on Qwen3-MoE's fixture with another config.json."""
    root = place / "model"
    shutil.copytree(FIXTURES["qwen3_moe"], root)
    config = json.loads((root / "config.json").read_text())
    change(config)
    (root / "config.json").write_text(json.dumps(config))
    import_checkpoint(root, "m", place)
    return Daemon(place, {"m": root})


def test_an_unsupported_family_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with served(
        tmp_path, lambda c: c.update(model_type="qwen2_moe", shared_expert_intermediate_size=0)
    ) as daemon:
        with tpad.connect(daemon.address) as client:
            with pytest.raises(
                tpad.transformers.UnsupportedFamily,
                match=r"'qwen2_moe'.*deepseek_v3, gpt_oss, mixtral, .*Client\.experts",
            ):
                tpad.transformers.load(client, "m", expert_budget="1MiB")


def test_a_configuration_of_another_model_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, lambda c: c.update(vocab_size=640)) as daemon:
        with tpad.connect(daemon.address) as client:
            with pytest.raises(tpad.transformers.MissingWeights, match=r"\(512, 64\).*\(640, 64\)"):
                tpad.transformers.load(client, "m", expert_budget="1MiB")


def test_a_layer_that_is_not_published_is_named(tmp_path: Path) -> None:
    with served(tmp_path, lambda c: c.update(num_hidden_layers=3)) as daemon:
        with tpad.connect(daemon.address) as client:
            with pytest.raises(tpad.NotFound, match="2"):
                tpad.transformers.load(client, "m", expert_budget="1MiB")


def test_an_unknown_tier_set_is_the_daemons_refusal(tmp_path: Path) -> None:
    with served(tmp_path, lambda c: None) as daemon, tpad.connect(daemon.address) as client:
        with pytest.raises(tpad.FailedPrecondition, match="other"):
            tpad.transformers.load(client, "m", expert_budget="1MiB", tier_set=["other"])


def test_a_budget_below_one_expert_says_so_at_the_first_step(tmp_path: Path) -> None:
    with served(tmp_path, lambda c: None) as daemon, tpad.connect(daemon.address) as client:
        model = tpad.transformers.load(client, "m", expert_budget="4KiB")
        with pytest.raises(
            tpad.transformers.BudgetTooSmall, match="expert_budget is 4096: raise it"
        ):
            model(torch.tensor([[5]]))
        model.tpad.close()


@pytest.mark.parametrize(
    ("size", "count"), [(5, 5), ("7", 7), ("1.5KiB", 1536), ("2 MiB", 2 << 20), ("3GiB", 3 << 30)]
)
def test_sizes(size: int | str, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", [0, -1, "8GB", "much", ""])
def test_what_is_no_size(size: int | str) -> None:
    with pytest.raises(ValueError, match="expert_budget="):
        bytes_of(size)


def test_scales_cover_the_cut_off_blocks_of_an_edge() -> None:
    weight = torch.ones(200, 130).to(torch.float8_e4m3fn)
    made = scaled(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.float32, (128, 128))
    assert made[0, 0] == 1 and made[0, 129] == 2 and made[199, 0] == 3 and made[199, 129] == 4
    with pytest.raises(tpad.transformers.UnsupportedWeights, match="200 x 130"):
        scaled(weight, torch.ones(1, 2), torch.float32, (128, 128))


def test_weights_that_are_not_understood_are_named() -> None:
    unpack = Unpack(torch.bfloat16)
    packed = torch.zeros(8, 4, dtype=torch.int32)
    with pytest.raises(
        tpad.transformers.UnsupportedWeights, match=r"gate is stored as torch\.int32"
    ):
        unpack({("gate", "weight"): packed})
    with pytest.raises(tpad.transformers.UnsupportedWeights, match="'zero_point'"):
        unpack({("gate", "zero_point"): packed})
