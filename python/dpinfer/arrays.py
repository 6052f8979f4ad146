"""What a batch may be made of, and its memory: numpy arrays, torch tensors, DLPack, the buffer protocol."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Dict, Optional, Tuple

import numpy as np

from . import _c
from .errors import DataError

Array = Any
DTYPES: Dict[int, str] = {
    1: "bool", 2: "int8", 3: "uint8", 4: "int16", 5: "uint16", 6: "int32", 7: "uint32", 8: "int64", 9: "uint64",
    10: "float16", 11: "bfloat16", 12: "float32", 13: "float64",
}  # fmt: skip
NUMBERS = {name: number for number, name in DTYPES.items()}
BFLOAT16 = 11
_numbers = {np.dtype(name): number for name, number in NUMBERS.items() if number != BFLOAT16}


def torch_module() -> Any:
    """torch where the caller has imported it; None otherwise. Nothing here imports it."""
    return sys.modules.get("torch")


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor."""
    torch = torch_module()
    return torch is not None and isinstance(value, torch.Tensor)


def numpy_dtype(number: int) -> Any:
    """numpy's dtype of a dpi_dtype; bfloat16 is shown as uint16, since numpy has none."""
    return np.dtype("uint16" if number == BFLOAT16 else DTYPES[number])


def _number(dtype: Any) -> int:
    number = _numbers.get(dtype) or (BFLOAT16 if dtype.name == "bfloat16" else 0)
    if not number:
        raise DataError(f"dpinfer has no dtype {dtype}; it has {', '.join(NUMBERS)}, in the machine's byte order")
    return number


def _from_torch(tensor: Any) -> Tuple[Array, int]:
    torch = torch_module()
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"a batch is dense tensors, and one of layout {tensor.layout} was given")
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), BFLOAT16
    array = tensor.numpy()
    return array, _number(array.dtype)


def to_numpy(value: Any) -> Tuple[Array, int]:
    """The array of a batch and its dpi_dtype: `value`'s own memory wherever that is dense, C-ordered and the host's.

    Tensors of a GPU are copied to the host; what is not C-ordered is copied. Lists are refused: they would be converted
    element by element.

    Raises:
        TypeError: neither an array, nor a tensor, nor DLPack, nor a buffer.
        DataError: a dtype or a rank that dpinfer has not.
    """
    if isinstance(value, np.ndarray):
        array, number = value, _number(value.dtype)
    elif is_torch(value):
        array, number = _from_torch(value)
    else:
        array = _foreign(value)
        number = _number(array.dtype)
    if array.ndim > _c.MAX_RANK:
        raise DataError(f"dpinfer has at most {_c.MAX_RANK} axes, and an array of {array.ndim} was given")
    return (array if array.flags.c_contiguous else np.ascontiguousarray(array)), number


def _foreign(value: Any) -> Array:
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        if not isinstance(value, (str, bytes)):
            return np.asarray(memoryview(value))
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as problem:
        if hasattr(value, "__dlpack__"):
            raise TypeError(f"a {type(value).__name__} cannot be read by DLPack on the host: {problem}") from problem
    raise TypeError(
        f"a batch is numpy arrays, torch tensors, or what speaks DLPack or the buffer protocol, and a "
        f"{type(value).__name__} was given"
    )


def copy_of(view: Any) -> Array:
    """A C tensor in memory of the session, as an array of the caller's."""
    shape, dtype = tuple(view.shape[: view.rank]), numpy_dtype(view.dtype)
    array = np.empty(shape, dtype)
    if array.nbytes:
        ctypes.memmove(array.ctypes.data, view.data, array.nbytes)
    return array


def to_torch(array: Array, number: int, device: Optional[Any]) -> Any:
    """The array's own memory as a tensor (a copy on `device` where that is no CPU)."""
    torch = torch_module()
    tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if number == BFLOAT16 else torch.from_numpy(array)
    return tensor if device is None or device.type == "cpu" else tensor.to(device)
