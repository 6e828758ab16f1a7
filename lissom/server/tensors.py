"""Tensors on the wire of the Open Inference Protocol: flat or nested JSON, or bytes behind it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lissom.artifact.datatypes import DATATYPES
from lissom.errors import DataError
from lissom.server.wire import InputTensor


def read(given: InputTensor, datatype: str, shape: Sequence[int], behind: bytes | None) -> Tensor:
    """The tensor that a client sent, in the datatype and shape that the model declares (-1 for any size).

    Raises:
        DataError: another datatype or shape, the wrong number of values, or values that do not fit.
    """
    if given.datatype != datatype:
        raise DataError(f"input {given.name!r}: datatype {given.datatype!r} given, the model takes {datatype!r}")
    fits = len(given.shape) == len(shape) and all(w in (-1, g) for g, w in zip(given.shape, shape, strict=True))
    if not fits:
        raise DataError(f"input {given.name!r}: shape {given.shape} given, the model takes {list(shape)}")
    dtype, count = DATATYPES[datatype], math.prod(given.shape)
    values = _from_json(given, dtype) if behind is None else _from_bytes(given, dtype, behind)
    if values.numel() != count:
        raise DataError(f"input {given.name!r}: {values.numel()} values given, shape {given.shape} needs {count}")
    return values.reshape(given.shape)


def listed(name: str, tensor: Tensor) -> list[Any]:
    """The values in row-major order.

    Raises:
        DataError: a value that JSON cannot carry.
    """
    wide = tensor.detach().cpu().flatten()
    if wide.is_floating_point() and not wide.isfinite().all():
        raise DataError(f"output {name!r} holds NaN or infinity, which JSON cannot carry; ask for binary_data")
    return wide.tolist()


def _from_bytes(given: InputTensor, dtype: torch.dtype, behind: bytes) -> Tensor:
    if given.data is not None:
        raise DataError(f"input {given.name!r}: give either data or binary_data_size")
    if len(behind) % dtype.itemsize:
        raise DataError(f"input {given.name!r}: {len(behind)} bytes are no whole number of {given.datatype} values")
    return torch.frombuffer(bytearray(behind), dtype=dtype) if behind else torch.empty(0, dtype=dtype)


def _from_json(given: InputTensor, dtype: torch.dtype) -> Tensor:
    """Integers do for floating point, but nothing else is converted: 1.5 is no integer and 1 is no truth value."""
    try:
        array = np.array(given.data or [])
    except (ValueError, OverflowError) as error:
        raise DataError(f"input {given.name!r}: data is missing or its lists have different lengths") from error
    kinds = "b" if dtype == torch.bool else "iuf" if dtype.is_floating_point else "iu"
    if array.size and array.dtype.kind not in kinds:
        raise DataError(f"input {given.name!r}: data holds something that is no {given.datatype}")
    if array.size and not dtype.is_floating_point and dtype != torch.bool:
        limits = torch.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise DataError(f"input {given.name!r}: {given.datatype} goes from {limits.min} to {limits.max}")
    wide = array.astype(np.float64) if dtype.is_floating_point else array.astype(np.int64)
    return torch.from_numpy(wide.reshape(-1)).to(dtype)
