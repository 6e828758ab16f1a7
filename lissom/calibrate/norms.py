"""Which batch norm is given what a layer makes, found by watching a model run once."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lissom.calibrate.data import Batch, call
from lissom.calibrate.links import shared
from lissom.calibrate.observe import version


@torch.no_grad()
def norms_behind(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> dict[str, str]:
    """The names of norms by those of the layers in front of them, in evaluation mode.

    Layers that run once, share nothing, and whose outputs are the channels of a norm with statistics of its own.
    """
    norms = batch_norms(model)
    made: dict[int, tuple[str, Tensor, int]] = {}  # an output, and its version: others may add to it where it is
    found: dict[str, str] = {}
    calls = Counter[str]()

    def made_by(name: str) -> Any:
        def after(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            calls[name] += 1
            made[id(output)] = name, output, version(output)

        return after

    def read_by(name: str) -> Any:
        def before(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
            calls[name] += 1
            if not arguments or id(arguments[0]) not in made:
                return
            maker, output, as_made = made[id(arguments[0])]
            if version(output) == as_made and output.shape[1] == norm.num_features and whole(layers[maker], output):
                found[maker] = name

        return before

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(made_by(name)))
        for name, norm in norms.items():
            hooks.enter_context(norm.register_forward_pre_hook(read_by(name)))
        call(model, batch)
    return {
        layer: norm
        for layer, norm in found.items()
        if calls[layer] == calls[norm] == 1 and not shared(model, layers[layer])
    }


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Those with a mean and a variance of their own, by name."""
    norms = {name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm)}
    return {n: norm for n, norm in norms.items() if norm.running_mean is not None and norm.running_var is not None}


def whole(layer: Any, output: Tensor) -> bool:
    """Whether every output of a layer reads all of its inputs, and the second dim of what it makes is its outputs."""
    return getattr(layer, "groups", 1) == 1 and (hasattr(layer, "kernel_size") or output.dim() == 2)
