"""The reference of docs/routing.md against the router vectors.

usage: routing.py ROUTING_MD VECTORS_DIRECTORY
"""

import json
import pathlib
import struct
import sys


def floats(text: str) -> list[float]:
    raw = bytes.fromhex(text)
    return list(struct.unpack(f">{len(raw) // 4}f", raw))


def bits(number: float) -> int:
    return struct.unpack(">I", struct.pack(">f", number))[0]


def main(document: str, directory: str) -> None:
    text = pathlib.Path(document).read_text(encoding="utf-8")
    blocks = [part.split("```", 1)[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 1, f"{document} has {len(blocks)} Python blocks"
    names: dict = {}
    exec(compile(blocks[0], document, "exec"), names)
    checked = 0
    for file in sorted(pathlib.Path(directory).glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            checked += check(names["route"], file.name, case)
    mask = {"k_tier": 1, "tiers": [{"tier": "a", "k_group": 1, "k_expert": 1, "groups": [[True]]}]}
    scoring = {"correction_bias": False, "normalize": False, "scale": 1.0}
    for function, groups in [("unknown", "max"), ("softmax", "unknown"), ("softmax_after_top_k", "top_two_sum")]:
        try:
            names["route"](scoring | {"function": function, "groups": groups}, mask, [{"logits": [0.0]}])
        except ValueError as error:
            assert str(error) == "scoring", error
        else:
            raise AssertionError(f"{function} with {groups} is routed")
    print(f"{checked} tokens route as the vectors say")


def check(route, name: str, case: dict) -> int:
    mask = dict(case["mask"])
    mask["tiers"] = [
        tier | {"groups": [
            [bool(bytes.fromhex(g["bits"])[n // 8] >> n % 8 & 1) for n in range(g["experts"])]
            for g in tier["groups"]
        ]}
        for tier in mask["tiers"]
    ]
    biases = [floats(bias) for bias in case.get("correction_bias", [])]
    for at, token in enumerate(case["tokens"]):
        tiers = []
        for place, given in enumerate(token["tiers"]):
            tier = {what: floats(given[what]) for what in ("logits", "groups") if what in given}
            if "tier" in given:
                (tier["tier"],) = floats(given["tier"])
            if biases:
                tier["correction_bias"] = biases[place]
            tiers.append(tier)
        seed = int(token["seed"], 16) if "seed" in token else None
        place = f"{name} token {at} ({case['source']})"
        try:
            chosen = route(case["scoring"], mask, tiers, seed)
        except ValueError as error:
            assert str(error) == token.get("error"), f"{place}: {error}"
            continue
        assert [list(key) for key, _ in chosen] == token["experts"], f"{place}: {chosen}"
        for (key, weight), expected in zip(chosen, floats(token["weights"]), strict=True):
            apart = abs(bits(weight) - bits(expected))
            assert apart <= case.get("ulps", 0), f"{place}: {key} {weight} {expected}"
    return len(case["tokens"])


if __name__ == "__main__":
    main(*sys.argv[1:])
