"""A module as a program: what torch.export makes of it, for batches of any size and texts of any length."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map_only

from lissom.artifact.datatypes import DATATYPES
from lissom.artifact.graph import named_outputs
from lissom.errors import ModelError, reason
from lissom.export.handover import Given
from lissom.formats import Weight
from lissom.models.experts import unchosen

WIDE = {"FP16": "FP32", "BF16": "FP32"}
HALVES = (torch.float16, torch.bfloat16)
SOME = 2  # of what there may be any number of, in the example that is followed
LANGUAGE = {
    "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, -1, -1]}],
}
AXES = ("batch", "length")
ANY: Mapping[str, int] = MappingProxyType({})  # of both: as many as there are


class Whole(nn.Module):
    """A model whose inputs have an order and whose outputs are tensors; a language model gives all logits."""

    def __init__(self, model: nn.Module, names: list[str], *, language: bool) -> None:
        super().__init__()
        self.model, self.names, self.more = model, names, {"use_cache": False} if language else {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the model gives."""
        given = dict(zip(self.names, inputs, strict=True))
        return tuple(named_outputs(self.model(**given, **self.more)).values())


def signature_of(given: Given) -> Mapping[str, Any]:
    """Names, types and shapes of what goes in and out.

    Raises:
        ModelError: the folder does not say them.
    """
    if given.config is not None:
        return LANGUAGE
    if given.opened.signature is None:
        raise ModelError(f"{given.folder} does not say what goes in; save it with example=a batch to hand it over")
    return given.opened.signature


def in_float32(given: Given, taken: Mapping[str, Weight]) -> tuple[Mapping[str, Any], nn.Module]:
    """What goes in and out, and the model with its weights as a target takes them; what was in 16 bits is in float32.

    Few runtimes compute in 16 bits on a processor. Compressed weights stay what they are.
    """
    told, model = signature_of(given), given.changed(taken)
    signature = {
        side: [{**one, "datatype": WIDE.get(one["datatype"], one["datatype"])} for one in told[side]]
        for side in ("inputs", "outputs")
    }
    model._apply(lambda tensor: tensor.float() if tensor.dtype in HALVES else tensor)
    if isinstance(model, fx.GraphModule):  # which has written down what it casts to
        for node in model.graph.nodes:
            node.args, node.kwargs = tree_map_only(torch.dtype, wide, (node.args, node.kwargs))
        model.recompile()
    return signature, model


def wide(kind: torch.dtype) -> torch.dtype:
    """The type to compute in instead of another."""
    return torch.float32 if kind in HALVES else kind


def names_of(signature: Mapping[str, Any], side: str) -> list[str]:
    """The names of "inputs" or "outputs"."""
    return [str(one["name"]) for one in signature[side]]


def axes_of(signature: Mapping[str, Any]) -> list[dict[int, str]]:
    """Of each input, the dims that may have any size, by name."""
    return [
        {dim: AXES[min(dim, 1)] for dim, size in enumerate(one["shape"]) if size == -1} for one in signature["inputs"]
    ]


def followed(
    model: nn.Module, signature: Mapping[str, Any], given: Given, most: Mapping[str, int] = ANY
) -> ExportedProgram:
    """The program of a model, which is changed where a graph computes the same in another way.

    `most` says of axes how many there may be, where that is bounded; of one there is always just one.

    Raises:
        ModelError: torch.export cannot follow it.
    """
    whole = Whole(unchosen(model), names_of(signature, "inputs"), language=given.config is not None).eval()
    example = tuple(sample(one, most) for one in signature["inputs"])
    dims = tuple({dim: bounded(most.get(name)) for dim, name in axes.items()} for axes in axes_of(signature))
    try:
        with torch.no_grad():
            return torch.export.export(whole, example, dynamic_shapes=(dims,))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        name = type(given.model).__name__
        raise ModelError(f"{given.folder}: torch.export cannot follow {name} ({reason(error)})") from None


def bounded(most: int | None) -> Any:
    """What torch.export is told of a dim of which there may be so many.

    One more than that, for where the last is also the size of something else, the two are held apart by giving it up.
    """
    if most is None:
        return Dim.DYNAMIC
    return Dim.STATIC if most == 1 else Dim.DYNAMIC(max=most + 1)


def sample(one: Mapping[str, Any], most: Mapping[str, int] = ANY) -> Tensor:
    """An input of ones: as many as there may be, for what PyTorch chooses by a size (as convolutions do at 16 examples)
    becomes a bound of it. Of two such dims the second has another size, so that they are not taken for the same.
    """
    some = [most.get(name, size) for name, size in zip(AXES, (SOME, SOME + 3), strict=True)]
    some[1] += some[0] == some[1] > 1
    sizes = [some[min(dim, 1)] if size == -1 else size for dim, size in enumerate(one["shape"])]
    return torch.ones(sizes, dtype=DATATYPES[one["datatype"]])


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch says of packages that are not needed here, and of calls of its own that will change."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
