"""Which linear layers alone read what another layer makes, found by watching a model run once.

A norm (or a linear layer) whose output goes into linear layers and nowhere else can be scaled, channel by channel, if
they are scaled the other way. Every operation on that output is seen, also a residual sum around the layers; whatever
is not one of the layers makes an end of the link.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lissom.calibrate.data import Batch, call
from lissom.models.families import Link

HARMLESS = {"__get__", "dim", "size", "is_floating_point", "is_complex", "numel"}  # that ask, and make nothing of it


def asks(func: Any, result: Any) -> bool:
    """Whether what was done with a tensor was only to ask something about it."""
    return getattr(func, "__name__", "") in HARMLESS and not isinstance(result, Tensor)


class Watch(TorchFunctionMode):
    """Follows the outputs of makers; `readers` are those of each, `spoiled` the makers that others read too."""

    def __init__(self, makers: Mapping[str, nn.Module], readers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.makers, self.linears = makers, readers
        self.made: dict[int, tuple[str, Tensor, Tensor]] = {}
        self.readers: dict[str, list[str]] = {}
        self.spoiled: set[str] = set()
        self.calls: list[str] = []
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside and not asks(func, result):
            self.end((args, kwargs))
        return result

    def end(self, given: Any) -> None:
        """Somebody who is no linear layer has been given these."""
        self.spoiled |= {self.made[id(leaf)][0] for leaf in leaves(given) if id(leaf) in self.made}

    def hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """To be called before and after a layer runs."""

        def before(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.calls.append(name)
            if name in self.linears and arguments and id(arguments[0]) in self.made:
                self.readers.setdefault(self.made[id(arguments[0])][0], []).append(name)
                self.inside += 1

        def after(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if name in self.linears and arguments and id(arguments[0]) in self.made:
                self.inside -= 1
            if name in self.makers and isinstance(output, Tensor) and arguments:
                self.made[id(output)] = (name, arguments[0], output)

        return before, after


def leaves(given: Any) -> list[Any]:
    """Everything inside containers and plain objects."""
    return [inner for leaf in tree_leaves(given) for inner in (tree_leaves(vars(leaf)) if plain(leaf) else [leaf])]


def plain(leaf: Any) -> bool:
    """Whether this is an object that may hold tensors."""
    return hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor | nn.Module | type) and not callable(leaf)


@torch.no_grad()
def observed_links(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> list[Link]:
    """The links among the leaves of a model, in evaluation mode; readers are linear layers out of `layers`."""
    linears = {name: layer for name, layer in layers.items() if type(layer) is nn.Linear and not shared(model, layer)}
    makers = {name: part for name, part in model.named_modules() if makes(part) and not shared(model, part)}
    watch = Watch(makers, linears)
    with ExitStack() as hooks:
        for name, part in {**makers, **linears}.items():
            before, after = watch.hooks(name)
            hooks.enter_context(part.register_forward_pre_hook(before))
            hooks.enter_context(part.register_forward_hook(after))
        with watch:
            output = call(model, batch)
    watch.end(output)
    known = {name: (x, y) for name, x, y in watch.made.values()}
    once = {name for name in watch.calls if watch.calls.count(name) == 1}
    return [
        Link(makers=(name,), readers=tuple(readers))
        for name, readers in watch.readers.items()
        if name not in watch.spoiled and {name, *readers} <= once and scales(makers[name], *known[name])
    ]


def makes(part: nn.Module) -> bool:
    """Whether a part could make channels: a leaf with a weight, perhaps a bias, and nothing else."""
    own = dict(part.named_parameters())
    return "weight" in own and set(own) <= {"weight", "bias"} and not list(part.children())


def shared(model: nn.Module, part: nn.Module) -> bool:
    """Whether another part has a parameter of this one."""
    own = {id(p) for p in part.parameters(recurse=False)}
    others = (p for other in model.modules() if other is not part for p in other.parameters(recurse=False))
    return any(id(p) in own for p in others)


def scales(part: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the last dim of a part's output grows with the rows of its parameters."""
    own = {name: p.detach() for name, p in part.named_parameters()}
    channels = y.shape[-1]
    if any(p.shape[0] != channels for p in own.values()):
        return False
    s = torch.linspace(0.5, 2, channels, dtype=y.dtype, device=y.device)
    grown = {name: p * s.reshape(-1, *[1] * (p.dim() - 1)).to(p.dtype) for name, p in own.items()}
    found = torch.func.functional_call(part, grown, (x,))
    near = torch.finfo(y.dtype).eps * 32
    return torch.allclose(found, y * s, rtol=near, atol=near * float(y.abs().max()))
