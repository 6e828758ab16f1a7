"""NanoQuant: a matrix as the product of two matrices of signs, at one bit a weight or fewer.

Chong, Kim, Kim, Choi, ICML 2026, arXiv:2602.06694:

    min over A, B, s, m, t of  tr( (W - V) H (W - V)ᵀ )        V = diag(s) A diag(m) B diag(t),  A, B of signs

by the alternating direction method of multipliers on real factors P, R with copies Z that are held to what can be
stored, signs times a magnitude of rank one (Xu et al., OneBit, NeurIPS 2024, arXiv:2402.11295, SVID):

    P ← (W C Rᵀ + ρ (Z - Y)) (R C Rᵀ + ρ)⁻¹        Z ← sign(P + Y) ⊙ u vᵀ        Y ← Y + P - Z        R likewise

Where the paper has the diagonal of H we keep all of it: with H = diag(d) C diag(d) and the eigenvectors of C and of PᵀP
the step for R is solved exactly. The factors start from the best product of low rank under H, turned at random, for the
signs of singular vectors all look alike; ρ grows. Then the scales are solved for by least squares, in turns with the
signs of A, whose rows do not know of one another.

Shapes: o outputs, i inputs, r the rank.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Signs, Weight
from lissom.formats.plane import WORD
from lissom.statistics import Gram
from lissom.techniques.knobs import above, at_least, between

PENALTY = (0.1, 3.0)  # ρ at the start and at the end, in units of the mean of the diagonal it is added to
ROUNDS = 3  # of refinement
POWER = 3  # iterations for a magnitude of rank one; it is already close
RIDGE = 1e-4  # of the mean of the diagonal
HALF = 16  # bits of a scale


@dataclass(slots=True, kw_only=True)
class Factors:
    """V = diag(s) A diag(m) B diag(t), while it is being fitted."""

    a: Float[Tensor, "o r"]
    b: Float[Tensor, "r i"]
    s: Float[Tensor, " o"]
    m: Float[Tensor, " r"]
    t: Float[Tensor, " i"]


def nanoquant(w: Weight, x: Gram, /, *, bits: float = 1.0, iterations: int = 200, damp: float = 0.01) -> Signs:
    """`bits` bits a weight, scales and all.

    Raises:
        RecipeError: the weight was pruned, or there is no room for signs.
    """
    kept = w.kept()
    if kept is not None and not kept.all():
        raise RecipeError("a product of signs keeps no pruned weight at zero; use binary or ternary, or do not prune,")
    between(0, 8, bits=bits)
    at_least(1, iterations=iterations)
    above(0, damp=damp)
    matrix = w.dense()
    power = x.power.mean()
    h = x.mean / power.where(power > 0, 1.0) + damp * torch.eye(matrix.shape[1], device=matrix.device)
    found = split(matrix, h, rank(*w.shape, bits), iterations)
    for _ in range(ROUNDS):
        fit_scales(found, matrix, h)
        turn_signs(found, matrix, h)
    fit_scales(found, matrix, h)
    signs = {
        "left": found.a.T * found.s.sign() > 0,
        "right": found.b * found.m.sign().unsqueeze(1) * found.t.sign() > 0,
    }
    rows, middle, columns = even(found.s.abs(), found.m.abs(), found.t.abs())
    return Signs.of(**signs, rows=rows, middle=middle, columns=columns)


def rank(o: int, i: int, bits: float) -> int:
    """How many columns A may have: each costs its signs, in whole words, and a scale.

    Raises:
        RecipeError: there is no room for one.
    """
    column = sum(-(-n // WORD) * WORD for n in (o, i)) + HALF
    found = int((bits * o * i - HALF * (o + i)) // column)
    if found < 1:
        least = (column + HALF * (o + i)) / (o * i)
        raise RecipeError(
            f"bits={bits} leaves no room for signs beside the scales; from {least:.2f} bits there is some"
        )
    return found


def even(*scales: Tensor) -> list[Tensor]:
    """The same product with its size spread evenly; what is too small for float16 goes to the end of its range."""
    sizes = [float(scale[scale > 0].median()) if scale.any() else 1.0 for scale in scales]
    share, least = math.prod(sizes) ** (1 / len(sizes)), torch.finfo(torch.float16).tiny
    spread = [scale * (share / size) for scale, size in zip(scales, sizes, strict=True)]
    return [torch.where(scale < least / 2, 0.0, scale.clamp(min=least)) for scale in spread]


@dataclass(slots=True, kw_only=True)
class Copy:
    """What a real factor is held to: the nearest that can be stored, the sum of what was missed, and how firmly."""

    signs: Float[Tensor, "n k"]
    u: Float[Tensor, " n"]
    v: Float[Tensor, " k"]
    missed: Float[Tensor, "n k"]
    penalty: float

    @classmethod
    def of(cls, factor: Float[Tensor, "n k"]) -> "Copy":
        """A first copy; nothing has been missed."""
        signs, u, v = storable(factor)
        return cls(signs=signs, u=u, v=v, missed=torch.zeros_like(factor), penalty=1.0)

    def pull(self, penalty: float) -> Float[Tensor, "n k"]:
        """Where the factor is pulled to, by so much; what was missed is counted in units of the penalty."""
        self.missed *= self.penalty / penalty
        self.penalty = penalty
        return penalty * (self.signs * torch.outer(self.u, self.v) - self.missed)

    def follow(self, factor: Float[Tensor, "n k"]) -> None:
        """Copy the factor, and remember what the copy misses."""
        self.signs, self.u, self.v = storable(factor + self.missed)
        self.missed += factor - self.signs * torch.outer(self.u, self.v)


def split(w: Float[Tensor, "o i"], h: Float[Tensor, "i i"], r: int, iterations: int) -> Factors:
    """The factors that the alternating direction method of multipliers leads to."""
    d = h.diagonal().sqrt()
    c = h / torch.outer(d, d)
    size = (w * d).square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    target = w * d / size
    power, axes = torch.linalg.eigh(c)
    p, q = start(target, power.clamp(min=torch.finfo(torch.float32).eps), axes, r)
    left, right = Copy.of(p), Copy.of(q)
    wanted, eye = target @ c, torch.eye(r, device=w.device)
    for n in range(iterations):
        rho = PENALTY[0] * (PENALTY[1] / PENALTY[0]) ** (n / max(iterations - 1, 1))
        g = q @ c @ q.T
        pull = left.pull(rho * float(g.diagonal().mean()))
        p = torch.linalg.solve(g + left.penalty * eye, (wanted @ q.T + pull).T).T
        left.follow(p)
        g = p.T @ p
        pull = right.pull(rho * float(g.diagonal().mean()))
        values, vectors = torch.linalg.eigh(g)  # PᵀP R C + ρ R = PᵀWC + pull, solved where both are diagonal
        turned = vectors.T @ (p.T @ wanted + pull) @ axes
        q = vectors @ (turned / (torch.outer(values, power) + right.penalty)) @ axes.T
        right.follow(q)
    return Factors(a=left.signs, b=right.signs, s=left.u * size, m=left.v * right.u, t=right.v / d)


def start(
    w: Float[Tensor, "o i"], power: Float[Tensor, " i"], axes: Float[Tensor, "i i"], r: int
) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
    """The best factors of rank r under C = axes diag(power) axesᵀ, turned at random."""
    root = power.sqrt()
    u, values, v = torch.linalg.svd(w @ axes * root, full_matrices=False)
    half, spare = values[:r].sqrt(), (0, max(r - len(values), 0))
    p = F.pad(u[:, :r] * half, spare)
    q = F.pad(half.unsqueeze(1) * v[:r] / root @ axes.T, (0, 0, *spare))
    noise = torch.randn(r, r, generator=torch.Generator().manual_seed(0), device="cpu")
    turn = torch.linalg.qr(noise).Q.to(w.device)
    return p @ turn, turn.T @ q


def storable(factor: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, " k"]]:
    """Signs, and u vᵀ of rank one nearest to the magnitudes, by power iteration."""
    magnitude, tiny = factor.abs(), torch.finfo(torch.float32).tiny
    v = magnitude.mean(0)
    for _ in range(POWER):
        u = magnitude @ v / v.square().sum().clamp(min=tiny)
        v = u @ magnitude / u.square().sum().clamp(min=tiny)
    return torch.where(factor >= 0, 1.0, -1.0), u, v


def fit_scales(found: Factors, w: Float[Tensor, "o i"], h: Float[Tensor, "i i"]) -> None:
    """s, m and t in turn, each the least-squares solution given the others."""
    tiny = torch.finfo(torch.float32).tiny
    wanted = w @ h
    v = (found.a * found.m) @ (found.b * found.t)
    found.s = (wanted * v).sum(1) / (v @ h * v).sum(1).clamp(min=tiny)
    a, b = found.a * found.s.unsqueeze(1), found.b * found.t
    found.m = solved((a.T @ a) * (b @ h @ b.T), (a.T @ wanted * b).sum(1))
    a = a * found.m
    found.t = solved(h * (found.b.T @ (a.T @ a) @ found.b), (a.T @ wanted * found.b).sum(0))


def solved(k: Float[Tensor, "n n"], right: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The solution of k x = right, slightly damped."""
    damp = RIDGE * k.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    solution: Tensor = torch.linalg.solve(k + damp * torch.eye(len(k), device=k.device), right)
    return solution


def turn_signs(found: Factors, w: Float[Tensor, "o i"], h: Float[Tensor, "i i"]) -> None:
    """The best sign for each entry of A given all others, column after column, over all rows at once."""
    b = found.m.unsqueeze(1) * found.b * found.t
    g = b @ h @ b.T
    a = found.a * found.s.unsqueeze(1)
    left = w @ h @ b.T - a @ g  # what a row of A would still gain by each of its entries
    for k in range(len(g)):
        sign = torch.where((left[:, k] + a[:, k] * g[k, k]) * found.s >= 0, 1.0, -1.0)
        step = (sign - found.a[:, k]) * found.s
        found.a[:, k] = sign
        a[:, k] += step
        left -= torch.outer(step, g[k])
