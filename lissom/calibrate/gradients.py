"""What the end loss says about the outputs of layers: one backward pass, of which a few sums stay.

The loss is the model's own: the likelihood of labels drawn from what it predicts, so that the gradients' second moments
are the Fisher information, the curvature of the KL divergence to the model as it is (Martens, JMLR 2020,
arXiv:1412.1193, section 5). Of outputs that are no class scores it is their product with noise: the second moment of
its gradients is the Gauss-Newton matrix of the squared error (same, section 8).

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
from lissom.formats import matrix_of, scale_of
from lissom.statistics import Fisher, add_square

LARGEST = 100.0  # times the mean: no single row may outweigh so many
WIDE = 4096  # outputs beyond which `Pull` keeps only a diagonal


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
class Pull:
    """Of one layer: Σ g gᵀ over all rows, or its diagonal where that is wide; of an embedding how often each came.

    Unlike in `Heard`, no row counts for more because its input is large. The gradients are at the product with the
    matrix, before it is scaled.
    """

    n: int
    ggt: Float[Tensor, "o o"] | Float[Tensor, " o"]
    entries: Float[Tensor, " e"] | None = None

    @classmethod
    def of(cls, layer: nn.Module, y: Tensor) -> "Pull":
        """Nothing heard yet of a layer with such an output."""
        o = by_row(layer, y).shape[1]
        return cls(0, torch.zeros((o, o) if o <= WIDE else (o,), device=y.device), entries_of(layer, y.device))

    def see(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take in a batch: the layer's input, and the gradient at its output."""
        g = by_row(layer, g).float() * scale_of(layer)
        self.n += g.shape[0]
        if self.ggt.dim() == 2:
            add_square(self.ggt, g)
        else:
            self.ggt += g.square().sum(0)
        if self.entries is not None:
            self.entries += torch.bincount(x.flatten(), minlength=len(self.entries))


def entries_of(layer: nn.Module, device: torch.device) -> Float[Tensor, " e"] | None:
    """No count yet for each entry of an embedding."""
    return torch.zeros(len(matrix_of(layer)), device=device) if looks_up(layer) else None


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
    """The loss at what a model says: of class scores (..., v) the surprise at labels drawn from them, else noise."""
    if not scores:
        noise = torch.empty_like(said, requires_grad=False).normal_(generator=generator)
        return (said * noise).sum()
    surprise = -said.float().log_softmax(-1).flatten(0, -2)
    drawn = torch.multinomial(surprise.detach().neg().exp(), 1, generator=generator)
    return surprise.gather(1, drawn).sum()
