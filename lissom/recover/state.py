"""Where training stands, as JSON and tensors: what safetensors and a journal can hold, and never a pickle."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

PLAIN = (type(None), bool, int, float, str)


def packed(value: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """A nest of dicts, lists, numbers and tensors as JSON; its tensors go to `tensors`, by their place in it.

    Those that are sharded become whole: all workers must call it.
    """
    if isinstance(value, Tensor):
        tensors[prefix] = (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        return {"dict": [[key, packed(own, tensors, f"{prefix} {key}".strip())] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [packed(own, tensors, f"{prefix} {n}".strip()) for n, own in enumerate(value)]}
    if not isinstance(value, PLAIN):
        raise TypeError(f"{prefix} is a {type(value).__name__}, which has no place in JSON")
    return value


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `packed`; the tensors are copies."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "dict":
        return {key: unpacked(own, tensors) for key, own in content}
    found = [unpacked(own, tensors) for own in content]
    return found if kind == "list" else tuple(found)
