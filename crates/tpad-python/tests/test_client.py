"""What a client says of models, and how its calls end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

import tpad
import tpad.__main__
import tpad.aio
from tpad import BlockKey

from serving import FIXTURES, Daemon, wait_for


def test_models_say_what_they_are(client: tpad.Client) -> None:
    models = {model.name: model for model in client.models()}
    assert set(models) == set(FIXTURES)
    assert all(model.state == "serving" for model in models.values())
    model = client.model("mixtral")
    assert (model.revision, model.layers, list(model.tiers)) == (1, [0, 1], ["base"])
    assert model.tiers["base"].experts == 8 and model.tiers["base"].k_expert == 2
    assert model.config()["model_type"] == "mixtral"
    assert client.files(model) == model.files
    assert client.file(model, "config.json") == (FIXTURES["mixtral"] / "config.json").read_bytes()
    assert model.manifest["model"] == "mixtral"
    with pytest.raises(tpad.NotFound, match="does not have one model"):
        client.model()


def test_an_engines_expert_has_a_key_and_the_reverse(client: tpad.Client) -> None:
    for name in FIXTURES:
        model = client.model(name)
        for layer in model.layers:
            keys = model.keys(layer)
            for expert, key in keys.items():
                assert model.key(layer=layer, source_expert=expert) == key
                assert model.source(key) == expert
                block = client.expert(model, *key)
                assert block.source_expert == expert
                assert block.router_column == model.router_column(key)
    with pytest.raises(tpad.NotFound, match="at layer 99"):
        model.key(layer=99, source_expert=0)
    with pytest.raises(tpad.NotFound, match="expert 999"):
        model.key(layer=model.layers[0], source_expert=999)
    with pytest.raises(tpad.NotFound):
        model.source(("no", 0, 0, 0))


def test_batches_come_in_the_order_asked_for(client: tpad.Client, remote: tpad.Client) -> None:
    for source in (client, remote):
        keys = [BlockKey("base", 0, expert, layer) for expert in (7, 0, 3) for layer in (1, 0)]
        keys.append(keys[0])
        blocks = source.experts("mixtral", keys)
        assert [block.key for block in blocks] == keys
        assert source.experts("mixtral", []) == []
        assert blocks[0].id == blocks[-1].id


def test_a_batch_can_be_begun_and_waited_for_later(
    client: tpad.Client, remote: tpad.Client, daemon: Daemon
) -> None:
    keys = [BlockKey("base", 0, expert, 1) for expert in (5, 2)]
    for source in (client, remote, client):
        pending = source.begin_experts("mixtral", keys)
        wait_for(pending.done, "the blocks have come")
        blocks = pending.wait()
        assert [block.key for block in blocks] == keys
        assert [b.id for b in blocks] == [b.id for b in source.experts("mixtral", keys)]
        with pytest.raises(ValueError, match="taken"):
            pending.wait()
        assert pending.done()
    absent = client.begin_experts("mixtral", [("base", 0, 99, 0)])
    with pytest.raises(tpad.NotFound, match="99"):
        absent.wait()
    with pytest.raises(ValueError, match="taken"):
        absent.wait()
    with pytest.raises(tpad.DeadlineExceeded):
        remote.begin_experts("mixtral", keys, timeout=0).wait()
    cancelled = client.begin_experts("mixtral", keys)
    cancelled.cancel()
    with pytest.raises(ValueError, match="cancelled"):
        cancelled.wait()
    for turn in range(50):
        # Dropped before it is there, or with what came.
        dropped = client.begin_experts("mixtral", [("base", 0, turn % 8, 0)])
        if turn % 2:
            wait_for(dropped.done, "it has come")
    del dropped, blocks
    gc.collect()
    wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "nothing is held")


def test_nothing_is_expected_where_no_memory_of_a_gpu_is_handed_over(
    client: tpad.Client, remote: tpad.Client
) -> None:
    if client.devices:
        pytest.skip("there is a GPU")
    for source in (client, remote):
        assert not source.expect_experts("mixtral", [("base", 0, 1, 0)], device="cuda:0")
        assert not source.expect_experts("mixtral", [], device="cpu")
        with pytest.raises(ValueError, match="tpu"):
            source.expect_experts("mixtral", [], device="tpu")


def test_two_threads_cannot_wait_for_one_batch(client: tpad.Client) -> None:
    pending = client.begin_experts("mixtral", [("base", 0, 1, 0)])
    came: list[object] = []

    def wait() -> None:
        try:
            came.append(pending.wait())
        except ValueError as error:
            came.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(came) == 4 and sum(isinstance(one, list) for one in came) == 1


def test_what_does_not_exist_is_named_with_what_does(
    client: tpad.Client, remote: tpad.Client
) -> None:
    for source in (client, remote):
        with pytest.raises(tpad.NotFound, match="base") as caught:
            source.expert("mixtral", "no", 0, 0, 0)
        error = caught.value
        assert isinstance(error, tpad.TpadError) and isinstance(error, LookupError)
        assert error.kind == "not_found" and error.code == 5 and "exists" in error.remedy
        assert error.reason == "TIER_NOT_FOUND"
        # A socket that hands memory over numbers no requests.
        assert ("request_id" in error.metadata) == (source is remote)
        with pytest.raises(tpad.NotFound):
            source.experts("mixtral", [("base", 0, 0, 0), ("base", 0, 99, 0)])
        with pytest.raises(tpad.NotFound):
            source.router("mixtral", "base", 99)
        with pytest.raises(tpad.NotFound):
            source.dense("mixtral", ["no"])
        with pytest.raises(tpad.NotFound, match="config.json") as caught:
            source.file("mixtral", "no")
        assert caught.value.reason == "FILE_NOT_FOUND"
        assert caught.value.metadata["request_id"]


def test_wrong_arguments_are_refused(daemon: Daemon, client: tpad.Client) -> None:
    with pytest.raises(TypeError, match="tier"):
        client.expert("mixtral", 1.5, 0, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="BlockKey"):
        client.experts("mixtral", [("base", 0, 0)])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        client.expert("mixtral", "base", -1, 0, 0)
    with pytest.raises(ValueError, match="cuda"):
        client.expert("mixtral", "base", 0, 0, 0, device="tpu")
    with pytest.raises(ValueError, match="handoff"):
        tpad.connect(daemon.address, handoff="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time"):
        client.models(timeout=-1)
    with pytest.raises(tpad.InvalidArgument, match="scheme"):
        tpad.connect("localhost")
    with pytest.raises(tpad.InvalidArgument) as caught:
        client.mask("mixtral", [str(tier) for tier in range(5000)])
    assert caught.value.field == "tier_set" and caught.value.reason == "REQUEST_INVALID"


def test_nobody_answers(tmp_path: object) -> None:
    start = time.monotonic()
    with pytest.raises(tpad.Disconnected) as caught:
        tpad.connect("http://127.0.0.1:1")
    assert isinstance(caught.value, (tpad.Unavailable, ConnectionError))
    assert "runs" in caught.value.remedy and time.monotonic() - start < 5
    with pytest.raises(tpad.Disconnected):
        tpad.connect(f"unix://{tmp_path}/no.sock")


def test_handoff_is_what_was_asked_for(daemon: Daemon) -> None:
    with tpad.connect(daemon.address) as client:
        assert client.handoff and client.why_no_handoff is None and client.lease_bytes
        assert client.devices == []
        with pytest.raises(tpad.GpuError):
            client.expert("mixtral", "base", 0, 0, 0, device="cuda:0")
    with tpad.connect(daemon.address, handoff="off") as client:
        assert not client.handoff and "off" in str(client.why_no_handoff)
        assert not client.expert("mixtral", "base", 0, 0, 0).held
    with tpad.connect(daemon.address, handoff_socket="/nowhere.sock") as client:
        assert "nowhere" in str(client.why_no_handoff)
        assert not client.expert("mixtral", "base", 0, 0, 0).held
    with pytest.raises(tpad.Unavailable, match="no handoff"):
        tpad.connect(daemon.http_address, handoff="required")


def test_what_may_not_be_held_is_received(tmp_path: object, daemon: Daemon) -> None:
    """A worker that holds all that it may gets copies; one that asked for handoff is told."""
    import shutil
    from pathlib import Path

    from serving import import_checkpoint

    place = Path(str(tmp_path))
    root = place / "mixtral"
    shutil.copytree(FIXTURES["mixtral"], root)
    import_checkpoint(root, "mixtral", place)
    bound = '[handoff]\nlease_bytes = "64KiB"\n'
    with Daemon(place, {"mixtral": root}, tail=bound) as own:
        with tpad.connect(own.address) as client:
            blocks = [client.expert("mixtral", "base", 0, expert, 0) for expert in range(4)]
            assert [block.held for block in blocks] == [True, False, False, False]
            blocks[0].release()
            wait_for(
                lambda: client.expert("mixtral", "base", 0, 3, 0).held, "there is room again"
            )
        with tpad.connect(own.address, handoff="required") as client:
            first = client.expert("mixtral", "base", 0, 0, 0)
            with pytest.raises(tpad.ResourceExhausted) as caught:
                client.expert("mixtral", "base", 0, 1, 0)
            assert "release" in caught.value.remedy and first.held


def test_prefetch_brings_blocks_to_memory(client: tpad.Client) -> None:
    model = client.model("qwen3_moe")
    keys = list(model.keys(model.layers[0]).values())
    prefetch = client.prefetch(model, keys)
    said = prefetch.wait(timeout=20)
    assert said["asked"]["blocks"] == len(keys)
    assert said["there"]["blocks"] + said["fetched"]["blocks"] == len(keys)
    assert prefetch.done()
    costs = client.mask(model, resident="dram", layers=[model.layers[0]])
    assert {c for g in costs.costs(model.layers[0])[0] for c in g} == {"dram"}
    cancelled = client.prefetch(model, keys)
    cancelled.cancel()
    try:
        cancelled.wait(timeout=20)
    except tpad.Cancelled:
        pass
    with pytest.raises(tpad.NotFound):
        client.prefetch(model, [("no", 0, 0, 0)]).wait(timeout=20)


def test_masks_say_what_may_be_picked(client: tpad.Client) -> None:
    mask = client.mask("mixtral")
    (tier,) = mask.tiers
    assert (tier.tier, tier.k_expert, tier.experts) == ("base", 2, [8])
    assert tier.allowed() == b"\1" * 8 and mask.revision == 1 and mask.etag
    assert tier.sources(0) == [[(n, n) for n in range(8)]]
    assert client.mask("mixtral", sources=False).tiers[0].sources(0) is None
    assert client.mask("mixtral", ["base", "no"]).masked[0][:2] == ("no", "unknown_tier")
    assert client.mask("mixtral", {"up_to": "base"}).tiers[0].tier == "base"
    with pytest.raises(tpad.NotFound):
        client.mask("mixtral", "no such set")
    with pytest.raises(ValueError, match="resident"):
        mask.costs(0)
    with client.watch("mixtral") as watch:
        assert next(watch).etag == mask.etag


def test_a_deadline_ends_a_call(client: tpad.Client) -> None:
    with pytest.raises(tpad.DeadlineExceeded) as caught:
        client.models(timeout=0)
    assert isinstance(caught.value, TimeoutError)


def test_asyncio_has_the_same(daemon: Daemon) -> None:
    async def main() -> None:
        async with await tpad.aio.connect(daemon.address, handoff="required") as client:
            model = await client.model("mixtral")
            keys = list(model.keys(0).values())
            blocks = await asyncio.gather(*(client.expert(model, *key) for key in keys))
            assert [block.key for block in blocks] == keys and all(b.held for b in blocks)
            assert len(await client.experts(model, keys)) == len(keys)
            assert len(await client.dense(model)) == model.dense_tensors
            assert (await client.router(model, "base", 0)).held
            assert (await client.prefetch(model, keys).wait())["asked"]["blocks"] == len(keys)
            assert (await client.status())["version"] == tpad.__version__
            assert await client.files(model) == model.files
            with pytest.raises(tpad.NotFound):
                await client.file(model, "no")
            async with await client.watch(model) as watch:
                mask = await anext(aiter(watch))
                assert mask.etag == (await client.mask(model)).etag
                waiting = asyncio.ensure_future(anext(aiter(watch)))
                await asyncio.sleep(0)
                # Others have their turn meanwhile.
                assert (await client.models())[0].name
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            with pytest.raises(tpad.DeadlineExceeded):
                await client.models(timeout=0)
        with pytest.raises(tpad.Disconnected):
            await tpad.aio.connect("http://127.0.0.1:1")

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_lease(daemon: Daemon) -> None:
    async def main() -> None:
        async with await tpad.aio.connect(daemon.address, handoff="required") as client:
            for _ in range(50):
                calls = [
                    asyncio.ensure_future(client.experts("mixtral", [("base", 0, expert, 1)]))
                    for expert in range(8)
                ]
                await asyncio.sleep(0)
                for call in calls[::2]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            del calls

    asyncio.run(main())
    gc.collect()
    wait_for(lambda: daemon.status()["leases"]["bytes"] == 0, "nothing is held")


def test_python_m_tpad_says_what_it_is_connected_to(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tpad.__main__.main([daemon.address]) == 0
    said = capsys.readouterr().out
    assert f"daemon   tpad {tpad.__version__} at {daemon.address}" in said
    assert "handoff  yes" in said and "devices  none" in said and "level    dram:" in said
    assert "model    mixtral: revision 1" in said and "tier   base (default): 8 experts" in said
    assert tpad.__main__.main([daemon.http_address]) == 0
    assert "handoff  no: memory is handed over on one machine" in capsys.readouterr().out
    assert tpad.__main__.main(["http://127.0.0.1:1"]) == 1
    assert "remedy: check that the daemon runs" in capsys.readouterr().err
