"""A module that is no language model, at work for the other end of a link: tensors in, tensors out, one run at a time.

A frame of tensors is {"tensors": [[datatype, shape], ...]} and their values behind it, in row-major order.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from lissom.artifact.datatypes import DATATYPES, NAMES
from lissom.engine.link import Frame, Link
from lissom.models.text_encoder import TextEncoder

log = logging.getLogger("lissom.engine")


class ModuleHost:
    """Runs a module, at its place, for whoever is at the other end of the link; `leave` is called when that has gone.

    The tensors that come are passed by position; those that go are the named outputs of its signature.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        signature: Mapping[str, Any],
        link: Link,
        *,
        place: torch.device | None = None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._module, self._link, self._leave = module, link, leave
        self._place = place or torch.device("cpu")
        self._outputs = [str(output["name"]) for output in signature["outputs"]]
        self._asked: SimpleQueue[Frame | None] = SimpleQueue()

    def run(self) -> None:
        """Work until the other end has gone."""
        threading.Thread(target=self._listen, name="what the module is asked", daemon=True).start()
        try:
            while (frame := self._asked.get()) is not None:
                self._link.send(*self._answered(*frame))
        except ConnectionError:  # nobody is left to be told
            return
        finally:
            self._link.close()

    def _listen(self) -> None:
        try:
            while (frame := self._link.receive()) is not None:
                self._asked.put(frame)
        finally:  # whatever it was, nobody would be heard any more
            self._leave()
            self._asked.put(None)

    def _answered(self, said: Mapping[str, Any], behind: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            with torch.no_grad():
                result = self._module(*(tensor.to(self._place) for tensor in unpacked(said, behind)))
            return packed(self._named(result))
        except Exception:  # whatever it was, the next inputs may be better
            log.exception("the model failed on inputs %s", said["tensors"])
            return {"failed": True}, b""

    def _named(self, result: Any) -> list[Tensor]:
        """The tensors that the signature names, of a mapping, a sequence or a tensor alone."""
        if isinstance(result, Mapping):
            return [result[name] for name in self._outputs]
        tensors = list(result) if isinstance(result, tuple | list) else [result]
        if len(tensors) != len(self._outputs):
            raise ValueError(f"the model gives {len(tensors)} outputs, its signature names {self._outputs}")
        return tensors


def greeting(module: Any, signature: Mapping[str, Any]) -> dict[str, Any]:
    """What a server has to know of a module before it asks anything; of a text encoder, how long texts may be."""
    longest = {"longest": module.longest} if isinstance(module, TextEncoder) else {}
    return {"signature": signature, **longest}


def packed(tensors: Iterable[Tensor]) -> tuple[dict[str, Any], bytes]:
    """Tensors as a frame."""
    flat = [tensor.detach().cpu().contiguous() for tensor in tensors]
    described = [(NAMES[tensor.dtype], list(tensor.shape)) for tensor in flat]
    return {"tensors": described}, b"".join(map(raw, flat))


def unpacked(said: Mapping[str, Any], behind: bytes) -> list[Tensor]:
    """The tensors of a frame."""
    found, place = list[Tensor](), 0
    for datatype, shape in said["tensors"]:
        size = prod(shape) * DATATYPES[datatype].itemsize
        found.append(from_raw(datatype, shape, memoryview(behind)[place : place + size]))
        place += size
    return found


def raw(tensor: Tensor) -> bytes:
    """The values in row-major order, as bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def from_raw(datatype: str, shape: Sequence[int], values: bytes | memoryview) -> Tensor:
    """The tensor of these values; there must be as many as the shape says."""
    dtype = DATATYPES[datatype]
    return (
        torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape) if values else torch.empty(shape, dtype=dtype)
    )
