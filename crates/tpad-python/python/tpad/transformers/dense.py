"""A transformers model without its experts: built without memory, then given its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .errors import MissingWeights
from .families import Family
from .staging import Staging
from .weights import scaled

SCALE = "_scale_inv"
#: What is smaller torch's cache takes from memory of another kind.
LARGE_BYTES = 1 << 20


def skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, attention: str | None
) -> PreTrainedModel:
    """The model on the meta device: modules and shapes, no memory."""
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, experts_implementation="eager", **options
        )
    model: PreTrainedModel = made
    model.eval()  # type: ignore[no-untyped-call]
    return model


def read_config(directory: str) -> tuple[PreTrainedConfig, tuple[int, int] | None, torch.dtype]:
    """The configuration, the blocks that scales are for, and the type to compute in.

    Weights are unpacked here, so transformers is not to see how they are packed.
    """
    config = AutoConfig.from_pretrained(directory)
    packed = getattr(config, "quantization_config", None) or {}
    block_size = packed.get("weight_block_size")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = getattr(config, "dtype", None) or torch.bfloat16
    return config, tuple(block_size) if block_size else None, dtype


def kept_exact(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Names of parameters that transformers keeps in FP32 whatever the model's type is."""
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not names or dtype not in (torch.float16, torch.bfloat16):
        return None
    return re.compile("|".join(rf"(^|\.){re.escape(name)}($|\.)" for name in sorted(names)))


def wanted(model: PreTrainedModel, family: Family) -> list[str]:
    """Parameters and kept buffers outside of routers and experts, by transformers' names."""
    inside: set[int] = set()
    for _, block in family.blocks(model):
        for part in (block.experts, getattr(block, family.router)):
            inside.update(map(id, part.parameters()))
            inside.update(map(id, part.buffers()))
    names = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        # What is tied is one tensor by two names.
        if id(tensor) not in inside:
            inside.add(id(tensor))
            names.append(name)
    return names


class Assign:
    """Puts tensors in the place of a skeleton's, in the type that belongs there."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
        block_size: tuple[int, int] | None,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.block_size = block_size
        self.exact = kept_exact(model, dtype)
        self.bytes = 0
        self._staging = Staging(device)

    def place_all(self, names: Sequence[str]) -> None:
        """Memory for what has these names, of zeros until it is put there."""
        if self.device.type == "cuda" and "max_split_size" not in allocator_options():
            # Had at once and given to torch's cache, which it is cut from: the driver takes
            # about as long for each call as for this one. Without room for it, each for itself.
            large = [n for n in map(self._nbytes, names) if n >= LARGE_BYTES]
            with suppress(torch.OutOfMemoryError):
                torch.empty(sum(large), dtype=torch.uint8, device=self.device)
        for name in names:
            self.place(name)

    def _nbytes(self, name: str) -> int:
        """What the cache gives for it, if it is not there yet."""
        at, _, last = name.rpartition(".")
        place: torch.Tensor = getattr(self.model.get_submodule(at), last)
        nbytes = place.numel() * self._type(name).itemsize if place.is_meta else 0
        return -(-nbytes // 512) * 512

    def place(self, name: str) -> torch.Tensor:
        """Memory for what has this name, of zeros until it is put there."""
        at, _, last = name.rpartition(".")
        module = self.model.get_submodule(at)
        place: torch.Tensor = getattr(module, last)
        if place.is_meta:
            # Zeros cost a device nothing, and a host its pages once.
            place = torch.zeros(place.shape, dtype=self._type(name), device=self.device)
            put(module, last, place)
            self.bytes += place.nbytes
        return place

    def own(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device in the type that belongs there; what is given may be another's."""
        return self._fill(
            torch.empty(tensor.shape, dtype=self._type(name), device=self.device), tensor, None
        )

    def put(self, name: str, tensor: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        """A copy in the place that has this name."""
        place = self.place(name)
        if tensor.shape != place.shape:
            raise MissingWeights(
                f"{name} is published as {tuple(tensor.shape)} and the configuration makes it "
                f"{tuple(place.shape)}: config.json and the weights are not of one model"
            )
        with torch.no_grad():
            self._fill(place, tensor, scale)

    def put_all(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Tensors by transformers' names, FP8 ones beside their scales."""
        for name, tensor in tensors.items():
            if not name.endswith(SCALE):
                self.put(name, tensor, tensors.get(name + SCALE))

    def settle(self) -> None:
        """Waits until everything is where it belongs."""
        self._staging.settle()

    def _fill(
        self, place: torch.Tensor, tensor: torch.Tensor, scale: torch.Tensor | None
    ) -> torch.Tensor:
        if scale is None and tensor.dtype == place.dtype:
            self._staging.fill(place, tensor)
            return place
        # Of another type: it is made on the device, where that is fast.
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        self._staging.fill(there, tensor)
        if scale is not None:
            there = scaled(there, scale.to(self.device), place.dtype, self.block_size)
        place.copy_(there)
        return place

    def _type(self, name: str) -> torch.dtype:
        return torch.float32 if self.exact and self.exact.search(name) else self.dtype


def allocator_options() -> str:
    """How torch's allocator was told to work: with a bound it does not cut large memory."""
    names = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    return " ".join(os.environ.get(name, "") for name in names)


def put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Gives a module a tensor in the place of the one that has this name, whatever its shape."""
    if isinstance(getattr(module, name), nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(module, name, tensor)


def finish(model: PreTrainedModel, device: torch.device) -> None:
    """Computes what no checkpoint holds (rotary frequencies), ties what is tied, and checks."""
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        absent = [name for name, buffer in own.items() if buffer.is_meta]
        if not absent or any(name not in module._non_persistent_buffers_set for name in absent):
            continue
        for name in absent:
            module._buffers[name] = torch.empty_like(own[name], device="cpu")
        # What from_pretrained calls to the same end.
        model._init_weights(module)  # type: ignore[no-untyped-call]
        for name in absent:
            module._buffers[name] = module.get_buffer(name).to(device)
    model.tie_weights()
    left = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]
    left += [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        names, more = sorted(set(left)), " and others" if len(set(left)) > 5 else ""
        raise MissingWeights(
            f"the published model has no tensor for {', '.join(names[:5])}{more}: its config.json "
            f"asks for {len(names)} that are not there"
        )
