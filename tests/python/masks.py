"""Routing masks over gRPC, with nothing of tpad but the proto files, and the
example of docs/masks.md.

usage: masks.py PROTO_DIRECTORY MASKS_MD ADDRESS MODEL mask [--tiers A,B | --named N | --up-to T]
       masks.py PROTO_DIRECTORY MASKS_MD ADDRESS MODEL route
"""

import json
import math
import pathlib
import sys
import tempfile

import grpc

from fetch_experts import generate


def example(document: pathlib.Path) -> dict:
    """The names that the document's Python block defines."""
    text = document.read_text(encoding="utf-8")
    blocks = [part.split("```", 1)[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 1, f"{document} has {len(blocks)} Python blocks"
    names: dict = {}
    exec(compile(blocks[0], str(document), "exec"), names)
    return names


def tier_set(routing_pb2, arguments: list[str]):
    match arguments:
        case []:
            return None
        case ["--tiers", tiers]:
            return routing_pb2.TierSet(tiers=routing_pb2.TierList(tiers=tiers.split(",")))
        case ["--named", name]:
            return routing_pb2.TierSet(named=name)
        case ["--up-to", last]:
            return routing_pb2.TierSet(up_to=last)
    sys.exit(f"unknown arguments: {arguments}")


def shown(routing_pb2, mask, bits) -> dict:
    reason = lambda number: routing_pb2.MaskReason.Name(number).removeprefix("MASK_REASON_").lower()
    groups = lambda tier: [
        {"id": number, "experts": bits(group)} for number, group in enumerate(tier.groups)
    ]
    return {
        "tiers": [
            {"id": t.tier, "k_group": t.k_group, "k_expert": t.k_expert, "groups": groups(t)}
            for t in mask.tiers
        ],
        "k_tier": mask.k_tier,
        "masked": [{"tier": m.tier, "reason": reason(m.reason)} for m in mask.masked],
        "revision": mask.revision,
    }


def check(stub, routing_pb2, model: str, names: dict) -> None:
    """Routes a token through the tests' checkpoint, whose tiers are `small`
    (experts 6 and 2), `7` (7 in one group, 0 and 1 in another) and `large`."""
    wanted = routing_pb2.TierSet(tiers=routing_pb2.TierList(tiers=["small", "7"]))
    request = routing_pb2.GetRoutingMaskRequest(model=model, tier_set=wanted)
    mask = stub.GetRoutingMask(request).mask
    logits = [0.5, 2.0, -1.0, 9.0, 9.0, 9.0, 1.5, 0.25]
    routed = names["route"](mask, 1, logits)
    keys = {key for key, _ in routed}
    # Of the tiers two, of small two experts, of 7 both groups and three experts.
    # The largest logits are large's, which is masked.
    assert keys == {
        ("small", 0, 0), ("small", 0, 1), ("7", 0, 0), ("7", 1, 0), ("7", 1, 1),
    }, routed
    sources = {("small", 0, 0): 6, ("small", 0, 1): 2, ("7", 0, 0): 7, ("7", 1, 0): 0, ("7", 1, 1): 1}
    total = sum(math.exp(logits[source]) for source in sources.values())
    for key, weight in routed:
        assert math.isclose(weight, math.exp(logits[sources[key]]) / total), (key, weight)
    # One tier for a token, the better one by log-sum-exp; in it one group and
    # one expert.
    few = routing_pb2.RoutingMask()
    few.CopyFrom(mask)
    few.k_tier = 1
    few.tiers[1].k_group = 1
    few.tiers[1].k_expert = 1
    assert names["route"](few, 1, logits) == [(("7", 1, 1), 1.0)]
    # With logits of its own the other tier wins, and its first expert.
    logits = [0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0, 0.0]
    few.tiers[0].k_expert = 1
    assert names["route"](few, 1, logits) == [(("small", 0, 0), 1.0)], "ties go to the first"


def main(proto: str, document: str, address: str, model: str, what: str, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        generate(pathlib.Path(proto), out)
        from tpad.v1 import routing_pb2, routing_pb2_grpc

        names = example(pathlib.Path(document))
        with grpc.insecure_channel(address) as channel:
            stub = routing_pb2_grpc.RoutingServiceStub(channel)
            if what == "route":
                check(stub, routing_pb2, model, names)
                print("the example routes as described")
                return
            wanted = tier_set(routing_pb2, list(arguments))
            request = routing_pb2.GetRoutingMaskRequest(model=model, tier_set=wanted)
            reply = stub.GetRoutingMask(request)
            print(json.dumps(shown(routing_pb2, reply.mask, names["bits"])))
            request.etag = reply.mask.etag
            again = stub.GetRoutingMask(request).mask
            assert again.unchanged and not again.tiers, "an equal etag saves the content"


if __name__ == "__main__":
    main(*sys.argv[1:])
