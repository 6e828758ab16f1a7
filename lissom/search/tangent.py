"""The tangent: how far layers in other forms move what a module says, foreseen by its slope at every example.

    distance ≈ E_n (Σ g·d)² / 2 of logits, else E_n (Σ g·d)² / E ‖f‖²                g = ∂ uᵀf / ∂ (what a layer gives)
               d = what it gives in the form - what it gives, at the same input; Σ over all that an example makes of it

with the vectors u of `end_loss`: the Gauss-Newton quadratic of the change itself (Martens, JMLR 2020, arXiv:1412.1193,
section 8). Unlike the products of second moments in `sensitivity.py` it knows which slopes come with which inputs, and
that the rows of an example act together. A form costs a pass through its layers, where measuring it costs one through
all that follows.

One example at a time goes through the module, whatever its layers make of a batch. What they are given and the slopes
are held for as many layers as there is room for.

Shapes: n examples, r rows of a batch.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.calibrate.data import device_of, each
from lissom.calibrate.gradients import end_loss, outputs
from lissom.calibrate.observe import CONVOLUTIONS
from lissom.evaluate.examples import evaluating
from lissom.search.yardstick import Yardstick

ROOM = 2**30  # bytes of what is held at a time
LOT = 2**24  # numbers that a layer is given, or gives, at a time
ALIKE = 0.01  # of the original's outputs: how far they may be when an example is alone


@dataclass(slots=True)
class Held:
    """What a layer was given, call by call, the slopes at what came of it, and of which example they were."""

    given: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    whose: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return sum(part.nbytes for part in (*self.given, *self.slopes))

    def take(self, given: Tensor, slopes: Tensor, number: int) -> None:
        """Of an example, by its number."""
        self.given.append(given)
        self.slopes.append(slopes)
        self.whose.append(number)

    def lots(self) -> Iterator[tuple[Tensor, Tensor, Int[Tensor, " r"]]]:
        """Calls of equal shape that came one after the other, some at a time, and whose each row is."""
        first = 0
        for last in range(1, len(self.given) + 1):
            one = self.given[first]
            full = (last - first) * max(one.numel(), self.slopes[first].numel()) >= LOT
            if last == len(self.given) or full or self.given[last].shape[1:] != one.shape[1:]:
                here = slice(first, last)
                rows = torch.tensor([len(x) for x in self.given[here]])
                whose = torch.tensor(self.whose[here]).repeat_interleave(rows)
                yield torch.cat(self.given[here]), torch.cat(self.slopes[here]), whose.to(one.device)
                first = last


class Tangent:
    """The slopes of what a module says, at what its layers give.

    Args:
        model: the module as it is.
        norms: the batch norms behind layers, which are told what became of these.
        yardstick: what the original says to the examples.

    Raises:
        RuntimeError: the module has no slopes, or says something else to an example that is alone.
    """

    def __init__(self, model: nn.Module, norms: Mapping[str, str], yardstick: Yardstick) -> None:
        self.model, self.norms, self.yardstick = model, norms, yardstick
        self.held: dict[str, Held] = {}
        self.n = sum(map(len, yardstick.outputs))

    def lots(self, units: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """As many units at a time as there is room for, their slopes looked at."""
        layers = [layer for own in units.values() for layer in own]
        self.look(layers, 1)
        sizes = {unit: self.n * sum(self.held[layer].nbytes for layer in own) for unit, own in units.items()}
        lots, size = list[list[str]](), ROOM
        for unit in units:
            size += sizes[unit]
            if not lots or size > ROOM:
                lots.append([])
                size = sizes[unit]
            lots[-1].append(unit)
        for lot in lots:
            self.look([layer for unit in lot for layer in units[unit]], self.n)
            yield tuple(lot)

    def look(self, layers: Collection[str], examples: int) -> None:
        """Hold what these layers are given by some examples, and the slopes."""
        self.held = {layer: Held() for layer in layers}
        for layer in layers:  # who writes over what a layer was given is then found out
            self.model.get_submodule(layer).weight.requires_grad_()
        watched = {name: self.model.get_submodule(name) for name in {*layers, *map(self.place, layers)}}
        generator = torch.Generator(device_of(self.model)).manual_seed(0)
        for number, batch in enumerate(islice(self.examples(), examples)):
            with evaluating(self.model), outputs(watched) as taken, torch.enable_grad():
                said = self.yardstick.kept(self.yardstick.reads(self.model, batch))
                if number == 0:
                    self.check(said)
                loss = end_loss(said, self.yardstick.by.logits, generator)
                slopes = torch.autograd.grad(loss, [y for *_, y in taken], allow_unused=True) if taken else ()
            calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in watched}
            for (name, _, x, y), g in zip(taken, slopes, strict=True):
                calls[name].append((x, torch.zeros_like(y) if g is None else g))
            for layer, held in self.held.items():
                part = self.model.get_submodule(layer)
                for (x, _), (_, g) in zip(calls[layer], calls[self.place(layer)], strict=True):
                    held.take(with_batch(part, x), with_batch(part, g), number)

    def place(self, layer: str) -> str:
        """What changes with a layer and gives what others read: the batch norm behind it, or the layer."""
        return self.norms.get(layer, layer)

    def examples(self) -> Iterator[Batch]:
        """The examples of the yardstick, one by one."""
        for batch, output in zip(self.yardstick.batches(self.model), self.yardstick.outputs, strict=False):
            for number in range(len(output)):
                yield each(batch, lambda part: part[number : number + 1])  # noqa: B023, called at once

    def check(self, said: Tensor) -> None:
        """See that the first example alone is told what it was told among others."""
        before, alone = self.yardstick.outputs[0].float(), said.detach().float()
        if alone.shape != before[:1].shape or (alone - before[:1]).norm() > ALIKE * before.norm() / len(before) ** 0.5:
            raise RuntimeError("the module says something else to an example that is alone")

    @torch.no_grad()
    def distances(self, layers: Collection[str], changed: Sequence[nn.Module]) -> list[float]:
        """How far copies with these layers in other forms, and the norms behind them, are foreseen to be."""
        moved = torch.zeros(len(changed), self.n, device=device_of(self.model))
        for layer in layers:
            for given, slopes, whose in self.held[layer].lots():
                before = self.gives(self.model, layer, given)
                for found, one in zip(moved, changed, strict=True):
                    apart = (self.gives(one, layer, given) - before).mul_(slopes)
                    found.index_add_(0, whose, apart.flatten(1).sum(1).float())
        power = 2 * self.predictions if self.yardstick.by.logits else self.yardstick.power
        return (moved.square().mean(1) / power).tolist()

    def gives(self, model: nn.Module, layer: str, given: Tensor) -> Tensor:
        """What a layer gives, and the norm behind it makes of that."""
        found: Tensor = model.get_submodule(layer)(given)
        return model.get_submodule(self.norms[layer])(found) if layer in self.norms else found

    @property
    def predictions(self) -> int:
        """How many logits are drawn from for each example."""
        output = self.yardstick.outputs[0]
        return output.numel() // len(output) // output.shape[-1]


def with_batch(layer: nn.Module, part: Tensor) -> Tensor:
    """What a layer is given or gives, with a first dim that may be as long as one likes."""
    alone = part.dim() == (len(layer.kernel_size) + 1 if isinstance(layer, CONVOLUTIONS) else 1)
    return part.unsqueeze(0) if alone else part
