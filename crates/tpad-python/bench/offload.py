"""Accelerate's CPU offload: what one gets today without writing anything.

    offload.py ROOT DEVICE GPU_BYTES

loads the model in a process of its own and prints, as JSON, how long its first token took
from when its imports were done: what a worker that lost its process has to do without tpad.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch


def load_offloaded(
    root: Path, device: torch.device, gpu_bytes: int
) -> tuple[torch.nn.Module, str]:
    """The model by `from_pretrained`, and in words how its weights are moved."""
    from transformers import AutoModelForCausalLM

    try:
        import accelerate
    except ImportError:
        model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16, device_map=None)
        return hooked(
            model.eval(), device, gpu_bytes
        ), "hooks after accelerate's scheme (it is not installed)"
    if device.type == "cpu":
        # There is nowhere to move to: the hooks run, the memory is the same.
        model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16)
        accelerate.cpu_offload(model, execution_device=device)
        return model.eval(), f"accelerate {accelerate.__version__} cpu_offload, without a GPU"
    # Accelerate keeps room for the largest layer that it moves in; what is on the GPU for
    # good and that room together are what tpad has there.
    model = AutoModelForCausalLM.from_pretrained(
        root,
        dtype=torch.bfloat16,
        device_map="auto",
        max_memory={device.index or 0: gpu_bytes, "cpu": 1 << 40},
    )
    places = list(model.hf_device_map.values())
    on_gpu = sum(1 for place in places if place not in ("cpu", "disk"))
    return model.eval(), (
        f"accelerate {accelerate.__version__}, device_map=auto, max_memory "
        f"{gpu_bytes / 1e9:.2f} GB: {on_gpu} of {len(places)} parts on the GPU"
    )


def hooked(model: torch.nn.Module, device: torch.device, gpu_bytes: int) -> torch.nn.Module:
    """Layers that fit stay on the device; each other one is copied there when it runs."""
    room = gpu_bytes
    layers = list(model.model.layers)
    around = [model.model.embed_tokens, model.model.norm, model.model.rotary_emb, model.lm_head]
    for module in around:
        module.to(device)
        room -= sum(p.nbytes for p in module.parameters())
    size = max(sum(p.nbytes for p in layer.parameters()) for layer in layers)
    resident = max(0, room // size - 1)
    for number, layer in enumerate(layers):
        if number < resident:
            layer.to(device)
            continue
        host = {name: p.data for name, p in layer.named_parameters()}

        def bring(module, args, *, host=host):
            for name, parameter in module.named_parameters():
                parameter.data = host[name].to(device)

        def leave(module, args, output, *, host=host):
            for name, parameter in module.named_parameters():
                parameter.data = host[name]

        layer.register_forward_pre_hook(bring)
        layer.register_forward_hook(leave)
    return model


def fresh_load(root: Path, device: torch.device, gpu_bytes: int, patience: float) -> float:
    """Seconds that a new process takes from its imports to its first token."""
    command = [sys.executable, __file__, str(root), str(device), str(gpu_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stderr[-3000:]}")
    seconds: float = json.loads(done.stdout.splitlines()[-1])["first_token_seconds"]
    return seconds


def main() -> None:
    root, device, gpu_bytes = Path(sys.argv[1]), torch.device(sys.argv[2]), int(sys.argv[3])
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401  what a load imports late
    from rounds import System, settle
    from transformers import AutoModelForCausalLM  # noqa: F401  and this

    torch.set_num_threads(min(8, os.cpu_count() or 1))
    imported = time.perf_counter()
    model, _ = load_offloaded(root, device, gpu_bytes)
    System("offload", model, lambda: 0, 1).run(torch.tensor([5]), device, timed=False)
    settle(device)
    print(json.dumps({"first_token_seconds": time.perf_counter() - imported}), flush=True)


if __name__ == "__main__":
    main()
