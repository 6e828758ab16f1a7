"""Distil: everything that the formats can move learns to predict again what the original predicts.

Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2, at temperature 1 and without labels, which is what serves
weights of few bits best (Liu et al., LLM-QAT, 2023, arXiv:2305.17888, section 2):

    min over θ of  L = KL( p_original ‖ p_θ )        over everything that is predicted

by Adam (Kingma, Ba, ICLR 2015, arXiv:1412.6980, algorithm 1), in units u of each parameter (the distance of two points
of its grid; of a logarithm 1; of other values their root mean square), so that one rate η suits all formats:

    g = u ∂L/∂θ, cut to the norm `clip`        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²
    θ ← θ - η_t u m̂ / (√v̂ + ε)                 η_t = η (1 + cos πt/T) / 2

Latent weights behind codes are reached straight through. Norms and biases move too; weights that no step has compressed
do not. A share of the lots is held out: the loss on it is taken before the first and after each pass over the others,
and the best of these states is kept. Where that is the first, all is done once more at a quarter of the rate: what is
near its goal already is led away from it by a rate that serves what is far. Of outputs that are no class scores the
loss is the squared error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Trainable
from lissom.statistics import multiplies_bfloat16
from lissom.techniques.knobs import above, at_least, fraction, one_of, seed_of
from lissom.techniques.quantize.tuned import LOSSES, Lots, begun

BETAS, EPSILON = (0.9, 0.99), 1e-8
SLOWER = 4  # times, where the rate that was given led nowhere
Units = Mapping[nn.Parameter, Tensor]


def distil(
    model: nn.Module,
    lots: Lots,
    /,
    *,
    epochs: int = 4,
    lr: float = 0.005,
    clip: float = 1.0,
    held: float = 0.05,
    bf16: bool = True,
    seed: int = 0,
    loss: str = "kl",
) -> None:
    """Learn from each lot `epochs` times; `held` is the share to judge by.

    `bf16` takes products in bfloat16 where the processor has such: others are up to 70 times as slow with them.
    """
    at_least(1, epochs=epochs)
    above(0, lr=lr, clip=clip)
    fraction(held=held)
    one_of(LOSSES, loss=loss)
    if not lots:
        raise RecipeError("what the original predicts is learned from data; give data")
    units = movable(model)
    bf16 = bf16 and (next(iter(units)).device.type != "cpu" or multiplies_bfloat16())
    generator = torch.Generator().manual_seed(seed_of(seed))
    judging, learning = divided(len(lots), held, generator)
    passes = (torch.randperm(len(learning), generator=generator, device="cpu") for _ in range(epochs))
    order = torch.cat([learning[places] for places in passes]).tolist()
    first = best = copied(units)
    least = begun(judged(lots, judging, loss))
    for rate in (lr, lr / SLOWER):
        for step, _ in enumerate(descend(units, lots, order, lr=rate, clip=clip, bf16=bf16, loss=loss), 1):
            if step % len(learning) == 0:
                now = judged(lots, judging, loss)
                if now < least:
                    best, least = copied(units), now
        put_back(best)
        if best is not first:
            return


@torch.no_grad()
def put_back(values: Mapping[nn.Parameter, Tensor]) -> None:
    """What moved is as it was."""
    for p, value in values.items():
        p.copy_(value)


def movable(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """What may move, and its unit: what formats can move, and vectors (norms, biases).

    Raises:
        RecipeError: no layer of the model is compressed.
    """
    parts = (part for part in model.modules() if isinstance(part, Trainable))
    units = {p: unit for part in parts for p, unit in part.units().items() if p.requires_grad}
    if not units:
        raise RecipeError("nothing is compressed yet; put a step before it that does")
    vectors = {p: size(p) for p in model.parameters() if p.dim() == 1 and p.requires_grad}
    return vectors | units


@torch.no_grad()
def size(p: Tensor) -> Tensor:
    """The root mean square of a vector's values; 1 if all are zero."""
    found = p.square().mean().sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))


def divided(count: int, held: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The places of the lots to judge by, at least one, and of those to learn from; a single lot serves for both."""
    order = torch.randperm(count, generator=generator, device="cpu")
    share = min(max(round(held * count), 1), count - 1)
    return (order[:share], order[share:]) if count > 1 else (order, order)


def copied(units: Units) -> dict[nn.Parameter, Tensor]:
    """The values of all that moves."""
    return {p: p.detach().clone() for p in units}


@torch.no_grad()
def judged(lots: Lots, places: Tensor, loss: str) -> float:
    """The loss on some of the lots, in the precision that the model is served in."""
    found = [LOSSES[loss](run().float(), wanted.float()) for run, wanted in (lots[place] for place in places.tolist())]
    return float(torch.stack(found).mean())


def descend(
    units: Units, lots: Lots, order: Sequence[int], *, lr: float, clip: float, bf16: bool, loss: str
) -> Iterator[float]:
    """Take a step for each lot in `order`; after each, its loss."""
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in units}
    for t, place in enumerate(order):
        found, gradients = heard(units, lots, place, bf16, LOSSES[loss])
        shorten(gradients, clip)
        rate = lr * (1 + math.cos(math.pi * t / len(order))) / 2
        for p, g in gradients.items():
            step(p, g, units[p], *moments[p], rate, t + 1)
        yield found


def heard(
    units: Units, lots: Lots, place: int, bf16: bool, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, dict[nn.Parameter, Tensor]]:
    """The loss on a lot, and its gradient in units of each parameter that it reaches."""
    run, wanted = lots[place]  # the original in float32: in bfloat16 it need not say the same twice
    with torch.enable_grad(), torch.autocast(next(iter(units)).device.type, torch.bfloat16, enabled=bf16):
        said = run()
    value = loss(said.float(), wanted.float())
    found: Sequence[Any] = torch.autograd.grad(value, list(units), allow_unused=True)
    pairs = zip(units.items(), found, strict=True)
    return float(value.detach()), {p: g * unit for (p, unit), g in pairs if g is not None}


@torch.no_grad()
def shorten(gradients: Mapping[nn.Parameter, Tensor], clip: float) -> None:
    """Scale all gradients together so that their norm is `clip` at most."""
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    for g in gradients.values():
        g.mul_((clip / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1))


@torch.no_grad()
def step(p: Tensor, g: Tensor, unit: Tensor, m: Tensor, v: Tensor, rate: float, t: int) -> None:
    """Move one parameter by Adam; t counts from 1."""
    m.lerp_(g, 1 - BETAS[0])
    v.lerp_(g.square(), 1 - BETAS[1])
    root = (v / (1 - BETAS[1] ** t)).sqrt_().add_(EPSILON)
    p.sub_(unit * m / root, alpha=rate / (1 - BETAS[0] ** t))
