"""Tie: layers that share one matrix, and have a difference of low rank each.

Bae et al., Relaxed Recursive Transformers, ICLR 2025, arXiv:2410.20672, section 2.2 (a matrix for several blocks, and a
truncated SVD of what it lacks in each); Wang et al., Basis Sharing, ICLR 2025, arXiv:2410.03765 (chosen by what the
layers' inputs are like). Here both under the Grams H_l of the layers' inputs:

    min over V, A_l, B_l  Σ_l tr((W_l - V - A_l B_l) H_l (W_l - V - A_l B_l)ᵀ)

by turns: V = (Σ_l (W_l - A_l B_l) H_l) (Σ_l H_l)⁻¹, and A_l B_l as in residual. At last V is written down, and the
differences are fitted once more, to what was written.

Shapes: o outputs, i inputs of every layer, r the rank.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense, Sum, Weight
from lissom.formats.lowrank import half
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least, one_of
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.share.lowrank import directions
from lissom.techniques.share.residual import BITS, correction

RIDGE = 1e-4  # of the mean power: where no layer's input goes, the base is the layers' mean


def tie(
    layers: Sequence[tuple[Weight, Gram]],
    /,
    *,
    rank: int = 16,
    bits: int = 4,
    base: int = 16,
    group: int = 128,
    rounds: int = 8,
) -> list[Sum]:
    """The layers' weights on one base, which is the same object in all.

    Differences are of `rank`, in factors of `bits` bits (16: float16); the base is of `base` bits (16: float16, fewer:
    by gptq under the sum of the Grams, in groups of `group` inputs); `rounds` is how often V and A_l B_l take turns.

    Raises:
        RecipeError: there are not two layers of one shape, one is pruned, or a knob suits no such matrix.
    """
    check(layers)
    one_of(BITS, bits=bits, base=base)
    at_least(0, group=group)
    at_least(1, rounds=rounds)
    targets, grams = [w.dense() for w, _ in layers], [x for _, x in layers]
    shared = fitted(targets, grams, rank, rounds)
    written = half(shared) if base == 16 else gptq(Dense(values=shared), together(grams), bits=base, group=group)
    held = written.dense()
    return [
        Sum(base=written, correction=correction(w - held, x, rank, bits)) for w, x in zip(targets, grams, strict=True)
    ]


def check(layers: Sequence[tuple[Weight, Gram]]) -> None:
    """See that the layers can share a matrix.

    Raises:
        RecipeError: they cannot.
    """
    shapes = sorted({w.shape for w, _ in layers})
    if len(layers) < 2 or len(shapes) > 1:
        found = " and ".join(f"{o}x{i}" for o, i in shapes) or "none"
        raise RecipeError(f"{len(layers)} layers, of {found}, share no matrix; name two or more of one shape")
    if any((kept := w.kept()) is not None and not kept.all() for w, _ in layers):
        raise RecipeError("a shared matrix cannot keep each layer's pruned weights at zero; leave out one of the steps")


def fitted(
    targets: Sequence[Float[Tensor, "o i"]], grams: Sequence[Gram], rank: int, rounds: int
) -> Float[Tensor, "o i"]:
    """The base that V and the differences, taking turns, arrive at."""
    base = shared_base(targets, grams)
    for _ in range(rounds - 1):
        errors = [w - base for w in targets]
        leading = [directions(e, x.mean, rank) for e, x in zip(errors, grams, strict=True)]
        rest = [w - u @ (u.T @ e) for w, u, e in zip(targets, leading, errors, strict=True)]
        base = shared_base(rest, grams)
    return base


def shared_base(targets: Sequence[Float[Tensor, "o i"]], grams: Sequence[Gram]) -> Float[Tensor, "o i"]:
    """The V of least Σ_l tr((W_l - V) H_l (W_l - V)ᵀ).

    As V = W̄ + (Σ_l (W_l - W̄) H_l) (Σ_l H_l)⁻¹ with the mean W̄, so that the ridge draws V towards that.
    """
    mean = torch.zeros_like(targets[0], dtype=torch.float64)
    for w in targets:
        mean += w / len(targets)
    pull = torch.zeros_like(mean)
    for w, x in zip(targets, grams, strict=True):
        pull += (w - mean) @ x.mean.double()
    whole = together(grams).mean.double()
    whole.diagonal().add_(RIDGE * whole.diagonal().mean() + torch.finfo(torch.float32).tiny)
    base: Tensor = mean + torch.linalg.solve(whole, pull.T).T / len(targets)
    return base.float()


def together(grams: Sequence[Gram]) -> Gram:
    """The Gram of all inputs, every layer's counted alike."""
    total = sum((x.mean for x in grams), torch.zeros_like(grams[0].xtx))
    return Gram(len(grams), total, sum((x.center for x in grams), torch.zeros_like(grams[0].sum)))
