"""Runs a script that writes a checkpoint with torch where torch is not installed.

Only what the scripts in docs/ use is there: `torch.randn` gives numbers drawn at
random, and `safetensors.torch.save_file` hands them to the real safetensors library.
"""

import ctypes
import os
import runpy
import sys
import types

import safetensors


class Tensor:
    def __init__(self, shape):
        elements = 1
        for dimension in shape:
            elements *= dimension
        self.shape = list(shape)
        self.data = ctypes.create_string_buffer(os.urandom(2 * elements), 2 * elements)


def randn(*shape, dtype):
    if dtype != "bfloat16":
        sys.exit(f"only bfloat16 is there, not {dtype}")
    return Tensor(shape)


def save_file(tensors, filename, metadata=None):
    specs = {
        name: safetensors.TensorSpec(
            dtype="bfloat16",
            shape=tensor.shape,
            data_ptr=ctypes.addressof(tensor.data),
            data_len=len(tensor.data),
        )
        for name, tensor in tensors.items()
    }
    safetensors.serialize_file(specs, filename, metadata=metadata)


torch = types.ModuleType("torch")
torch.randn, torch.bfloat16 = randn, "bfloat16"
save = types.ModuleType("safetensors.torch")
save.save_file = save_file
sys.modules |= {"torch": torch, "safetensors.torch": save}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
