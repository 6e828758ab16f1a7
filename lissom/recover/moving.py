"""What moves while a model learns, in units of its own, so that one rate suits all formats.

    θ = θ₀ + u φ        ∂L/∂φ = u ∂L/∂θ

φ begins at 0 and is what an optimizer sees; u is the distance of two points of a grid, 0.2 for a logarithm, and for
other values their root mean square. So a rate is a share of what a weight is like, and the decay of weights pulls to
where they began, not to zero.

Shapes: o outputs, i inputs, r the rank.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, LowRank, Sum, Trainable
from lissom.formats.lowrank import TrainableLowRank
from lissom.formats.sum import TrainableSum
from lissom.formats.turned import TrainableTurned
from lissom.models import compressible
from lissom.techniques.knobs import at_least, one_of

TRAIN = ("weights", "scales", "lora", "all")
LOG = 0.2  # the unit of the logarithm of a scale: in steps of 1 scales alone learn nothing (docs/log.md)
BESIDE = 4  # root mean squares: the unit of products of low rank, which begin at zero (docs/log.md)
FEWER = 8  # times as many weights as a matrix has of what counts as its scales, at least
Units = dict[Parameter, Tensor]


Placed = Callable[[str, Tensor, Tensor], Tensor]


def as_it_is(name: str, value: Tensor, p: Tensor) -> Tensor:
    """What belongs to a parameter of one worker alone: all, where that is."""
    return value.to(p.device)


class Moving:
    """The parameters of a model that move, and the φ of each, by the name that it has in the model.

    Args:
        model: whose parameters move, or this worker's part of it.
        units: the unit of each that moves, by name.
        placed: what belongs to a parameter here, of its name, of a tensor of that of the whole model.
    """

    def __init__(self, model: nn.Module, units: Mapping[str, Tensor], placed: Placed = as_it_is) -> None:
        self.placed = placed
        self.names = {p: name for name, p in model.named_parameters() if name in units}
        self.units = {p: placed(name, units[name], p) for p, name in self.names.items()}
        self.begun = {p: p.detach().clone() for p in self.names}
        self.phi = {p: Parameter(torch.zeros_like(p)) for p in self.names}

    @torch.no_grad()
    def place(self, phi: Mapping[Parameter, Tensor] | None = None) -> None:
        """Put the model where φ is, or another one by the same parameters."""
        for p, own in (phi or self.phi).items():
            p.copy_(torch.addcmul(self.begun[p], self.units[p], own))

    @torch.no_grad()
    def pull(self) -> None:
        """Hand the gradients of the model's parameters over to φ."""
        for p, own in self.phi.items():
            own.grad = None if p.grad is None else p.grad.mul_(self.units[p])
            p.grad = None

    def copied(self) -> dict[Parameter, Tensor]:
        """φ as it is now."""
        return {p: own.detach().clone() for p, own in self.phi.items()}

    def named(self, phi: Mapping[Parameter, Tensor]) -> dict[str, Tensor]:
        """φ, or another one, by names."""
        return {self.names[p]: own.detach() for p, own in phi.items()}

    def by_parameter(self, named: Mapping[str, Tensor]) -> dict[Parameter, Tensor]:
        """The inverse of `named`, also of tensors of the whole model where workers have parts of it."""
        return {p: self.placed(name, named[name], p) for p, name in self.names.items()}


def moving(model: nn.Module, train: str = "weights", rank: int = 16, seed: int = 0) -> Moving:
    """What moves of a model that is not sharded; as `units_of`, which says more."""
    return Moving(model, units_of(model, train, rank, seed))


def units_of(model: nn.Module, train: str = "weights", rank: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Choose what moves, and its units by name; all other parameters of the model are frozen from now on.

    Args:
        model: its compressed layers are trainable.
        train: `weights`, all that formats can move (latent weights behind codes too, which is quantization-aware
            training), norms and biases; `scales`, of those only what is many times fewer than the weights: scales,
            codebooks, norms, biases; `all`, matrices too that no step has compressed; or `lora`, products of low rank
            put beside compressed matrices, and nothing else (Hu et al., ICLR 2022, arXiv:2106.09685, eq. 3).
        rank: of those products.
        seed: of their beginning.

    Raises:
        RecipeError: there is nothing of that kind in the model.
    """
    one_of(TRAIN, train=train)
    units = beside(model, rank, seed) if train == "lora" else within(model, train)
    if not units:
        raise RecipeError(
            f"recover: {train!r} moves nothing, for no layer is in a format that has such; compress the model first, "
            f"or choose another: {', '.join(TRAIN)}"
        )
    for p in model.parameters():
        p.requires_grad_(p in units)
    return {name: units[p].expand(p.shape) for name, p in model.named_parameters() if p in units}


def within(model: nn.Module, train: str) -> Units:
    """What moves of a model as it is, and its unit."""
    parts = [part for part in model.modules() if isinstance(part, Trainable)]
    units = {p: unit for part in parts for p, unit in smaller(part).items()}
    if train == "scales":
        few = {p for matrix in matrices(model) for p in fewer(matrix)}
        units = {p: unit for p, unit in units.items() if p in few}
    if not units and train != "all":
        return {}
    held = {p for part in parts for p in part.parameters(recurse=False)}
    others = (p for p in model.parameters() if p not in held and (train == "all" or p.dim() == 1))
    return {p: like(p) for p in others} | units


def smaller(part: Trainable) -> Units:
    """The units of a matrix's own parameters, of logarithms that of this module."""
    logarithms = {p for name, p in part.named_parameters() if name.startswith("log")}
    return {p: LOG * unit if p in logarithms else unit for p, unit in part.units().items()}


def matrices(model: nn.Module) -> list[Trainable]:
    """The matrices of the compressed layers, each once."""
    layers = (layer for layer in compressible(model).values() if isinstance(layer, CompressedLayer))
    return list({layer.matrix: None for layer in layers if isinstance(layer.matrix, Trainable)})


def fewer(matrix: Trainable) -> list[Parameter]:
    """The parameters of a matrix that are many times fewer than its weights."""
    o, i = matrix.weight().shape
    return [p for p in matrix.parameters() if FEWER * p.numel() <= o * i]


@torch.no_grad()
def like(p: Tensor) -> Tensor:
    """The root mean square of values; 1 if all are zero."""
    found = p.square().mean().sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))


def beside(model: nn.Module, rank: int, seed: int) -> Units:
    """Put A B beside each compressed matrix, A zero and B of random numbers; those that are there stay and move.

    A step of one unit changes a weight by some times what weights are like.
    """
    at_least(1, rank=rank)
    generator = torch.Generator().manual_seed(seed)
    held: dict[Trainable, Trainable] = {}
    for layer in compressible(model).values():
        if isinstance(layer, CompressedLayer) and isinstance(layer.matrix, Trainable):
            if layer.matrix not in held:
                held[layer.matrix] = corrected(layer.matrix, rank, generator)
            layer.matrix = held[layer.matrix]
    units: Units = {}
    for part in model.modules():
        if isinstance(part, TrainableSum):
            weights = BESIDE * like(part.base().detach())
            units |= {p: weights / p.shape[1] ** 0.5 for p in part.correction.a.parameters()}
            units |= {p: BESIDE * like(p) for p in part.correction.b.parameters()}
    return units


def corrected(matrix: Trainable, rank: int, generator: torch.Generator) -> Trainable:
    """A matrix, and beside it a product of low rank that is zero; one that has a correction, or is narrow, stays."""
    if isinstance(matrix, TrainableTurned):
        matrix.base = corrected(matrix.base, rank, generator)
    if isinstance(matrix, TrainableTurned | TrainableSum | TrainableLowRank):
        return matrix
    weight = matrix.weight()
    (o, i), device = weight.shape, weight.device
    r = min(rank, o, i)
    b = torch.randn(r, i, generator=generator).to(device)
    found = TrainableSum(Sum(base=weight, correction=LowRank.of(torch.zeros(o, r, device=device), b)))
    found.base = matrix
    return found
