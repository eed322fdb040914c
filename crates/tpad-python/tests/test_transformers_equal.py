"""A model with served experts computes what the unmodified model does, in less memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import torch

import tpad
import tpad.transformers
from checkpoints import greedy, prompt, unmodified, write
from serving import FIXTURES, Daemon, import_checkpoint, tpactl, wait_for
from transformers import FineGrainedFP8Config, Mxfp4Config

torch.set_num_threads(1)

FAMILIES = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"]


def published(place: Path, source: Path) -> Path:
    """A copy of a checkpoint, imported as model `m`."""
    root = place / "model"
    if source != root:
        shutil.copytree(source, root)
    import_checkpoint(root, "m", place)
    return root


def check(root: Path, model, reference) -> None:
    """Every weight, a batch's logits, and 64 greedy tokens with theirs, to the bit."""
    own, others = model.state_dict(), reference.state_dict()
    assert own, "a model without weights proves nothing"
    for name, tensor in own.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    tokens = prompt(23, rows=3)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, reference(tokens).logits)
    said, logits = greedy(model, tokens[:1])
    expected, of = greedy(reference, tokens[:1])
    assert torch.equal(said, expected)
    assert torch.equal(logits, of)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_larger_than_the_daemons_memory_says_the_same(family: str, tmp_path: Path) -> None:
    size = write(family, tmp_path / "model")
    root = published(tmp_path, tmp_path / "model")
    with (
        Daemon(tmp_path, {"m": root}, dram="2MiB") as daemon,
        tpad.connect(daemon.address) as client,
    ):
        assert size > 1.5 * (2 << 20), "the model has to be larger than the daemon's memory"
        largest = max(block_bytes(client))
        budget = 6 * largest
        model = tpad.transformers.load(client, "m", expert_budget=budget)
        check(root, model, unmodified(root))

        memory, counters = model.tpad.memory(), model.tpad.counters
        assert memory.dense == sum(t.nbytes for t in model.state_dict().values())
        assert 0 < memory.experts_peak <= budget
        assert counters.evictions > 0, "the budget was never reached"
        assert counters.picked <= counters.fetched <= counters.picked | counters.guessed
        # What the daemon keeps never was the whole model.
        arena = daemon.status()["store"]["arena"]
        assert arena["mapped"] <= arena["capacity"] == 2 << 20
        model.tpad.close()
        assert model.tpad.memory().experts == 0


@pytest.mark.parametrize("name", [*sorted(FIXTURES)])
def test_a_fixture_says_the_same(name: str, tmp_path: Path) -> None:
    root = published(tmp_path, FIXTURES[name])
    options = {}
    if name == "deepseek_v3_fp8":
        # transformers has no CPU kernel for FP8 and unpacks it when it loads: the same numbers.
        options["quantization_config"] = FineGrainedFP8Config(
            dequantize=True, weight_block_size=(128, 128)
        )
    with (
        Daemon(tmp_path, {"m": root}, dram="1MiB") as daemon,
        tpad.connect(daemon.address) as client,
    ):
        budget = 3 * max(block_bytes(client))
        model = tpad.transformers.load(client, "m", expert_budget=budget)
        check(root, model, unmodified(FIXTURES[name], **options))
        assert model.tpad.memory().experts_peak <= budget
        model.tpad.close()


def test_packed_weights_are_unpacked_as_transformers_does(tmp_path: Path) -> None:
    root = tmp_path / "model"
    sizes = "--hidden 64 --intermediate 64 --layers 2 --experts 8 --vocab 512"
    tpactl("synth", root, "--preset", "gpt-oss-20b", *sizes.split(), "--dtype", "mxfp4")
    published(tmp_path, root)
    with (
        Daemon(tmp_path, {"m": root}, dram="4MiB") as daemon,
        tpad.connect(daemon.address) as client,
    ):
        model = tpad.transformers.load(client, "m", expert_budget="100KiB")
        check(root, model, unmodified(root, quantization_config=Mxfp4Config(dequantize=True)))
        # What is held is what is stored: an expert of 25 thousand weights, four bits each.
        assert max(block_bytes(client)) < 25_000
        model.tpad.close()


def block_bytes(client: tpad.Client) -> list[int]:
    """The sizes of a layer's experts."""
    model = client.model("m")
    blocks = client.experts(model, list(model.keys(model.layers[-1]).values()))
    return [block.nbytes for block in blocks]


def test_without_handoff_and_on_another_machine_it_says_the_same(tmp_path: Path) -> None:
    root = published(tmp_path, FIXTURES["qwen3_moe"])
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.http_address) as client:
        model = tpad.transformers.load(client, expert_budget="128KiB")
        check(root, model, unmodified(root))
        assert model.tpad.memory().experts_peak <= 128 << 10
        model.tpad.close()


def test_distinct_blocks_fetched_are_those_picked_or_guessed(tmp_path: Path) -> None:
    write("olmoe", tmp_path / "model")
    root = published(tmp_path, tmp_path / "model")
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        model = tpad.transformers.load(client, "m", expert_budget="1GiB")
        before = tier_reads(daemon)
        greedy(model, prompt(5))
        model.tpad.close()
        counters = model.tpad.counters
        # With room for all of it nothing is fetched twice, and nothing that nobody wanted.
        assert counters.fetched == counters.picked | counters.guessed
        assert counters.fetches == len(counters.fetched)
        assert counters.evictions == 0
        assert len(counters.fetched) < 16 * 4, "every expert was wanted: it proves nothing"
        # The daemon counts the same: each was read once, and none besides.
        assert tier_reads(daemon) - before == len(counters.fetched)


@pytest.mark.parametrize("prefetch", [True, False])
def test_what_the_next_layer_is_likely_to_pick_is_there_before(
    prefetch: bool, tmp_path: Path
) -> None:
    # Weights so small that a layer changes little of what the next one sees.
    write("mixtral", tmp_path / "model", initializer_range=0.004)
    root = published(tmp_path, tmp_path / "model")
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        budget = 8 * max(block_bytes(client))
        model = tpad.transformers.load(client, "m", expert_budget=budget, prefetch=prefetch)
        with torch.no_grad():
            for token in prompt(60)[0]:
                model(token.view(1, 1), use_cache=False)
        counters, right = model.tpad.counters, model.tpad.store.right
        assert min(right[layer] for layer in (1, 2, 3)) > 0.6, right
        model.tpad.close()
        if not prefetch:
            assert counters.guesses == 0 and counters.guessed == set()
            return
        assert counters.guesses_used > 0.5 * counters.guesses > 20
        assert counters.fetched == counters.picked | counters.guessed
        assert model.tpad.memory().experts_peak <= budget


def test_two_workers_share_the_daemons_copy(tmp_path: Path) -> None:
    root = published(tmp_path, FIXTURES["mixtral"])
    with (
        Daemon(tmp_path, {"m": root}) as daemon,
        tpad.connect(daemon.address, worker="one") as first,
        tpad.connect(daemon.address, worker="two") as second,
    ):
        taken, said = [], []
        workers = [tpad.transformers.load(c, "m", expert_budget="1GiB") for c in (first, second)]
        for worker in workers:
            with torch.no_grad():
                said.append(worker(prompt(40)).logits)
            status = daemon.status()
            taken.append((status["leases"]["bytes"], status["store"]["arena"]["held"]))
        assert torch.equal(*said)
        held = workers[0].tpad.memory().experts
        assert held == workers[1].tpad.memory().experts > 0
        # Blocks that both hold are held once, and lie in memory once.
        assert taken[0] == taken[1] and taken[0][0] >= held
        for worker in workers:
            worker.tpad.close()
        wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "leases are given back")


def test_copies_are_the_workers_own(tmp_path: Path) -> None:
    root = published(tmp_path, FIXTURES["mixtral"])
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        model = tpad.transformers.load(client, "m", expert_budget="1GiB", in_place=False)
        check(root, model, unmodified(root))
        assert not model.tpad.in_place and model.tpad.memory().experts > 0
        wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "nothing is held")
        key = next(iter(model.tpad.counters.picked))
        index = model.tpad.store.keys[key.layer].index(key)
        ((_, weights),) = model.tpad.store.use(key.layer, [index])
        with client.experts("m", [key])[0] as block:
            assert weights.down.data_ptr() != block.by_role("down").address
        model.tpad.close()


def tier_reads(daemon: Daemon) -> int:
    """Blocks of the only tier that the daemon had read for requests."""
    (tier,) = daemon.status()["models"][0]["tiers"]
    return tier["reads"]["hits"] + tier["reads"]["misses"]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_on_the_cpu_are_the_daemons_own_memory(name: str, tmp_path: Path) -> None:
    root = published(tmp_path, FIXTURES[name])
    with Daemon(tmp_path, {"m": root}) as daemon, tpad.connect(daemon.address) as client:
        model = tpad.transformers.load(client, "m", expert_budget="1GiB")
        with torch.no_grad():
            model(prompt(40))
        key = next(iter(model.tpad.counters.picked))
        index = model.tpad.store.keys[key.layer].index(key)
        ((_, weights),) = model.tpad.store.use(key.layer, [index])
        with client.experts("m", [key])[0] as block:
            assert block.held
            assert weights.down.data_ptr() == block.by_role("down").address
        model.tpad.close()
