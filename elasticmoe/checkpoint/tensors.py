"""Arrays as bytes and back, in safetensors' vocabulary."""

from typing import Any, Final

import numpy as np
import torch

from elasticmoe.errors import CheckpointError

ByteArray = np.ndarray[tuple[int], np.dtype[np.uint8]]

DTYPE_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_NUMPY_NAMES: Final = {
    np.dtype(str(dtype).removeprefix("torch.")): name
    for dtype, name in DTYPE_NAMES.items()
    if dtype is not torch.bfloat16  # numpy has none
}


def to_bytes(value: Any) -> tuple[str, tuple[int, ...], ByteArray]:
    """View a tensor, a numpy array or a buffer as bytes; copies only what is not contiguous.

    Returns:
        Data type as safetensors spells it, shape, and the bytes.

    Raises:
        ValueError: the data type cannot be stored.
    """
    if isinstance(value, torch.Tensor):
        if value.dtype not in DTYPE_NAMES:
            raise ValueError(f"a tensor of {value.dtype} cannot be stored")
        flat = value.detach().cpu().contiguous().view(-1)
        return DTYPE_NAMES[value.dtype], tuple(value.shape), flat.view(torch.uint8).numpy()
    array = np.asarray(value)
    if array.dtype not in _NUMPY_NAMES:
        raise ValueError(f"an array of {array.dtype} cannot be stored")
    return (
        _NUMPY_NAMES[array.dtype],
        array.shape,
        np.ascontiguousarray(array).reshape(-1).view(np.uint8),
    )


def from_bytes(dtype: str, shape: tuple[int, ...], data: memoryview) -> torch.Tensor:
    """The tensor over a writable buffer, without a copy.

    Raises:
        CheckpointError: the data type is unknown.
    """
    if dtype not in _DTYPES:
        raise CheckpointError(f"data type {dtype!r} is unknown to this version")
    if not len(data):
        return torch.empty(shape, dtype=_DTYPES[dtype])
    return torch.frombuffer(data, dtype=_DTYPES[dtype]).view(shape)
