"""Batch norms folded into the convolutions before them: each output's scale and bias take over what they did.

    (W x + b - m) f + s = (f W) x + (b - m) f + s        f = gamma / √(v + eps), s = beta

Shapes: o outputs.
"""

from typing import Any

import torch
from torch import fx, nn

from lissom.engine.kernels.conv import PanelConv
from lissom.models.families import put

KINDS = (PanelConv, nn.BatchNorm2d)


class Layers(fx.Tracer):
    """Follows what flows between layers; what holds neither a norm nor a convolution is not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one step of the graph."""
        return isinstance(m, KINDS) or not any(isinstance(part, KINDS) for part in m.modules())


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold, in place, each batch norm that evaluates and is all that reads a convolution on panels.

    Of a model that cannot be traced none is.
    """
    if not set(KINDS) <= {type(layer) for layer in model.modules()}:
        return model
    try:
        graph = Layers().trace(model)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a flow that depends on the data, most often
        return model
    layers: dict[Any, Any] = dict(model.named_modules())
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        norm, before = layers.get(node.target), node.args[0] if node.args else None
        if isinstance(norm, nn.BatchNorm2d) and isinstance(before, fx.Node) and len(before.users) == 1:
            once = called.count(node.target) == called.count(before.target) == 1
            if once and isinstance(layers.get(before.target), PanelConv) and evaluates(norm):
                fold(layers[before.target], norm)
                put(model, node.target, nn.Identity())
    return model


def evaluates(norm: nn.BatchNorm2d) -> bool:
    """Whether it uses the mean and variance that it has learned."""
    return not norm.training and norm.running_mean is not None


@torch.no_grad()
def fold(layer: PanelConv, norm: nn.BatchNorm2d) -> None:
    """Give a layer what a batch norm does to its outputs."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.float() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.float()
    shift = -norm.running_mean.float() * factor
    layer.panels.rescale(factor, shift + norm.bias.float() if norm.affine else shift)
