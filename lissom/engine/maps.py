"""What a traced network does to images: each node of its graph as one of a few operations, or as none that is known.

Graphs of torch.fx and of torch.export say the same in several ways: as modules, functions, methods and operators. Rules
have the arguments that PyTorch's functions have, behind the images.

Shapes: o outputs, i inputs, c channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from lissom.engine.kernels.conv import PanelConv
from lissom.engine.kernels.conv import padding as zeros_around
from lissom.engine.kernels.fold import evaluates
from lissom.formats import CompressedConv, Weight
from lissom.models.trace import name_of

GATES = {"silu": 0, "relu": 2, "gelu": 3, "relu6": 4, "hardswish": 5}  # as step.h counts them
NONE = 6
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # that are computed with in float32
HOLDING = (PanelConv, CompressedConv, nn.Conv2d, nn.BatchNorm2d)  # what is worth to be looked for in a module


class Flow(fx.Tracer):
    """Follows images through a module, as far down as convolutions and norms lie."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one step of the graph."""
        inside = any(isinstance(part, HOLDING) for part in m.modules())
        return isinstance(m, HOLDING) or not (inside or isinstance(m, nn.Sequential))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """A convolution on panels, or of floats; `pads` are zeros above and below, left and right."""

    panels: PanelConv | None = None
    weight: Float[Tensor, "o i y x"] | None = None
    bias: Float[Tensor, " o"] | None = None
    stride: tuple[int, int]
    pads: list[tuple[int, int]]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """x factor + shift, for each channel."""

    factor: Float[Tensor, " c"]
    shift: Float[Tensor, " c"]


@dataclass(frozen=True, slots=True)
class Gate:
    """An activation."""

    shape: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The mean or the largest of windows, or the mean of as many shares as are wanted: `parts` of them."""

    mean: bool
    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    inside: bool = False
    parts: tuple[int, int] | None = None
    flat: bool = False  # the result is no image


@dataclass(frozen=True, slots=True)
class Pick:
    """Every so many pixels, down and to the right."""

    step: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Widen:
    """So many new channels of zeros, before and behind."""

    before: int
    behind: int


class Add:
    """The sum of two."""


class Join:
    """Channels of one after those of the other."""


class Same:
    """Nothing."""


Operation = Conv | Scale | Gate | Pool | Pick | Widen | Add | Join | Same
Rule = Callable[..., Operation | None]


def pair(given: Any) -> tuple[int, int]:
    """A number for both directions, or one for each."""
    both = (given, given) if isinstance(given, int) else tuple(given) * (3 - len(given))
    return both[0], both[1]


def conv2d(
    weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Conv | None:
    """A convolution of floats."""
    tensors = isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    if not tensors or weight.dtype not in FLOATS:
        return None
    reach = [d * (k - 1) + 1 for d, k in zip(pair(dilation), weight.shape[2:], strict=True)]
    return Conv(
        weight=weight.detach().float(),
        bias=None if bias is None else bias.detach().float(),
        stride=pair(stride),
        pads=zeros_around(padding if isinstance(padding, str) else pair(padding), reach),
        dilation=pair(dilation),
        groups=groups,
    )


def norm(weight: Any, bias: Any, mean: Any, var: Any, training: bool, _: float, eps: float, *more: Any) -> Scale | None:
    """A batch norm that uses what it has learned: torch.ops.aten.batch_norm."""
    if training or mean is None:
        return None
    factor = (var.detach().float() + eps).rsqrt() * (1 if weight is None else weight.detach().float())
    return Scale(factor, (0 if bias is None else bias.detach().float()) - mean.detach().float() * factor)


def largest(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *more: Any, **others: Any
) -> Pool | None:
    """max_pool2d."""
    if pair(dilation) != (1, 1) or any(more) or any(others.values()):
        return None
    return Pool(mean=False, size=pair(kernel_size), stride=pair(stride or kernel_size), pad=pair(padding))


def average(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Pool | None:
    """avg_pool2d."""
    if ceil_mode or divisor_override is not None:
        return None
    inside = not count_include_pad
    return Pool(mean=True, size=pair(kernel_size), stride=pair(stride or kernel_size), pad=pair(padding), inside=inside)


def shares(output_size: Any) -> Pool | None:
    """adaptive_avg_pool2d."""
    parts = pair(output_size) if isinstance(output_size, int) or None not in output_size else None
    return None if parts is None else Pool(mean=True, parts=parts)


def mean(dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Pool | None:
    """The mean over an image."""
    dims = {d % 4 for d in dim} if isinstance(dim, tuple | list) else None
    return Pool(mean=True, parts=(1, 1), flat=not keepdim) if dims == {2, 3} and dtype is None else None


def pad_(pad: Any, mode: Any = "constant", value: Any = None) -> Widen | Same | None:
    """New channels; `pad` begins at the last dim."""
    if mode not in ("constant", 0, 0.0) or value or any(pad[:4]) or any(pad[6:]) or min(pad) < 0:
        return None
    before, behind = (*pad, 0, 0, 0, 0, 0, 0)[4:6]
    return Widen(before, behind) if before or behind else Same()


def item(index: Any) -> Pick | Same | None:
    """x[:, :, ::2, ::2] and the like."""
    index = index if isinstance(index, tuple) else (index,)
    if len(index) > 4 or any(type(part) is not slice or part.start or part.stop is not None for part in index):
        return None
    steps = [part.step or 1 for part in index] + [1] * (4 - len(index))
    return picked(steps)


def cut(dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Pick | Same | None:
    """The same along one dim: torch.ops.aten.slice."""
    if start or not (end is None or (isinstance(end, int) and end >= 2**62)):
        return None
    return picked([step if at == dim % 4 else 1 for at in range(4)])


def picked(steps: list[Any]) -> Pick | Same | None:
    """Every so many along each dim."""
    if any(type(step) is not int for step in steps) or steps[:2] != [1, 1]:
        return None
    return Pick((steps[2], steps[3])) if steps[2:] != [1, 1] else Same()


def gate(name: str) -> Rule:
    """An activation that has no further say but whether it is in place."""
    return lambda *_, **__: Gate(GATES[name])


def gelu(approximate: str = "none") -> Gate:
    """In either form."""
    return Gate(GATES["gelu"] if approximate == "none" else 1)


def bounded(low: float = -1.0, high: float = 1.0, inplace: bool = False) -> Gate | None:
    """ReLU6 by its other name."""
    return Gate(GATES["relu6"]) if (low, high) == (0, 6) else None


RULES: dict[str, Rule] = {
    **{name: gate(name) for name in ("relu", "relu6", "silu", "hardswish")},
    "gelu": gelu,
    "hardtanh": bounded,
    "conv2d": conv2d,
    "max_pool2d": largest,
    "avg_pool2d": average,
    "adaptive_avg_pool2d": shares,
    "mean": mean,
    "pad": pad_,
    "constant_pad_nd": lambda pad, value=None: pad_(pad, value=value),
    "getitem": item,
    "slice": cut,
    "dropout": lambda p=0.5, training=True, *_, **__: None if training else Same(),
    "contiguous": lambda *_, **__: Same(),
}
MODULES: dict[type[nn.Module], Rule] = {
    PanelConv: lambda m: Conv(panels=m, stride=m.stride, pads=m.padding, dilation=m.dilation, groups=m.groups),
    CompressedConv: lambda m: dense(m),
    nn.Conv2d: lambda m: conv2d(m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups) if zeros(m) else None,
    nn.BatchNorm2d: lambda m: norm(m.weight, m.bias, m.running_mean, m.running_var, not evaluates(m), 0.0, m.eps),
    nn.ReLU: gate("relu"),
    nn.ReLU6: gate("relu6"),
    nn.SiLU: gate("silu"),
    nn.Hardswish: gate("hardswish"),
    nn.GELU: lambda m: gelu(m.approximate),
    nn.MaxPool2d: lambda m: largest(m.kernel_size, m.stride, m.padding, m.dilation, m.return_indices, m.ceil_mode),
    nn.AvgPool2d: lambda m: average(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m: shares(m.output_size),
    nn.Identity: lambda _: Same(),
    nn.Dropout: lambda m: None if m.training else Same(),
    nn.Dropout2d: lambda m: None if m.training else Same(),
}


def zeros(layer: nn.Module) -> bool:
    """Whether a convolution is padded with zeros."""
    return layer.padding_mode == "zeros"


def dense(layer: CompressedConv) -> Conv | None:
    """A convolution of a format that no kernel has, decoded once; not such as change their inputs first."""
    if layer.stands_for is not nn.Conv2d or not zeros(layer) or type(layer.weight).activate is not Weight.activate:
        return None
    kernel = layer.weight.dense().unflatten(1, (-1, *layer.kernel_size))
    return conv2d(kernel, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def read(node: fx.Node, parts: Mapping[str, Any]) -> tuple[Operation, list[fx.Node]] | None:
    """What a node does, and to the maps of which nodes; None where that is not known.

    `parts` are the modules and tensors of the graph by their names.
    """
    if not node.args:
        return None
    first, *rest = (known(one, parts) for one in node.args)
    if node.op == "call_module":
        layer = parts[str(node.target)]
        return ruled(MODULES.get(type(layer)), first, [layer], {})
    plain = "add" if called(node) == "iadd" else called(node).rstrip("_")
    if plain == "add":
        both = all(isinstance(one, fx.Node) for one in (first, *rest))
        return (Add(), [first, *rest]) if both and len(rest) == 1 and not node.kwargs else None
    if plain in ("cat", "concat"):
        channels = [*rest, *node.kwargs.values()] in ([1], [-3])
        return (Join(), list(first)) if channels and all(isinstance(one, fx.Node) for one in first) else None
    operator = hasattr(node.target, "_schema")
    return ruled(norm if plain == "batch_norm" and operator else RULES.get(plain), first, rest, node.kwargs)


def ruled(
    rule: Rule | None, image: Any, knobs: list[Any], more: Mapping[str, Any]
) -> tuple[Operation, list[fx.Node]] | None:
    """What a rule makes of its arguments."""
    try:
        found = rule(*knobs, **more) if rule is not None and isinstance(image, fx.Node) else None
    except TypeError:  # arguments that are only known when it runs
        return None
    return None if found is None else (found, [image])


def known(argument: Any, parts: Mapping[str, Any]) -> Any:
    """A tensor of the graph itself; else the argument."""
    constant = isinstance(argument, fx.Node) and argument.op == "get_attr"
    return parts[str(argument.target)] if constant else argument


def called(node: fx.Node) -> str:
    """The name of a method, a function or an operator."""
    return str(node.target) if node.op == "call_method" else name_of(node) if node.op == "call_function" else ""


def overwritten(node: fx.Node, parts: Mapping[str, Any]) -> fx.Node | None:
    """What it works on in place, if that is read again later."""
    layer = parts[str(node.target)] if node.op == "call_module" else None
    place = node.kwargs.get("inplace") or getattr(layer, "inplace", False)
    source = node.args[0] if node.args and (place or called(node) == "iadd" or called(node).endswith("_")) else None
    return source if isinstance(source, fx.Node) and any(node < user for user in source.users) else None
