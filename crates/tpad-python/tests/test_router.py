"""The router over the vectors that the Rust client's is held to, for NumPy and for PyTorch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tpad
from tpad.router import Routed, Router, TierLogits, gather

from serving import REPOSITORY

VECTORS = sorted((REPOSITORY / "crates/tpad-client/tests/vectors").glob("*.json"))


def floats(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytes.fromhex(text), ">f4").astype(np.float32)


def mask_of(case: dict[str, Any]) -> tpad.Mask:
    def bits(group: dict[str, Any]) -> list[bool]:
        raw = bytes.fromhex(group["bits"])
        return [bool(raw[n // 8] >> n % 8 & 1) for n in range(group["experts"])]

    tiers = [
        (tier["tier"], tier["k_group"], tier["k_expert"], [bits(g) for g in tier["groups"]])
        for tier in case["mask"]["tiers"]
    ]
    return tpad.Mask.build(case["mask"]["k_tier"], tiers)


def numpy_array(array: np.ndarray[Any, Any]) -> Any:
    return array


def torch_tensor(array: np.ndarray[Any, Any]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def rows(routed: Routed) -> list[tuple[list[list[int]], np.ndarray[Any, Any]]]:
    columns = [np.asarray(c) for c in (routed.tier, routed.group, routed.expert)]
    weights = np.asarray(routed.weight)
    found = []
    for token, count in enumerate(np.asarray(routed.count).tolist()):
        names = np.stack([column[token] for column in columns], 1)
        assert (names[count:] == -1).all() and (weights[token, count:] == 0).all()
        found.append((names[:count].tolist(), weights[token, :count].astype(np.float32)))
    return found


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_tokens_route_as_the_vectors_say(file: Any, kind: str) -> None:
    convert: Callable[[Any], Any] = torch_tensor if kind == "torch" else numpy_array
    for case in json.loads(file.read_text()):
        mask = mask_of(case)
        biases = [convert(floats(bias)) for bias in case.get("correction_bias", [])]
        # Tokens that are routed together: all that have the same inputs, and an outcome.
        batches = defaultdict(list)
        for token in case["tokens"]:
            shape = json.dumps([sorted(given) for given in token["tiers"]])
            batches[shape, token.get("error"), "seed" in token].append(token)
        for (_, error, seeded), tokens in batches.items():
            tiers = []
            for place in range(len(mask.tiers)):
                given = [token["tiers"][place] for token in tokens]

                def stacked(what: str, given: Any = given) -> Any:
                    return convert(np.stack([floats(one[what]) for one in given]))

                tiers.append(
                    TierLogits(
                        stacked("logits"),
                        biases[place] if biases else None,
                        stacked("groups") if "groups" in given[0] else None,
                        stacked("tier")[:, 0] if "tier" in given[0] else None,
                    )
                )
            seeds = [int(token["seed"], 16) for token in tokens] if seeded else None
            if error:
                with pytest.raises(tpad.TpadError) as caught:
                    Router(case["scoring"]).route(mask, tiers, seed=seeds)
                assert caught.value.reason.lower() == error
                continue
            routed = Router(case["scoring"]).route(mask, tiers, seed=seeds)
            ulps = case.get("ulps", 0)
            if kind == "torch" and case["scoring"]["function"] == "sqrt_softplus":
                ulps = max(ulps, 4)
            for token, (names, weights) in zip(tokens, rows(routed), strict=True):
                assert names == token["experts"], case["source"]
                expected = floats(token["weights"]).view(np.int32).astype(np.int64)
                apart = np.abs(weights.view(np.int32).astype(np.int64) - expected)
                assert apart.max() <= ulps, case["source"]


def test_without_exact_sums_the_same_experts_are_picked() -> None:
    (file,) = (file for file in VECTORS if file.stem == "shape_qwen3_30b_a3b")
    for case in json.loads(file.read_text()):
        logits = np.stack([floats(token["tiers"][0]["logits"]) for token in case["tokens"]])
        routed = Router(case["scoring"], exact=False).route(mask_of(case), [torch_tensor(logits)])
        for token, (names, weights) in zip(case["tokens"], rows(routed), strict=True):
            assert names == token["experts"]
            np.testing.assert_allclose(weights, floats(token["weights"]), rtol=1e-5)


def test_the_exponential_is_the_c_librarys() -> None:
    import torch

    import ctypes

    from tpad._router_torch import expf

    library = ctypes.CDLL("libm.so.6")
    library.expf.restype, library.expf.argtypes = ctypes.c_float, [ctypes.c_float]
    numbers = np.concatenate(
        [
            np.random.default_rng(7).uniform(-110, 95, 20000),
            np.random.default_rng(8).normal(0, 2, 20000),
            [0.0, -0.0, 1.0, 88.72283, 88.73, -103.97, -104.0, -87.4, -1e30, 1e30],
        ]
    ).astype(np.float32)
    found = expf(torch.from_numpy(numbers)).numpy()
    expected = np.array([library.expf(float(number)) for number in numbers], np.float32)
    assert (found.view(np.int32) == expected.view(np.int32)).all()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_models_own_router_leads_to_its_blocks(kind: str, client: tpad.Client) -> None:
    model = client.model("mixtral")
    layer = model.layers[1]
    mask = client.mask(model, resident="object_store", layers=[layer])
    router = Router(model)
    weight = client.router(model, "base", layer).by_role("router").numpy().astype(np.float32)
    hidden = np.random.default_rng(3).normal(size=(5, weight.shape[1])).astype(np.float32)
    logits = (torch_tensor if kind == "torch" else numpy_array)(hidden @ weight.T)
    routed = router.route(mask, [logits])
    best = np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :2]
    assert (np.asarray(routed.expert) == best).all()
    keys = routed.keys(mask, layer)
    assert [[model.source(key) for key in row] for row in keys] == best.tolist()
    distinct = routed.distinct(mask, layer)
    assert len(client.experts(model, distinct)) == len(set(best.ravel().tolist()))
    # The checkpoint's whole router, by columns, is the same here; so is what is resident.
    again = router.route(mask, gather(mask, layer, logits), resident_at=layer)
    assert (np.asarray(again.expert) == best).all()
    with pytest.raises(tpad.FailedPrecondition, match="resident"):
        router.route(mask, [logits], resident_at=99)
    with pytest.raises(tpad.InvalidArgument):
        router.route(mask, [logits[:, :3]])
    with pytest.raises(tpad.InvalidArgument):
        router.route(mask, [])
    with pytest.raises(tpad.InvalidArgument):
        gather(mask, layer, logits[:, :3])
