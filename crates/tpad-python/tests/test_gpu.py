"""Tensors on a GPU: run on a machine with one, by `TPAD_TEST_GPU=0 pytest test_gpu.py`.

`TPAD_TEST_GPU` is the device's index. `cargo xtask python` runs these where there is a driver, too.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tpad

from serving import FIXTURES, Daemon, import_checkpoint, wait_for

GPU = os.environ.get("TPAD_TEST_GPU", "0" if Path("/dev/nvidiactl").exists() else None)
pytestmark = pytest.mark.skipif(GPU is None, reason="there is no GPU here")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a GPU level."""
    place = tmp_path_factory.mktemp("gpu")
    models = {}
    for name in FIXTURES:
        models[name] = place / name
        shutil.copytree(FIXTURES[name], models[name])
        import_checkpoint(models[name], name, place)
    with Daemon(place, models, tail='[levels.hbm]\ncapacity = "256MiB"\n') as daemon:
        yield daemon


def pending() -> int:
    """Blocks that were let go of and wait for the device's work."""
    return sum(count for _, count in tpad._tpad.pending())


def held(daemon: Daemon) -> int:
    workers = daemon.status()["leases"]["workers"]
    return sum(w["device_bytes"] for w in workers if w["pid"] == os.getpid())


def test_what_is_expected_comes_to_the_device_and_is_not_held(serving: Daemon) -> None:
    def there() -> int:
        return sum(device["blocks"] for device in serving.status()["hbm"]["devices"])

    with tpad.connect(serving.address, handoff="required") as client:
        model = client.model("mixtral")
        keys = list(model.keys(model.layers[0]).values())[:4]
        before = there()
        assert client.expect_experts(model, keys, device=f"cuda:{GPU}")
        wait_for(lambda: there() == before + len(keys), "they have come")
        assert held(serving) == 0
        assert client.expect_experts(model, [], device=f"cuda:{GPU}")
        for block in client.experts(model, keys, device=f"cuda:{GPU}"):
            assert block.level == "hbm"


def test_tensors_on_the_device_equal_the_hosts(serving: Daemon) -> None:
    import torch

    client = tpad.connect(serving.address, handoff="required")
    assert client.devices
    for name in sorted(FIXTURES):
        model = client.model(name)
        for layer in model.layers:
            keys = list(model.keys(layer).values())
            here = client.experts(model, keys)
            there = client.experts(model, keys, device=f"cuda:{GPU}")
            for host, device in zip(here, there, strict=True):
                assert device.held and device.device == f"cuda:{GPU}" and device.id == host.id
                assert list(device) == list(host)
                for tensor, on_gpu in zip(host.values(), device.values(), strict=True):
                    view = on_gpu.torch()
                    assert view.is_cuda and view.data_ptr() == on_gpu.address
                    assert view.dtype == tensor.torch().dtype and view.shape == tensor.torch().shape
                    bytes_of = view.contiguous().view(torch.uint8).flatten().cpu().numpy()
                    assert bytes_of.tobytes() == bytes(tensor.raw()), tensor
                    assert on_gpu.__dlpack_device__() == (2, int(str(GPU)))
                    with pytest.raises(BufferError):
                        on_gpu.raw()
                    with pytest.raises(TypeError):
                        on_gpu.numpy()
    named: list[Any] = [f"cuda:{GPU}", int(str(GPU)), torch.device("cuda", int(str(GPU)))]
    for device in named:
        assert client.expert("mixtral", "base", 0, 0, 0, device=device).held


def test_a_lease_lasts_as_long_as_the_work_that_was_submitted(serving: Daemon) -> None:
    import torch

    client = tpad.connect(serving.address, handoff="required")
    gc.collect()
    wait_for(lambda: held(serving) == 0, "what earlier tests held is given back")
    block = client.expert("mixtral", "base", 0, 1, 1, device=f"cuda:{GPU}")
    view = block.by_role("gate").torch()
    expected = view.clone()
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        # Memory and kernels first: to get them may wait for all that is under way.
        copy = view + 0
        torch.cuda._sleep(1)
        other.synchronize()
        # About a second of work, and then a read of the block.
        torch.cuda._sleep(int(2e9))
        torch.add(view, 0, out=copy)
        # Before this is there, the block's last work is not over.
        end = torch.cuda.Event()
        end.record()
    start = time.monotonic()
    del view, block
    gc.collect()
    dropped, waits, over = time.monotonic() - start, pending(), end.query()
    assert not over, "launching waited for the work, so this shows nothing"
    assert dropped < 0.2, "dropping does not wait"
    assert waits > 0 and held(serving) > 0, "the lease went before the work was over"
    other.synchronize()
    assert torch.equal(copy, expected)
    wait_for(lambda: held(serving) == 0 and pending() == 0, "it is given back")


def test_the_router_stays_on_the_device_and_selects_alike(serving: Daemon) -> None:
    import torch

    import json

    from test_router import VECTORS, floats, mask_of, rows
    from tpad.router import Router, TierLogits

    for file in (file for file in VECTORS if file.stem.startswith(("shape", "fixture"))):
        for case in json.loads(file.read_text()):
            biases = case.get("correction_bias")
            logits = np.stack([floats(token["tiers"][0]["logits"]) for token in case["tokens"]])
            bias = torch.from_numpy(floats(biases[0])).cuda() if biases else None
            inputs = [TierLogits(torch.from_numpy(logits).cuda(), bias)]
            routed = Router(case["scoring"]).route(mask_of(case), inputs)
            assert routed.weight.is_cuda
            on_host = type(routed)(*(getattr(routed, n).cpu() for n in routed.__annotations__))
            ulps = 4 if case["scoring"]["function"] == "sqrt_softplus" else 0
            for token, (names, weights) in zip(case["tokens"], rows(on_host), strict=True):
                assert names == token["experts"], case["source"]
                expected = floats(token["weights"]).view(np.int32).astype(np.int64)
                apart = np.abs(weights.view(np.int32).astype(np.int64) - expected)
                assert apart.max() <= ulps, (file.stem, case["source"], apart.max())
