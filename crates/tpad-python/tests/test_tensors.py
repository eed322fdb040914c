"""Every tensor of every fixture, held and received, against safetensors' own reading."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import tpad

from serving import FIXTURES, Daemon, wait_for


def slabs() -> list[range]:
    """Where this process has memory of the daemon mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *_ = line.split()
        if "/memfd:tpad" in line and permissions.startswith("r--s"):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found.append(range(begin, end))
    return found


def all_blocks(client: tpad.Client, name: str) -> Iterator[tuple[int | None, tpad.Tensor]]:
    """Every tensor of a model, with the expert of the checkpoint that it is."""
    model = client.model(name)
    for tier in model.tiers.values():
        for layer in model.layers:
            keys = [
                (tier.id, group, expert, layer)
                for group, facts in enumerate(tier.groups)
                for expert in range(facts.experts)
            ]
            for block in client.experts(model, keys):
                for tensor in block.values():
                    yield block.source_expert, tensor
            for tensor in client.router(model, tier.id, layer).values():
                yield None, tensor
    for tensor in client.dense(model).values():
        yield None, tensor


def original(name: str) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor, as safetensors has them."""
    tensors = {}
    for shard in FIXTURES[name].glob("*.safetensors"):
        with safe_open(shard, framework="np") as file:
            names = list(file.keys())
        from safetensors import deserialize

        for key, facts in deserialize(shard.read_bytes()):
            assert key in names
            tensors[key] = (facts["dtype"], list(facts["shape"]), bytes(facts["data"]))
    return tensors


def f32_of(client: tpad.Client) -> tpad.Tensor:
    """A tensor of a type that everybody has."""
    model = client.model("deepseek_v3_fp8")
    tensor = client.expert(model, *model.key(model.layers[0], 1)).by_role("gate", "scale")
    assert tensor.dtype == "F32"
    return tensor


def cut(facts: tuple[str, list[int], bytes], expert: int) -> tuple[str, list[int], bytes]:
    """One expert of a stacked tensor."""
    dtype, (experts, *shape), data = facts
    each = len(data) // experts
    return dtype, shape, data[expert * each : (expert + 1) * each]


@pytest.mark.parametrize("way", ["held", "received"])
@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_every_tensor_equals_the_checkpoints(
    name: str, way: str, client: tpad.Client, remote: tpad.Client
) -> None:
    expected = original(name)
    seen: dict[str, int] = {}
    source = client if way == "held" else remote
    for expert, tensor in all_blocks(source, name):
        facts = expected[tensor.name]
        if tensor.sliced:
            assert expert is not None
            facts = cut(facts, expert)
        assert (tensor.dtype, list(tensor.shape)) == facts[:2], tensor
        assert tensor.raw() == facts[2], tensor
        assert tensor.nbytes == len(facts[2])
        array = tensor.numpy()
        assert array.shape == tensor.shape and array.tobytes() == facts[2]
        assert not array.flags.owndata and not array.flags.writeable
        if way == "held":
            assert any(tensor.address in slab for slab in slabs()), tensor
            assert tensor.address % 256 == 0
        else:
            assert not any(tensor.address in slab for slab in slabs()), tensor
        assert array.__array_interface__["data"][0] == tensor.address
        seen[tensor.name] = seen.get(tensor.name, 0) + tensor.nbytes
    # Nothing is missing, and nothing came twice.
    assert seen == {key: len(data) for key, (_, _, data) in expected.items()}


def test_torch_sees_the_same_memory(client: tpad.Client) -> None:
    import torch

    for name in sorted(FIXTURES):
        for _, tensor in all_blocks(client, name):
            there = tensor.torch()
            assert there.data_ptr() == tensor.address and there.device.type == "cpu"
            assert tuple(there.shape) == tensor.shape
            flat = there.contiguous().view(torch.uint8).flatten()
            assert flat.numpy().tobytes() == bytes(tensor.raw()), tensor


def test_dlpack_is_read_by_numpy_and_torch(client: tpad.Client) -> None:
    import torch

    name, model = "qwen3_moe", client.model("qwen3_moe")
    tensor = next(iter(client.expert(model, *model.key(model.layers[0], 0)).values()))
    assert tensor.__dlpack_device__() == (1, 0)
    there = torch.from_dlpack(tensor)
    assert there.data_ptr() == tensor.address and there.dtype == torch.bfloat16, name
    scale = f32_of(client)
    array = np.from_dlpack(scale)  # type: ignore[arg-type]
    assert array.__array_interface__["data"][0] == scale.address
    assert array.tobytes() == bytes(scale.raw()) and not array.flags.writeable
    assert "versioned" in repr(scale.__dlpack__(max_version=(1, 0)))
    assert "versioned" not in repr(scale.__dlpack__())
    with pytest.raises(BufferError):
        scale.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError):
        scale.__dlpack__(copy=True)


def test_views_cannot_be_written_to(client: tpad.Client, remote: tpad.Client) -> None:
    for source in (client, remote):
        tensor = f32_of(source)
        array = tensor.numpy()
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError):
            array.flags.writeable = True
        with pytest.raises(TypeError, match="read-only"):
            tensor.raw()[0] = 0  # type: ignore[index]
        with pytest.raises((BufferError, TypeError)):
            (ctypes.c_char * tensor.nbytes).from_buffer(tensor)
        assert memoryview(tensor).readonly and memoryview(tensor).shape == tensor.shape
        owned = array.copy()
        owned[...] = 0
        assert array.tobytes() == bytes(tensor.raw()) != owned.tobytes()


def test_a_write_by_torch_does_not_reach_the_daemon(daemon: Daemon, client: tpad.Client) -> None:
    model = client.model("mixtral")
    key = model.key(model.layers[0], 0)
    before = bytes(next(iter(client.expert(model, *key).values())).raw())
    script = (
        "import sys, tpad\n"
        "client = tpad.connect(sys.argv[1], handoff='required')\n"
        f"tensor = next(iter(client.expert('mixtral', *{tuple(key)}).values())).torch()\n"
        "own = tensor.clone()\n"
        "own.zero_()\n"
        "print('cloned', flush=True)\n"
        "tensor.zero_()\n"
        "print('written')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, daemon.address], capture_output=True, text=True, check=False
    )
    assert run.stdout == "cloned\n" and run.returncode < 0, run
    assert bytes(next(iter(client.expert(model, *key).values())).raw()) == before


def test_roles_and_types_say_what_a_tensor_is(client: tpad.Client) -> None:
    model = client.model("gpt_oss")
    block = client.expert(model, *model.key(model.layers[0], 1))
    fused = block.by_role("gate_up")
    assert fused.gate_up == "interleaved" and fused.orientation == "in_out" and fused.sliced
    assert block.by_role("gate_up", "bias").shape == (fused.shape[1],)
    with pytest.raises(KeyError, match="there are gate_up weight"):
        block.by_role("gate")
    model = client.model("deepseek_v3_fp8")
    block = client.expert(model, *model.key(model.layers[-1], 0))
    assert block.by_role("down").dtype == "F8_E4M3"
    assert block.by_role("down", "scale").dtype == "F32"
    array = block.by_role("down").numpy()
    assert array.dtype.name == "float8_e4m3fn"
    with pytest.raises(BufferError, match="ml_dtypes"):
        memoryview(block.by_role("down"))
    # NumPy goes on to `__array__`, which knows the type.
    assert np.asarray(block.by_role("down")).dtype == array.dtype
    assert np.asarray(block.by_role("down", "scale"), dtype=np.float64).dtype == np.float64


def test_a_block_is_a_mapping(client: tpad.Client) -> None:
    model = client.model("mixtral")
    block = client.expert(model, *model.key(model.layers[0], 2))
    names = list(block)
    assert len(block) == len(names) == 3 == len(block.items()) and block.keys() == names
    assert names[0] in block and "x" not in block and 3 not in block
    assert block[names[1]].name == names[1]
    assert block.get("x") is None and block.get("x", 7) == 7
    with pytest.raises(KeyError):
        block["x"]
    from collections.abc import Mapping

    assert isinstance(block, Mapping)
    assert block.key == model.key(model.layers[0], 2) and block.source_expert == 2
    assert len(block.id) == 64 and block.level in ("dram", "object_store") and block.held
    assert block.device == "cpu" and block.nbytes >= sum(t.nbytes for t in block.values())


def held(daemon: Daemon) -> int:
    """Leases and direct holds of this process, in bytes."""
    import os

    workers = daemon.status()["leases"]["workers"]
    mine = [worker for worker in workers if worker["pid"] == os.getpid()]
    return sum(worker["bytes"] + worker["direct_bytes"] for worker in mine)


@pytest.mark.parametrize("last", ["block", "tensor", "array", "memoryview", "capsule", "torch"])
def test_the_lease_ends_with_the_last_view(
    last: str, daemon: Daemon, client: tpad.Client
) -> None:
    gc.collect()
    wait_for(lambda: held(daemon) == 0, "what earlier tests held is given back")
    model = client.model("mixtral")
    key = model.key(model.layers[1], 5)
    # Once with the daemon's word, and then by its directory.
    for _ in range(2):
        block = client.expert(model, *key)
        tensor = block.by_role("down")
        kept: Any = {
            "block": lambda: block,
            "tensor": lambda: tensor,
            "array": lambda: tensor.numpy()[3:5].T,
            "memoryview": lambda: tensor.raw()[10:20],
            "capsule": lambda: tensor.__dlpack__(max_version=(1, 0)),
            "torch": lambda: tensor.torch()[1].view(-1),
        }[last]()
        if last != "block":
            block.release()
            assert block.released
            with pytest.raises(ValueError, match="released"):
                block.by_role("down")
        del block, tensor
        gc.collect()
        wait_for(lambda: held(daemon) > 0, "it is held")
        del kept
        wait_for(lambda: held(daemon) == 0, "it is given back")


def test_a_context_manager_releases(daemon: Daemon, client: tpad.Client) -> None:
    model = client.model("mixtral")
    with client.expert(model, *model.key(model.layers[0], 0)) as block:
        assert "held" in repr(block)
    assert block.released and "released" in repr(block)
    wait_for(lambda: held(daemon) == 0, "it is given back")


def test_views_outlive_the_client_and_the_daemon(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from serving import import_checkpoint

    root = tmp_path / "mixtral"
    shutil.copytree(FIXTURES["mixtral"], root)
    import_checkpoint(root, "mixtral", tmp_path)
    with Daemon(tmp_path, {"mixtral": root}) as own:
        client = tpad.connect(own.address, handoff="required")
        model = client.model()
        block = client.expert(model, *model.key(model.layers[0], 0))
        array = block.by_role("gate").numpy()
        before = array.tobytes()
        client.close()
        with pytest.raises(ValueError, match="closed"):
            client.models()
        own.kill()
        assert array.tobytes() == before
        # The next daemon is attached to, by a client that was there before it.
        waiting = None
        own.start()
        waiting = tpad.connect(own.address, handoff="required")
        own.kill()
        own.start()
        wait_for(
            lambda: waiting.expert(model, *model.key(model.layers[0], 0)).held,
            "the next daemon hands over",
        )
        assert array.tobytes() == before
