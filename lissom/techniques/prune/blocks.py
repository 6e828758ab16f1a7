"""Blocks: whole blocks go, those without which the model still says most nearly the same.

Song, Oh, Kim, Kim, Kim, Kim, SLEB, ICML 2024, arXiv:2402.09025, algorithm 1, with the divergence of the predictions in
place of the perplexity:

    b* = argmin over blocks b still there of  KL( original ‖ model without b )        removed, and again

A block is a part of a list of parts of one class (a ModuleList, or a Sequential) that gives back the shape it is given.
Nothing is judged by its position.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.techniques.knobs import at_least, fraction, one_of
from lissom.techniques.quantize.tuned import LOSSES, Lots, mean_loss


class Through(nn.Module):
    """Stands where a block was, and passes on what it is given; `nested` says that it is to be in a tuple."""

    def __init__(self, *, nested: bool = False) -> None:
        super().__init__()
        self.nested = nested

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        """What went in."""
        return (x,) if self.nested else x


def blocks(model: nn.Module, lots: Lots, /, *, sparsity: float = 0.25, batches: int = 8, loss: str = "kl") -> None:
    """The fraction `sparsity` of the blocks removed, one after the other, judged on the first `batches` of the data."""
    fraction(sparsity=sparsity)
    at_least(1, batches=batches)
    one_of(LOSSES, loss=loss)
    if not lots:
        raise RecipeError("which blocks can go is measured; give data")
    lots = lots[:batches]
    found = removable(model, lots)
    for _ in range(int(sparsity * len(found))):
        costs = {name: without(model, lots, name, through, loss) for name, through in found.items()}
        worst = min(costs, key=costs.__getitem__)
        exchange(model, worst, found.pop(worst))


def without(model: nn.Module, lots: Lots, name: str, through: Through, loss: str) -> float:
    """What the model loses without a block."""
    block = exchange(model, name, through)
    try:
        return mean_loss(lots, LOSSES[loss])
    finally:
        exchange(model, name, block)


def exchange(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """Put a part in place of another, which is returned."""
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    before: nn.Module = getattr(parent, own)
    setattr(parent, own, part)
    return before


@torch.no_grad()
def removable(model: nn.Module, lots: Lots) -> dict[str, Through]:
    """The blocks that give back the shape they are given, and what can stand for each.

    Raises:
        RecipeError: there are fewer than two.
    """
    found: dict[str, Through] = {}
    with watched(listed(model), found):
        lots[0][0]()
    if len(found) < 2:
        raise RecipeError(
            f"{type(model).__name__} has no list of blocks, alike in class and shape, of which one could go"
        )
    return found


@contextmanager
def watched(parts: Mapping[str, nn.Module], found: dict[str, Through]) -> Iterator[None]:
    """Within the block, parts that keep the shape of what goes through them are noted."""

    def note(name: str) -> Any:
        def after(part: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            out = made[0] if isinstance(made, tuple) else made
            if given and isinstance(given[0], Tensor) and isinstance(out, Tensor) and given[0].shape == out.shape:
                found[name] = Through(nested=isinstance(made, tuple))

        return after

    handles = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def listed(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of all lists whose parts are of one class and have weights."""
    lists = {n: part for n, part in model.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)}
    found = {}
    for name, parts in lists.items():
        children = {own: child for own, child in parts.named_children() if not isinstance(child, Through)}
        if len(children) > 1 and len({type(child) for child in children.values()}) == 1:
            weighty = {own: child for own, child in children.items() if any(True for _ in child.parameters())}
            found.update({f"{name}.{own}".lstrip("."): child for own, child in weighty.items()})
    return found
