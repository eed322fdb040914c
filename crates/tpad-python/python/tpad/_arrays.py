"""Arrays over a block's tensors, without a copy. torch and ml_dtypes are imported here, when a
tensor asks for them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from ._tpad import Tensor

_NUMPY = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    # Two in a byte.
    "F4": "float4_e2m1fn_x2",
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of safetensors' ``name``; imports ml_dtypes where NumPy has none itself."""
    known = _NUMPY.get(name)
    if known is not None:
        return known
    other = _ML_DTYPES.get(name)
    if other is None:
        raise TypeError(
            f"NumPy has no type for {name} elements, which fill no byte: use .raw(), or .torch()"
        )
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            f"NumPy has {name} by the package ml_dtypes: pip install ml_dtypes, or use .torch() "
            "or .raw()",
            name="ml_dtypes",
        ) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, other))
    _NUMPY[name] = dtype
    return dtype


def numpy_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Backs ``Tensor.numpy``."""
    if tensor.device != "cpu":
        raise TypeError(f"{tensor.name} is on {tensor.device}: use .torch()")
    return np.ndarray(tensor.shape, numpy_dtype(tensor.dtype), buffer=tensor.raw())


def array_of(tensor: Tensor, dtype: object, copy: bool | None) -> np.ndarray[Any, np.dtype[Any]]:
    """Backs ``Tensor.__array__``."""
    array = numpy_of(tensor)
    if dtype is not None and np.dtype(dtype) != array.dtype:  # type: ignore[call-overload]
        if copy is False:
            raise ValueError(f"{tensor.dtype} as {dtype} is a copy")
        return array.astype(dtype)  # type: ignore[call-overload]
    return array.copy() if copy else array


# What every version of PyTorch takes by DLPack as it is; others as bytes, and then by their type.
_DIRECT = frozenset(
    ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "C64")
)


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's type of safetensors' ``name``."""
    import torch

    dtype = getattr(torch, _TORCH.get(name, ""), None)
    if dtype is None:
        raise TypeError(f"PyTorch {torch.__version__} has no type for {name} elements: use .raw()")
    return dtype


def torch_of(tensor: Tensor) -> torch.Tensor:
    """Backs ``Tensor.torch``."""
    from_dlpack = _torch.from_dlpack
    if from_dlpack is None:
        from_dlpack = _torch()
    device = tensor.device
    if device != "cpu":
        _torch.ready_for_cuda()
    name = tensor.dtype
    if name in _DIRECT and tensor.nbytes:
        there: torch.Tensor = from_dlpack(tensor._dlpack(False))
        return there
    import torch

    dtype, shape = torch_dtype(name), tensor.shape
    if name == "F4":
        if not shape or shape[-1] % 2:
            raise TypeError(f"{tensor.name}: rows of {name} elements do not fill bytes")
        shape = (*shape[:-1], shape[-1] // 2)
    if tensor.nbytes == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    there = from_dlpack(tensor._dlpack(True))
    return there.view(dtype).view(shape)


class _Torch:
    """PyTorch, once a tensor asked for it."""

    def __init__(self) -> None:
        self.from_dlpack: Callable[[Any], Any] | None = None
        self._cuda = False

    def __call__(self) -> Callable[[Any], Any]:
        from torch.utils.dlpack import from_dlpack

        self.from_dlpack = from_dlpack
        return from_dlpack

    def ready_for_cuda(self) -> None:
        """CUDA's part of PyTorch starts when it is first used, and a capsule is no use of it."""
        if not self._cuda:
            import torch

            torch.cuda.init()
            self._cuda = True


_torch = _Torch()
