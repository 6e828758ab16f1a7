"""Which layers' tensors a module's own code reads besides running the layers, found by watching it run once.

A head that multiplies by an embedding's matrix makes such a layer of the embedding. Code that reads a tensor cannot be
given a compressed matrix, so these layers stay as they are.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lissom.calibrate.data import Batch, first_call
from lissom.calibrate.links import asks


class Reads(TorchFunctionMode):
    """Sees what is done with the tensors of layers while none of these runs; `found` are the layers' names."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.running, self.found = 0, set[str]()
        self.owners: dict[int, set[str]] = {}
        for name, layer in layers.items():
            for tensor in layer.parameters(recurse=False):
                self.owners.setdefault(id(tensor), set()).add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.running and not asks(func, result):
            for leaf in tree_leaves((args, kwargs)):
                self.found |= self.owners.get(id(leaf), set())
        return result

    def begin(self, *_: Any) -> None:
        """A layer runs."""
        self.running += 1

    def end(self, *_: Any) -> None:
        """It has run."""
        self.running -= 1


@torch.no_grad()
def read_besides(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> set[str]:
    """The names of those among the layers of a model, which runs on a batch in the mode that it is in.

    Raises:
        DataError: the model does not take the batch.
    """
    reads = Reads(layers)
    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_pre_hook(reads.begin))
            hooks.enter_context(layer.register_forward_hook(reads.end))
        hooks.enter_context(reads)
        first_call(model, batch)
    return reads.found
