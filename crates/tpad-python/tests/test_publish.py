"""Publishing from Python: import, growth, activation, and a daemon that follows."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpad
import tpad.publish as publish

from serving import FIXTURES, HEARS_CTRL_C, Daemon, tpactl


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of a checkpoint, which nobody has imported."""
    root = tmp_path / "mixtral"
    shutil.copytree(FIXTURES["mixtral"], root)
    return root


def new_tier(place: Path, spoil: bool = False) -> Path:
    """A checkpoint with four more experts at each layer, by names of their own (docs/tiers.md)."""
    place.mkdir()
    random = np.random.default_rng(5)
    tensors = {}
    for layer in range(2):
        block = f"model.layers.{layer}.block_sparse_moe"
        for expert in range(4):
            for name, shape in (("w1", (96, 64)), ("w2", (64, 96)), ("w3", (96, 64))):
                value = random.normal(size=shape).astype(np.float16)
                tensors[f"{block}.experts.{expert}.{name}.weight"] = value
        tensors[f"{block}.gate.weight"] = random.normal(size=(4, 64)).astype(np.float16)
    if spoil:
        tensors["lm_head.weight"] = np.zeros((4, 4), np.float16)
    save_file(tensors, place / "model.safetensors")
    return place


def test_an_import_says_what_tpactl_says(root: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    tried = publish.import_checkpoint(root, "m", dry_run=True, state_dir=tmp_path / "state")
    assert tried.outcome == "dry_run" and not (root / "tpad").exists()
    done = publish.import_checkpoint(
        root, "m", state_dir=tmp_path / "state", progress=lambda *news: told.append(news)
    )
    assert (done.outcome, done.revision, done.layout) == ("written", 1, tried.layout)
    assert done.blocks == tried.blocks and done.manifest["model"] == "m"
    phases = {phase: (at, total) for phase, at, total in told}
    assert phases["digests"][0] == phases["digests"][1] > 0
    assert phases["headers"][0] == phases["headers"][1] == 5
    again = publish.import_checkpoint(root, "m", state_dir=tmp_path / "state")
    assert again.outcome == "unchanged"
    assert json.loads(tpactl("manifest", "show", str(root), "--json")) == done.manifest
    assert publish.history(root).active == 1


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tpad.TpadError) as caught:
        publish.import_checkpoint(tmp_path, "m")
    assert caught.value.kind in {"not_found", "failed_precondition", "data_loss"}
    with pytest.raises(ValueError, match="plan"):
        publish.import_checkpoint(tmp_path, "m", plan="no = [")


def test_an_exception_of_progress_ends_the_work(root: Path) -> None:
    def refuse(phase: str, done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        publish.import_checkpoint(root, "m", state_dir=root.parent / "state", progress=refuse)


def test_a_tier_is_added_activated_and_seen_by_a_worker(root: Path, tmp_path: Path) -> None:
    publish.import_checkpoint(root, "mixtral", state_dir=tmp_path / "state")
    tier = new_tier(tmp_path / "new")
    with Daemon(tmp_path, {"mixtral": root}) as daemon:
        client = tpad.connect(daemon.address, handoff="required")
        before = client.model("mixtral")
        old = {key: client.expert(before, *key).id for key in before.keys(0).values()}
        arguments = {"budget": 10**6, "placement": "dram", "k_expert": 2}
        tried = publish.add_tier(root, tier, "new", dry_run=True, **arguments)
        assert tried.outcome == "dry_run"
        with pytest.raises(tpad.TpadError, match="budget"):
            publish.add_tier(root, tier, "new", **{**arguments, "budget": 10})
        added = publish.add_tier(root, tier, "new", **arguments)
        assert (added.outcome, added.revision, added.blocks) == ("written", 2, 10)
        assert added.parameters == 2 * 4 * 3 * 96 * 64
        assert added.changes["effect"] is not None
        assert publish.add_tier(root, tier, "new", **arguments).outcome == "unchanged"
        watch = client.watch("mixtral")
        assert [t.tier for t in next(watch).tiers] == ["base"]
        assert publish.activate(root, 1, reason="as it is").activation == 1
        record = publish.activate(root, 2, tiers=["base", "new"], reason="a test")
        assert (record.revision, record.default_tier_set) == (2, ["base", "new"])
        assert [t.tier for t in next(watch).tiers] == ["base", "new"]
        model = client.model("mixtral")
        assert list(model.tiers) == ["base", "new"] and model.revision == 2
        block = client.expert(model, "new", 0, 3, 1)
        wanted = load_file(tier / "model.safetensors")
        for name, tensor in block.items():
            assert (tensor.numpy() == wanted[name]).all()
        # What was there is what it was, and found by the checkpoint's numbers as before.
        assert {key: client.expert(model, *key).id for key in old} == old
        assert model.keys(0) == before.keys(0)
        back = publish.rollback(root, reason="another")
        assert (back.activation, back.revision) == (3, 1)
        assert [t.tier for t in next(watch).tiers] == ["base"]
        history = publish.history(root)
        assert [r["revision"] for r in history.revisions] == [1, 2]
        assert [r.reason for r in history.activations][-1] == "another"


def test_a_changed_old_weight_is_refused(root: Path, tmp_path: Path) -> None:
    publish.import_checkpoint(root, "mixtral", state_dir=tmp_path / "state")
    with pytest.raises(tpad.TpadError, match="lm_head") as caught:
        publish.add_tier(
            root,
            new_tier(tmp_path / "new", spoil=True),
            "new",
            budget=10**6,
            placement="dram",
            k_expert=2,
        )
    assert "frozen" in caught.value.remedy
    assert publish.history(root).active == 1


def test_ctrl_c_leaves_no_revision(tmp_path: Path) -> None:
    root = tmp_path / "large"
    root.mkdir()
    # Large enough that digesting it takes a while.
    intermediate, hidden, experts = 60000, 64, 8
    config = json.loads((FIXTURES["mixtral"] / "config.json").read_text())
    config |= {"intermediate_size": intermediate, "num_hidden_layers": 1}
    (root / "config.json").write_text(json.dumps(config))
    block = "model.layers.0.block_sparse_moe"
    tensors = {f"{block}.gate.weight": np.zeros((experts, hidden), np.float32)}
    for expert in range(experts):
        for name in ("w1", "w3"):
            shape = (intermediate, hidden)
            tensors[f"{block}.experts.{expert}.{name}.weight"] = np.zeros(shape, np.float32)
        shape = (hidden, intermediate)
        tensors[f"{block}.experts.{expert}.w2.weight"] = np.zeros(shape, np.float32)
    save_file(tensors, root / "model.safetensors")
    script = """
        import sys, tpad.publish
        def progress(phase, done, total):
            if phase == "digests":
                print("digests", flush=True)
        try:
            tpad.publish.import_checkpoint(
                sys.argv[1], "m", state_dir=sys.argv[2], progress=progress)
        except KeyboardInterrupt:
            print("interrupted")
        """
    worker = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C + textwrap.dedent(script), root, tmp_path / "state"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdout.readline() == "digests\n"
    worker.send_signal(signal.SIGINT)
    out, _ = worker.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted", out
    assert not (root / "tpad" / "revisions").exists()
