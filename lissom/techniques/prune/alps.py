"""ALPS: choose what to keep by ADMM, then solve for its values.

Meng, Behdin, Wang, Mazumder, NeurIPS 2024, arXiv:2406.07831, section 3 with algorithm 1 (ADMM) and algorithm 2 (PCG).

    min over D of tr((Ŵ - D) H (Ŵ - D)ᵀ)        D sparse, H = XᵀX / n + λI, Ŵ the weights given

    W = (ŴH + ρD - V)(H + ρI)⁻¹        D = P(W + V/ρ)        V = V + ρ(W - D)

P keeps the largest: of the whole matrix, or of each N:M group. Features are scaled so that diag H = 1 first; P then
compares |W_ij| √H_jj, as Wanda does, and conjugate gradients need no other preconditioner. One eigendecomposition of H
serves every ρ. ρ grows by how much the kept set still changes, until it no longer does; the values on it are then the
least-squares ones, by conjugate gradients for all rows together.

We differ in λ, which is relative to mean(diag H) as in SparseGPT. Exchanging kept weights for pruned ones afterwards
gained less than 1 % of the error; ρ growing four times slower gains 3 to 9 %, for five times the time.

Shapes: o outputs, i inputs.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lissom.formats import Masked, Weight
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least
from lissom.techniques.prune.select import check, keep_largest, unless_pruned

Largest = Callable[[Float[Tensor, "o i"]], Bool[Tensor, "o i"]]

START = 0.1  # ρ, where diag H = 1
CHECK = 3  # iterations between two looks at how much the kept set changes
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # where more than this share of the kept changed, ρ grows so much
LIMIT = 300  # iterations; some 40 are usual


def alps(
    w: Weight,
    x: Gram,
    /,
    *,
    sparsity: float = 0.5,
    keep: int | None = None,
    of: int | None = None,
    damp: float = 0.01,
    iterations: int = 20,
) -> Masked:
    """Remove the fraction `sparsity`, or keep `keep` of every `of` inputs; the kept weights change too.

    `iterations` are those of conjugate gradients.
    """
    check(sparsity, keep, of, w.shape[1])
    at_least(0, damp=damp)
    at_least(1, iterations=iterations)
    earlier = w.kept()
    size, h = scaled(x.mean, damp)
    target = w.dense() * size

    def largest(values: Float[Tensor, "o i"]) -> Bool[Tensor, "o i"]:
        score = unless_pruned(values.abs(), earlier)
        kept = keep_largest(score if of else score.reshape(1, -1), sparsity, keep, of).reshape(score.shape)
        return kept & (score > -torch.inf)

    d, kept = admm(target, h, largest)
    return Masked.of(solve(d, target, h, kept, iterations) / size, kept)


def scaled(h: Float[Tensor, "i i"], damp: float) -> tuple[Float[Tensor, " i"], Float[Tensor, "i i"]]:
    """√diag H and H with a unit diagonal, damped first: what was never seen counts a little and divides nothing."""
    mean = h.diagonal().mean()
    h = h / mean.where(mean > 0, 1.0)
    h.diagonal().add_(torch.where(mean > 0, damp, 1.0))
    size = h.diagonal().clamp(min=torch.finfo(h.dtype).tiny).sqrt()
    return size, h / size / size[:, None]


def admm(
    target: Float[Tensor, "o i"], h: Float[Tensor, "i i"], largest: Largest
) -> tuple[Float[Tensor, "o i"], Bool[Tensor, "o i"]]:
    """D as the iterations leave it, and which of it was kept."""
    eigenvalues, q = torch.linalg.eigh(h)
    eigenvalues = eigenvalues.clamp(min=0)
    pull = (target @ q) * eigenvalues  # ŴH in the basis of the eigenvectors
    d, v, rho = target, torch.zeros_like(target), START
    before = largest(target)
    for iteration in range(1, LIMIT + 1):
        near = ((pull + (rho * d - v) @ q) / (eigenvalues + rho)) @ q.T
        wished = near + v / rho
        kept = largest(wished)
        d = wished * kept
        v = rho * (wished - d)  # = v + ρ(W - D)
        if iteration % CHECK == 0:
            changed = (kept ^ before).sum() / kept.sum()
            if changed == 0:
                break
            rho *= next(growth for share, growth in GROWTH if changed > share)
            before = kept
    return d, kept


def solve(
    d: Float[Tensor, "o i"],
    target: Float[Tensor, "o i"],
    h: Float[Tensor, "i i"],
    kept: Bool[Tensor, "o i"],
    iterations: int,
) -> Float[Tensor, "o i"]:
    """The minimum over D that is zero where not kept, from a first guess; each row has a step size of its own."""
    d = d * kept
    residual = ((target - d) @ h) * kept
    direction, norm = residual, residual.square().sum(1, keepdim=True)
    smallest = torch.finfo(h.dtype).eps ** 2 * (target @ h).square().sum(1, keepdim=True)
    for _ in range(iterations):
        bent = (direction @ h) * kept
        step = norm / (direction * bent).sum(1, keepdim=True)
        step = torch.where(norm > smallest, step, 0.0)  # solved as far as rounding allows
        d = d + step * direction
        residual = residual - step * bent
        new = residual.square().sum(1, keepdim=True)
        direction, norm = residual + torch.where(norm > smallest, new / norm, 0.0) * direction, new
    return d
