"""A module as the chain of layers that it is, traced by torch.fx, and that chain in fixed point.

A batch norm becomes part of the layer before it, a mean of windows a convolution of ones, and a ReLU behind windows of
which the largest is taken the end of the layer before those, which gives the same.

Shapes: o outputs, i inputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lissom.artifact.graph import Program
from lissom.errors import ModelError, reason
from lissom.export.fpga.fixed import Codes, Fixed, Flat, Largest, Network, Stage, fitted
from lissom.export.grid import grid_of
from lissom.formats import CompressedLayer
from lissom.models.layers import weight_of

KNOWN = "Linear, Conv2d, BatchNorm, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Flatten, Dropout, in a row"
ANSWERS = 16  # bits of what the last layer says, which nothing multiplies
MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: lambda inplace=False: nn.ReLU(),
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
}


class Tracer(fx.Tracer):
    """torch.fx, to which a compressed layer is one layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is not looked into."""
        return isinstance(m, CompressedLayer) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """A layer of the chain, and what the batch norm and the ReLU behind it add: y = max(gain · layer(x) + shift, 0).

    `name` is that of its module, or of its function in the trace.
    """

    name: str
    layer: nn.Module
    gain: np.ndarray | None = None
    shift: np.ndarray | None = None
    rectified: bool = False

    @property
    def weighs(self) -> bool:
        """Whether it multiplies."""
        return is_a(self.layer, nn.Linear) or is_a(self.layer, nn.Conv2d) or isinstance(self.layer, MEANS)


def is_a(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of a kind, or stands for one."""
    return isinstance(layer, kind) or getattr(layer, "stands_for", None) is kind


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a module that is a chain of them.

    Raises:
        ModelError: torch.fx cannot follow it, or it is no chain.
    """
    if isinstance(model, Program):
        raise ModelError("fpga: an exported graph is not followed; give model=, an instance of the module's own class")
    try:
        nodes = list(Tracer().trace(model).nodes)
    except Exception as error:  # tracing runs the module's own code
        raise ModelError(f"fpga: torch.fx cannot follow {type(model).__name__}: {reason(error)}") from None
    found = list[tuple[str, nn.Module]]()
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            raise ModelError(f"fpga: {node.name} takes more than what comes before it; what can be built is {KNOWN}")
        if node.op != "output":
            name = str(node.target if node.op == "call_module" else node.name)
            found.append((name, layer_of(model, node)))
    return found


def layer_of(model: nn.Module, node: fx.Node) -> nn.Module:
    """The layer that a node of a trace is.

    Raises:
        ModelError: it is another operation.
    """
    if node.op == "call_module":
        return model.get_submodule(str(node.target))
    if node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
        return FUNCTIONS[node.target](*node.args[1:], **node.kwargs)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.op)
    raise ModelError(f"fpga: cannot be built from {name!r}; what can is {KNOWN}")


def chain(model: nn.Module) -> list[Link]:
    """The layers of a module with batch norms and ReLUs taken into those that they follow.

    Raises:
        ModelError: it is no such chain.
    """
    links = list[Link]()
    for name, layer in layers_of(model):
        if isinstance(layer, NORMS):
            links[-1:] = [normed(links, name, layer)]
        elif isinstance(layer, nn.ReLU):
            rectify(links, name)
        elif not isinstance(layer, NOTHING):
            links.append(Link(name=name, layer=checked(name, layer)))
    return links


def checked(name: str, layer: nn.Module) -> nn.Module:
    """The layer, where it can be built.

    Raises:
        ModelError: it cannot.
    """
    told: Any = layer
    odd = {
        "groups": is_a(layer, nn.Conv2d) and told.groups != 1,
        "dilation": is_a(layer, nn.Conv2d) and pair(told.dilation) != (1, 1),
        "padding": is_a(layer, nn.Conv2d) and (isinstance(told.padding, str) or told.padding_mode != "zeros"),
        "windows past the edge": isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d))
        and (pair(told.padding) != (0, 0) or told.ceil_mode),
        "an output of several places": isinstance(layer, nn.AdaptiveAvgPool2d) and pair(told.output_size) != (1, 1),
        "dims that stay apart": isinstance(layer, nn.Flatten) and (told.start_dim, told.end_dim) != (1, -1),
    }
    kinds = (nn.Linear, nn.Conv2d, nn.MaxPool2d, *MEANS, nn.Flatten)
    if wrong := next((what for what, is_so in odd.items() if is_so), None):
        raise ModelError(f"fpga: {name} is a {type(layer).__name__} with {wrong}, which cannot be built")
    if not any(is_a(layer, kind) for kind in kinds):
        raise ModelError(f"fpga: {name} is a {type(layer).__name__}; what can be built is {KNOWN}")
    return layer


def normed(links: Sequence[Link], name: str, norm: nn.Module) -> Link:
    """The layer before a batch norm, with it.

    Raises:
        ModelError: there is none that multiplies, or something lies between.
    """
    if not links or not links[-1].weighs or links[-1].rectified or links[-1].gain is not None:
        raise ModelError(f"fpga: {name} must follow a linear layer or a convolution directly")
    held: Any = norm
    if held.running_var is None:
        raise ModelError(f"fpga: {name} keeps no running statistics, and hardware sees one example at a time")
    weight = torch.ones_like(held.running_var) if held.weight is None else held.weight
    bias = torch.zeros_like(held.running_var) if held.bias is None else held.bias
    gain = weight.double() / (held.running_var.double() + held.eps).sqrt()
    shift = bias.double() - gain * held.running_mean.double()
    return replace(links[-1], gain=gain.detach().numpy(), shift=shift.detach().numpy())


def rectify(links: list[Link], name: str) -> None:
    """Let the last layer that multiplies end in max(y, 0), in place.

    Raises:
        ModelError: there is none, or more than windows and flattening lie between.
    """
    at = next((n for n in reversed(range(len(links))) if links[n].weighs), None)
    if at is None:
        raise ModelError(f"fpga: {name} must follow a linear layer or a convolution")
    links[at] = replace(links[at], rectified=True)


def in_fixed_point(links: Sequence[Link], numbers: Tensor, bits: int) -> Network:
    """The chain with types of `bits` bits between layers, each as fine as what examples show allows; 16 at the end.

    Raises:
        ModelError: a layer does not take the examples.
    """
    seen = numbers.double().numpy()
    kind = Fixed.around(float(np.abs(seen).max()), bits, signed=bool(seen.min() < 0))
    network, x = Network(shape=seen.shape[1:], entry=kind, stages=()), kind.codes(seen)
    stages, final = list[Stage](), next((link for link in reversed(links) if link.weighs), None)
    for link in links:
        try:
            stages.append(stage_of(link, x, kind, ANSWERS if link is final else bits))
            x, kind = stages[-1].run(x, kind.point), stages[-1].out
        except ValueError as error:
            raise ModelError(f"fpga: {link.name} does not take examples of {x.shape[1:]}: {reason(error)}") from None
    return replace(network, stages=tuple(stages))


def stage_of(link: Link, x: Codes, kind: Fixed, bits: int) -> Stage:
    """A layer in fixed point; `x` are the codes that come in, of a kind."""
    layer: Any = link.layer
    if isinstance(layer, nn.Flatten):
        return Flat(name=link.name, out=kind)
    if isinstance(layer, nn.MaxPool2d):
        size = pair(layer.kernel_size)
        return Largest(name=link.name, size=size, stride=pair(layer.stride or size), out=kind)
    codes, scale, bias, stride, padding = mean(layer, x) if isinstance(layer, MEANS) else weighed(layer)
    gain = np.ones(len(scale)) if link.gain is None else link.gain
    shift = np.zeros(len(scale)) if link.shift is None else link.shift
    more: dict[str, Any] = {"rectified": link.rectified, "bits": bits, "stride": stride, "padding": padding}
    return fitted(link.name, codes, scale * gain, bias * gain + shift, seen=x, kind=kind, **more)


Weighed = tuple[Codes, np.ndarray, np.ndarray, tuple[int, int], tuple[int, int]]


def weighed(layer: Any) -> Weighed:
    """Codes, scales, biases, stride and padding of a layer of whole numbers with a scale for each row."""
    grid = grid_of(weight_of(layer))
    assert grid is not None
    codes = grid.codes.long().numpy()
    scale = grid.scale_of(codes.shape[1])
    assert scale is not None
    bias = np.zeros(len(codes)) if layer.bias is None else layer.bias.detach().double().numpy()
    is_map = is_a(layer, nn.Conv2d)
    codes = codes.reshape(len(codes), -1, *layer.kernel_size) if is_map else codes
    stride, padding = (pair(layer.stride), pair(layer.padding)) if is_map else ((1, 1), (0, 0))
    return codes, scale[:, 0].double().numpy(), bias, stride, padding


def mean(layer: Any, x: Codes) -> Weighed:
    """The same of a mean of windows: ones between a channel and itself."""
    channels, size = x.shape[1], pair(x.shape[2:] if isinstance(layer, nn.AdaptiveAvgPool2d) else layer.kernel_size)
    stride = size if isinstance(layer, nn.AdaptiveAvgPool2d) else pair(layer.stride or size)
    codes = np.eye(channels, dtype=np.int64)[:, :, None, None] * np.ones(size, np.int64)
    return codes, np.full(channels, 1 / math.prod(size)), np.zeros(channels), stride, (0, 0)


def pair(size: Any) -> tuple[int, int]:
    """A size in both directions."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
