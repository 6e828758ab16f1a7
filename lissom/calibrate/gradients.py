"""What the end loss says about the outputs of layers: one backward pass, of which a few sums stay.

The loss is the product of what the model says with random vectors, such that the gradients' second moments are the
Fisher information, the curvature of the KL divergence to the model as it is (Martens, JMLR 2020, arXiv:1412.1193,
section 5). Of outputs that are no class scores they are the Gauss-Newton matrix of the squared error (same, section 8).

Shapes: n rows, o outputs of a layer, v classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate.observe import CONVOLUTIONS, looks_up, rows
from lissom.formats import scale_of
from lissom.statistics import Fisher

LARGEST = 100.0  # times the mean: no single row may outweigh so many
ROWS, NUMBERS = 4096, 2**25  # of a layer that `Rows` keeps at most, and of all gradients in them


@runtime_checkable
class Ear(Protocol):
    """What takes in the gradients of one layer."""

    def see(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take in a batch: the layer's input, and the gradient at its output."""
        ...


@dataclass(slots=True)
class Heard:
    """Of one layer: the Fisher information of its outputs, and for each row of its inputs how much hangs on it."""

    fisher: Fisher
    parts: list[Float[Tensor, " n"]] = field(default_factory=list)

    @classmethod
    def of(cls, layer: nn.Module, y: Tensor) -> "Heard":
        """Nothing heard yet of a layer with such an output."""
        return cls(Fisher.zero(by_row(layer, y).shape[1], y.device))

    def weights(self) -> Float[Tensor, " n"]:
        """Of all rows in the order they were seen; 1 on the average, and never more than `LARGEST`."""
        together = torch.cat(self.parts)
        return (together / together.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=LARGEST)

    def see(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take in a batch: the layer's input, and the gradient at its output."""
        groups = int(getattr(layer, "groups", 1))
        g, loud = by_row(layer, g).float(), rows(layer, x).float().square().mean(1)
        places = g.shape[0] if groups == 1 else loud.numel() // groups // x.shape[0]
        split = g.unflatten(1, (groups, -1)).square().mean(-1)  # (batch · places, groups)
        self.parts.append(split.unflatten(0, (-1, places)).transpose(1, 2).flatten())
        loud = loud.unflatten(0, (-1, groups, places)).mean(1).flatten()
        self.fisher.see(g * loud.sqrt().unsqueeze(1))


@dataclass(slots=True)
class Rows:
    """Of one layer: rows of what it is given, drawn from all, and the gradients at what comes of them.

    The gradients are at the product with the matrix, before it is scaled. Of an embedding, rows are entries' numbers.

    Args:
        most: how many are kept; about half as many, or all where there are fewer.
    """

    most: int
    n: int = 0
    share: float = 1.0
    parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    draw: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, layer: nn.Module, y: Tensor) -> "Rows":
        """None yet of a layer with such an output."""
        o = by_row(layer, y).shape[1]
        return cls(max(2, min(ROWS, NUMBERS // o)))

    def see(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take in a batch: the layer's input, and the gradient at its output."""
        g = by_row(layer, g)
        number = torch.rand(len(g), generator=self.draw, device="cpu")
        here = (number < self.share).nonzero().flatten()
        chosen = here.to(g.device)
        x = given(layer, x)[chosen]
        self.parts.append(
            (number[here], x.float() if x.is_floating_point() else x, g[chosen].float() * scale_of(layer))
        )
        self.n += len(g)
        while sum(len(number) for number, _, _ in self.parts) > self.most:
            self.share /= 2
            kept = [(number < self.share).nonzero().flatten() for number, _, _ in self.parts]
            self.parts = [
                (number[chosen], x[chosen.to(x.device)], g[chosen.to(g.device)])
                for chosen, (number, x, g) in zip(kept, self.parts, strict=True)
            ]

    @property
    def kept(self) -> float:
        """Which share of all rows; not nothing, even if none was drawn."""
        return max(1, sum(len(number) for number, _, _ in self.parts)) / max(self.n, 1)

    @property
    def together(self) -> tuple[Tensor, Float[Tensor, "n o"]]:
        """All rows that are kept, (n, i), of each group where a convolution has several, and their gradients."""
        if len(self.parts) > 1:
            number, x, g = (torch.cat(part) for part in zip(*self.parts, strict=True))
            self.parts = [(number, x, g)]
        _, x, g = self.parts[0]
        return x, g


def given(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer is given, by rows: entries of an embedding, else (n, i), or of several groups (n, groups, i)."""
    if looks_up(layer):
        return x.flatten()
    found, groups = rows(layer, x), int(getattr(layer, "groups", 1))
    if groups == 1:
        return found
    spatial: int = len(layer.kernel_size)  # type: ignore[arg-type]
    batch = x.shape[0] if x.dim() > spatial + 1 else 1
    by_place: Tensor = found.unflatten(0, (batch, groups, -1)).transpose(1, 2).flatten(0, 1)
    return by_place


def by_row(layer: nn.Module, y: Tensor) -> Float[Tensor, "n o"]:
    """A layer's output, or its gradient, with a row for each product with its matrix."""
    if not isinstance(layer, CONVOLUTIONS):
        return y.reshape(-1, y.shape[-1])
    spatial = len(layer.kernel_size)
    y = y if y.dim() == spatial + 2 else y.unsqueeze(0)
    return y.flatten(2).transpose(1, 2).flatten(0, 1)


E = TypeVar("E", bound=Ear)
Taken = list[tuple[str, nn.Module, Tensor, Tensor]]


@contextmanager
def outputs(layers: Mapping[str, nn.Module]) -> Iterator[Taken]:
    """Within the block, every call of a layer leaves its name, itself, its input, and an output to differentiate by."""
    taken: Taken = []

    def hook(name: str) -> Any:
        def take(layer: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> Tensor:
            y = y if y.requires_grad else y.detach().requires_grad_()
            taken.append((name, layer, arguments[0].detach(), y))
            return y.clone()  # what follows may change it in place

        return take

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def hear(
    heard: dict[str, E],
    taken: Taken,
    loss: Tensor,
    inputs: Sequence[Tensor] = (),
    *,
    new: Callable[[nn.Module, Tensor], E],
) -> Sequence[Tensor]:
    """Run a loss backward: each layer takes in the gradient at its output; returned are the gradients of `inputs`."""
    wanted = [*(y for *_, y in taken), *inputs]
    found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    for (name, layer, x, y), g in zip(taken, found, strict=False):
        if name not in heard:
            heard[name] = new(layer, y)
        heard[name].see(layer, x, torch.zeros_like(y) if g is None else g)
    return found[len(taken) :]


def end_loss(said: Tensor, scores: bool, generator: torch.Generator) -> Tensor:
    """The loss at what a model says: its product with random vectors u.

    Of class scores (..., v) the second moment of u is the Fisher information of the softmax, diag(p) - p pᵀ, else the
    identity. They are made of random signs s: u = √p s - p (√p · s), or s. Labels drawn from p would do the same on the
    average, but where a model is nearly sure all would hang on the few that are hardly ever drawn.
    """
    with torch.no_grad():
        u = torch.empty_like(said, dtype=torch.float32).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        if scores:
            p = said.float().softmax(-1)
            u.mul_(p.sqrt())
            u.addcmul_(p, u.sum(-1, keepdim=True), value=-1)
    return said.float().flatten() @ u.flatten()
