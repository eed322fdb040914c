"""Makes the router vectors beside it; README.md says what they are.

usage: generate.py FIXTURES OUT
       generate.py --measure

FIXTURES are the tests' checkpoints (tests/fixtures). Needs torch and
transformers. --measure writes nothing and prints how far the weights of
PyTorch's other kernels are from those of the portable ones.
"""

import contextlib
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile

# The portable kernels: the only ones with the same bits on every CPU. They are
# chosen when torch is loaded, so --measure asks for others from outside.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")

import numpy
import torch
import transformers
from safetensors import safe_open
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

HERE = pathlib.Path(__file__).resolve().parent
ROUTING = HERE.parents[3] / "docs" / "routing.md"

# How far weights of correct square roots may be from these, as seen.
SQRT_ULPS = 4


def hexed(tensor) -> str:
    """Each f32 as the 8 hexadecimal digits of its bits."""
    numbers = torch.as_tensor(tensor, dtype=torch.float32).contiguous().view(torch.int32)
    return "".join(f"{number & 0xFFFFFFFF:08x}" for number in numbers.flatten().tolist())


def bits_hexed(allowed: list[bool]) -> str:
    """An expert's bit is bit n % 8 of byte n / 8, as the wire has it."""
    count = (len(allowed) + 7) // 8
    number = sum(1 << n for n, is_allowed in enumerate(allowed) if is_allowed)
    return number.to_bytes(count, "little").hex()


class Normal:
    """Random numbers that do not depend on PyTorch's kernels, as its own do."""

    def __init__(self, seed: int):
        self.random = numpy.random.default_rng(seed)

    def draw(self, *shape: int):
        return torch.from_numpy(self.random.standard_normal(shape, dtype=numpy.float32))


def scoring(function, normalize, scale=1.0, bias=False, groups="log_sum_exp"):
    return {
        "function": function,
        "correction_bias": bias,
        "normalize": normalize,
        "scale": scale,
        "groups": groups,
    }


@contextlib.contextmanager
def sorted_top_k():
    """DeepSeek asks for the top k unsorted, which leaves the order of the sum
    to the library. Sorted is one of the orders that it may have."""
    top_k = torch.topk
    torch.topk = lambda *args, **named: top_k(*args, **{**named, "sorted": True})
    torch.Tensor.topk, kept = (lambda self, *a, **n: torch.topk(self, *a, **n)), torch.Tensor.topk
    try:
        yield
    finally:
        torch.topk, torch.Tensor.topk = top_k, kept


def configured(model_type: str, **settings):
    return transformers.AutoConfig.for_model(model_type, **settings)


class Family:
    """A router class of transformers with a configuration."""

    def __init__(self, name, kind, config, scoring, groups=1, k_group=1, masked=None):
        self.name, self.kind, self.config, self.scoring = name, kind, config, scoring
        self.groups, self.k_group, self.masked = groups, k_group, masked

    def route(self, hidden, weight, bias=None, correction=None, device="cpu"):
        """Logits, weights and experts of the router with these weights."""
        router = self.kind(self.config).to(device).float()
        with torch.no_grad():
            router.weight.copy_(weight)
            if getattr(router, "bias", None) is not None:
                router.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
            if correction is not None:
                holder = getattr(router, "moe_statics", router)
                target = holder.e_score_correction_bias
                target.copy_(correction.reshape(target.shape))
            with sorted_top_k():
                logits, weights, experts = router(hidden.to(device))
        return logits.float().cpu(), weights.float().cpu(), experts.cpu()

    def distinct(self, logits, correction, experts) -> list[int]:
        """Tokens whose chosen scores, and the next one's, are all distinct, so
        that no order of ties shows."""
        values = {
            "softmax": lambda: torch.softmax(logits, -1),
            "softmax_after_top_k": lambda: logits,
            "sigmoid": lambda: logits.sigmoid(),
            "sqrt_softplus": lambda: torch.nn.functional.softplus(logits).sqrt(),
        }[self.scoring["function"]]()
        scores = values if correction is None else values + correction
        return [
            token
            for token, row in enumerate(scores.tolist())
            if not {row[e] for e in experts[token].tolist()}
            & {s for e, s in enumerate(row) if e not in experts[token].tolist()}
            and len({row[e] for e in experts[token].tolist()}) == len(experts[token])
        ]


def case(family, source, logits, weights, experts, correction):
    """A case of the file: the flat router's experts by group, masked ones put
    back in with logits that would win if anybody read them."""
    allowed = family.masked or [True] * logits.shape[1]
    column = [n for n, is_allowed in enumerate(allowed) if is_allowed]
    size = len(allowed) // family.groups
    full = torch.full((len(logits), len(allowed)), 1e30)
    full[:, column] = logits
    corrections = None
    if correction is not None:
        corrections = torch.full((len(allowed),), math.nan)
        corrections[column] = correction
    tier = {
        "tier": "tier_1b",
        "k_group": family.k_group,
        "k_expert": experts.shape[1],
        "groups": [
            {"experts": size, "bits": bits_hexed(allowed[at : at + size])}
            for at in range(0, len(allowed), size)
        ],
    }
    tokens = []
    for token in family.distinct(logits, correction, experts):
        places = [column[expert] for expert in experts[token].tolist()]
        tokens.append({
            "tiers": [{"logits": hexed(full[token])}],
            "experts": [[0, place // size, place % size] for place in places],
            "weights": hexed(weights[token]),
        })
    made = {
        "source": source,
        "scoring": family.scoring,
        "mask": {"k_tier": 1, "tiers": [tier]},
        "tokens": tokens,
    }
    if corrections is not None:
        made["correction_bias"] = [hexed(corrections)]
    if family.scoring["function"] == "sqrt_softplus":
        # torch.sqrt is MKL's, which is not correctly rounded as IEEE 754's is.
        made["ulps"] = SQRT_ULPS
    return made


def named(kind) -> str:
    return f"{kind.__name__} of transformers {transformers.__version__}"


def fixture_cases(directory: pathlib.Path, normal: Normal):
    """Each fixture's own routers on random hidden states."""
    mixtral = (MixtralTopKRouter, "block_sparse_moe.gate", scoring("softmax", True))
    qwen3 = (Qwen3MoeTopKRouter, "mlp.gate", scoring("softmax", False))
    deepseek = scoring("sigmoid", True, 2.5, True, "top_two_sum")
    gpt_oss = (GptOssTopKRouter, "mlp.router", scoring("softmax_after_top_k", False))
    for name, (kind, module, scored) in {
        "mixtral": mixtral,
        "qwen3_moe": qwen3,
        "deepseek_v3": (DeepseekV3TopkRouter, "mlp.gate", deepseek),
        "deepseek_v3_fp8": (DeepseekV3TopkRouter, "mlp.gate", deepseek),
        "gpt_oss": gpt_oss,
    }.items():
        config = transformers.AutoConfig.from_pretrained(directory / name)
        tensors = {}
        for shard in sorted((directory / name).glob("*.safetensors")):
            with safe_open(shard, "pt") as opened:
                tensors |= {
                    key: opened.get_tensor(key).float()
                    for key in opened.keys()
                    if f".{module}." in key
                }
        groups = getattr(config, "n_group", 1)
        family = Family(name, kind, config, scored, groups, getattr(config, "topk_group", 1))
        cases = []
        layers = sorted({int(key.split(".")[2]) for key in tensors})
        for layer in layers:
            # Multi-token prediction layers have routers too; they count alike.
            stem = f"model.layers.{layer}.{module}."
            weight, bias = tensors[stem + "weight"], tensors.get(stem + "bias")
            correction = tensors.get(stem + "e_score_correction_bias")
            # Wide enough for logits of a few units: the weights are random.
            hidden = normal.draw(64, weight.shape[1]) * 10
            out = family.route(hidden, weight, bias, correction)
            source = f"{named(kind)}, {name}'s router at layer {layer}"
            cases.append({"layer": layer} | case(family, source, *out, correction))
        assert cases, name
        yield name, cases


def shaped(**changes):
    """Routers in the shapes of released models, on random logits."""
    qwen = dict(hidden_size=8, norm_topk_prob=True)
    v3 = dict(num_experts_per_tok=8, norm_topk_prob=True)
    grouped = scoring("sigmoid", True, 2.5, True, "top_two_sum")
    flat = scoring("sigmoid", True, 2.827, True)
    soft, after = scoring("softmax", True), scoring("softmax_after_top_k", False)
    halves = [n % 8 < 5 for n in range(256)]
    some = [n % 3 != 1 for n in range(32)]
    v4 = configured("deepseek_v4", n_routed_experts=256, num_experts_per_tok=6,
                    routed_scaling_factor=1.5, scoring_func="sqrtsoftplus")
    families = [
        Family("mixtral", MixtralTopKRouter, configured("mixtral"), soft),
        Family("mixtral_masked", MixtralTopKRouter, configured("mixtral", num_local_experts=5), soft,
               masked=[True, False, True, True, False, True, False, True]),
        Family("qwen3_30b_a3b", Qwen3MoeTopKRouter,
               configured("qwen3_moe", num_experts=128, num_experts_per_tok=8, **qwen), soft),
        Family("qwen3_next", Qwen3MoeTopKRouter,
               configured("qwen3_moe", num_experts=512, num_experts_per_tok=10, **qwen), soft),
        Family("qwen3_five", Qwen3MoeTopKRouter,
               configured("qwen3_moe", num_experts=60, num_experts_per_tok=5, **qwen), soft),
        Family("qwen3_many", Qwen3MoeTopKRouter,
               configured("qwen3_moe", num_experts=64, num_experts_per_tok=47, **qwen), soft),
        Family("olmoe", OlmoeTopKRouter,
               configured("olmoe", num_experts=64, num_experts_per_tok=8, norm_topk_prob=False),
               scoring("softmax", False)),
        Family("deepseek_v2", DeepseekV2TopkRouter,
               configured("deepseek_v2", n_routed_experts=160, num_experts_per_tok=6, n_group=8,
                          topk_group=3, topk_method="group_limited_greedy",
                          routed_scaling_factor=16.0),
               scoring("softmax", False, 16.0, groups="max"), 8, 3),
        Family("deepseek_v3", DeepseekV3TopkRouter,
               configured("deepseek_v3", n_routed_experts=256, n_group=8, topk_group=4,
                          routed_scaling_factor=2.5, **v3), grouped, 8, 4),
        Family("deepseek_v3_masked", DeepseekV3TopkRouter,
               configured("deepseek_v3", n_routed_experts=160, n_group=8, topk_group=4,
                          routed_scaling_factor=2.5, **v3), grouped, 8, 4, halves),
        Family("kimi_k2", DeepseekV3TopkRouter,
               configured("deepseek_v3", n_routed_experts=384, n_group=1, topk_group=1,
                          routed_scaling_factor=2.827, **v3), flat),
        Family("deepseek_v4", DeepseekV4TopKRouter, v4, scoring("sqrt_softplus", True, 1.5, True)),
        Family("ernie_4_5", Ernie4_5_MoeTopKRouter,
               configured("ernie4_5_moe", moe_num_experts=64, moe_k=6, hidden_size=64),
               scoring("softmax", True, bias=True)),
        Family("gpt_oss_120b", GptOssTopKRouter,
               configured("gpt_oss", num_local_experts=128, num_experts_per_tok=4), after),
        Family("gpt_oss_masked", GptOssTopKRouter,
               configured("gpt_oss", num_local_experts=sum(some), num_experts_per_tok=4), after,
               masked=some),
    ]
    for family in families:
        count = sum(family.masked) if family.masked else None
        router = family.kind(family.config)
        experts = router.weight.shape[0]
        assert count in (None, experts), family.name
        yield family, experts


def identity(family, experts):
    """The router whose logits are its input."""
    if family.config.hidden_size != experts:
        family.config.hidden_size = experts
    return torch.eye(experts)


def shaped_tokens(tokens: int, normal: Normal):
    for family, experts in shaped():
        logits = normal.draw(tokens, experts) * 2
        corrected = family.scoring["correction_bias"]
        spread = 0.005 if family.scoring["function"] == "softmax" else 0.05
        correction = normal.draw(experts) * spread if corrected else None
        weight = identity(family, experts)
        yield family, logits, correction, weight


def shape_cases(tokens: int, normal: Normal):
    for family, logits, correction, weight in shaped_tokens(tokens, normal):
        found, *chosen = family.route(logits, weight, None, correction)
        assert torch.equal(found, logits), family.name
        source = f"{named(family.kind)}, random logits"
        yield family, case(family, source, found, *chosen, correction)


def reference():
    """`route` of the block in docs/routing.md."""
    block = ROUTING.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(compile(block, str(ROUTING), "exec"), names)
    return names["route"]


def policy_case(dice: random.Random, route):
    """What no family computes: tiers, uneven groups, heads, ties, errors."""
    function, groups = dice.choice([
        ("softmax", "log_sum_exp"), ("softmax", "max"), ("softmax_after_top_k", "log_sum_exp"),
        ("sigmoid", "log_sum_exp"), ("sigmoid", "top_two_sum"), ("sqrt_softplus", "max"),
    ])
    bias = function in ("sigmoid", "sqrt_softplus") and dice.random() < 0.7
    normalize = function != "softmax_after_top_k" and dice.random() < 0.6
    scored = scoring(function, normalize, dice.choice([1.0, 2.5]), bias, groups)
    sizes = [[dice.randint(1, 9) for _ in range(dice.randint(1, 4))] for _ in range(dice.randint(1, 4))]
    share = dice.choice([1.0, 0.8, 0.4])
    ids = dice.sample(["tier_1b", "tier_10b", "7", "tier_100b", "base"], len(sizes))
    tiers = [
        {
            "tier": name,
            "k_group": dice.randint(1, len(of)),
            "k_expert": dice.randint(1, 12),
            "groups": [[dice.random() < share for _ in range(size)] for size in of],
        }
        for name, of in zip(ids, sizes)
    ]
    mask = {"k_tier": dice.randint(1, len(tiers)), "tiers": tiers}
    # Coarse logits have ties between experts, groups and tiers.
    coarse = dice.random() < 0.4
    draw = lambda wide: torch.tensor(
        float(dice.randint(-2, 2)) if coarse else dice.gauss(0, wide)).item()
    heads = dice.random() < 0.3
    corrections = [[draw(0.1) for size in of for _ in range(size)] for of in sizes] if bias else None
    made = []
    for number in range(4):
        given = []
        for at, of in enumerate(sizes):
            # The widest spread lets a chosen softmax underflow to nothing.
            wide = dice.choice([1.0, 3.0, 200.0])
            tier = {"logits": [draw(wide) for size in of for _ in range(size)]}
            if heads and dice.random() < 0.7:
                tier["groups"] = [draw(1.0) for _ in of]
            if heads and dice.random() < 0.7:
                tier["tier"] = draw(1.0)
            if dice.random() < 0.03:
                at_random = dice.randrange(len(tier["logits"]))
                tier["logits"][at_random] = dice.choice([math.nan, math.inf, -math.inf])
            given.append(tier)
        seed = dice.choice([None, None, dice.getrandbits(64)])
        token = {"tiers": [
            {"logits": hexed(tier["logits"])}
            | ({"groups": hexed(tier["groups"])} if "groups" in tier else {})
            | ({"tier": hexed([tier["tier"]])} if "tier" in tier else {})
            for tier in given
        ]}
        if seed is not None:
            token["seed"] = f"{seed:016x}"
        with_bias = [
            tier | ({"correction_bias": corrections[at]} if bias else {})
            for at, tier in enumerate(given)
        ]
        try:
            chosen = route(scored, mask, with_bias, seed)
            token["experts"] = [list(key) for key, _ in chosen]
            token["weights"] = hexed([weight for _, weight in chosen])
        except ValueError as error:
            token["error"] = str(error)
        made.append(token)
    case = {
        "source": "the reference in docs/routing.md",
        "scoring": scored,
        "mask": mask | {"tiers": [
            tier | {"groups": [{"experts": len(of), "bits": bits_hexed(of)} for of in tier["groups"]]}
            for tier in tiers
        ]},
        "tokens": made,
    }
    if bias:
        case["correction_bias"] = [hexed(of) for of in corrections]
    return case


def write(out: pathlib.Path, name: str, cases: list) -> None:
    """One line for each token: differences can be read."""
    lines = []
    for made in cases:
        tokens = made.pop("tokens")
        head = json.dumps(made)[:-1]
        rows = ",\n".join("  " + json.dumps(token) for token in tokens)
        lines.append(f'{head}, "tokens": [\n{rows}\n]}}')
    (out / f"{name}.json").write_text("[" + ",\n".join(lines) + "]\n", encoding="utf-8")


def weights_of(tokens: int, out: pathlib.Path) -> None:
    """Routes tokens with whatever kernels this process has."""
    kept = {}
    for family, logits, correction, weight in shaped_tokens(tokens, Normal(11)):
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            _, weights, experts = family.route(logits, weight, None, correction, device)
            # By expert, since the order among nearly equal ones may differ.
            order = experts.argsort(-1)
            of = (experts.gather(1, order), weights.gather(1, order))
            kept.setdefault(device, {})[family.name] = of
    torch.save(kept, out)


def measure(tokens: int) -> None:
    """Prints how far the weights of PyTorch's kernels are from the portable
    ones': tokens with the same experts, and the largest distance of a weight in
    f32 that lie between."""
    kernels = {}
    with tempfile.TemporaryDirectory() as directory:
        for capability in ("default", "avx2", "avx512"):
            out = pathlib.Path(directory) / capability
            arguments = [sys.executable, __file__, str(tokens), str(out), "--weights"]
            environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
            subprocess.run(arguments, check=True, env=environment)
            loaded = torch.load(out)
            kernels[capability] = loaded["cpu"]
            kernels["cuda"] = loaded.get("cuda", {})
    for capability, families in kernels.items():
        for name, (experts, weights) in families.items():
            known, portable = kernels["default"][name]
            same = (experts == known).all(-1)
            # The weights are positive, so their bits are in their order.
            bits = weights[same].view(torch.int32) - portable[same].view(torch.int32)
            apart = bits.abs().max().item()
            equal = (bits == 0).float().mean().item()
            print(f"{capability} {name}: {same.sum()} of {tokens} tokens with the same experts, "
                  f"weights at most {apart} ulps apart, {equal:.1%} equal")


def main() -> None:
    if "--weights" in sys.argv:
        return weights_of(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
    if sys.argv[1] == "--measure":
        return measure(2000)
    fixtures, out = map(pathlib.Path, sys.argv[1:3])
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT", "the portable kernels are meant"
    normal = Normal(7)
    for name, cases in fixture_cases(fixtures, normal):
        write(out, f"fixture_{name}", cases)
    for family, made in shape_cases(16, normal):
        write(out, f"shape_{family.name}", [made])
    dice, route = random.Random(7), reference()
    write(out, "policy", [policy_case(dice, route) for _ in range(100)])


if __name__ == "__main__":
    main()
