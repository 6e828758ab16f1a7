"""The column sweep with error feedback that GPTQ and SparseGPT share.

Columns of W are replaced one after the other, w_j -> v_j by some rule; the error of each is made good, as far as the
data allows, by the columns that are still free:

    e_j = (w_j - v_j) / U_jj        W_:,k -= e_j U_jk  for k > j        H⁻¹ = Uᵀ U, U upper triangular

Frantar, Ashkboos, Hoefler, Alistarh, GPTQ, ICLR 2023, arXiv:2210.17323, algorithm 1;
Frantar, Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774, algorithm 1.

Shapes: o outputs, i inputs, k columns of a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.errors import RecipeError
from lissom.techniques.knobs import at_least

# (column in the sweep's order, the block as it stands now (k, o), its U_jj (k), place in the block) -> new column
Rule = Callable[[int, Float[Tensor, "k o"], Float[Tensor, " k"], int], Float[Tensor, " o"]]

ORDERS = 2  # factors that are remembered: of columns in their own order, and by falling diagonal


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """U of H in an order, and what it was made of."""

    h: Float[Tensor, "i i"]
    damp: float
    order: Int[Tensor, " i"]
    u: Float[Tensor, "i i"]

    def fits(self, h: Float[Tensor, "i i"], damp: float, order: Int[Tensor, " i"]) -> bool:
        """Whether it would be made of this, too."""
        return self.h is h and self.damp == damp and torch.equal(self.order, order)


FACTORS: ContextVar[list[Factor] | None] = ContextVar("factors", default=None)


@contextmanager
def remembered() -> Iterator[None]:
    """Within it U is made once for all sweeps over an H, which must not change, in one order; two are remembered."""
    token = FACTORS.set([])
    try:
        yield
    finally:
        FACTORS.reset(token)


def sweep(
    w: Float[Tensor, "o i"],
    h: Float[Tensor, "i i"],
    rule: Rule,
    *,
    damp: float,
    order: Int[Tensor, " i"] | None = None,
    block: int = 128,
) -> Float[Tensor, "o i"]:
    """Replace every column by what `rule` makes of it, in `order`; the result is in the original order.

    Of H any multiple will do, such as XᵀX itself.
    """
    if order is None:
        order = torch.arange(w.shape[1], device=w.device)
    u = feedback(h, damp, order)
    free = w.T[order].clone()  # transposed: the sweep then reads and writes whole rows of memory
    done = torch.empty_like(free)
    for first in range(0, w.shape[1], block):
        last = min(first + block, w.shape[1])
        here, there = free[first:last], u[first:last]
        diagonal, inside = there.diagonal(first), there[:, first:last]
        errors = torch.empty_like(here)
        for j in range(last - first):
            done[first + j] = rule(first + j, here, diagonal, j)
            errors[j] = (here[j] - done[first + j]) / diagonal[j]
            here[j + 1 :].addr_(inside[j, j + 1 :], errors[j], alpha=-1)
        free[last:].addmm_(there[:, last:].T, errors, alpha=-1)
    swept: Tensor = done[order.argsort()].T.contiguous()
    return swept


def feedback(h: Float[Tensor, "i i"], damp: float, order: Int[Tensor, " i"]) -> Float[Tensor, "i i"]:
    """U, upper triangular, with UᵀU = (H + λI)⁻¹, rows and columns of H in `order`, λ = damp · mean(diag H).

    One factorisation and one inverse: of the reversed matrix, L Lᵀ = H reversed, U = L⁻¹ reversed back.
    """
    factors = FACTORS.get()
    known = next((factor for factor in factors or () if factor.fits(h, damp, order)), None)
    if known is not None:
        return known.u
    if factors is not None:
        factors[:] = factors[1 - ORDERS :]  # the oldest goes before the next is made
    lower = reversed_root(h, damp, order)
    invert(lower)
    u = lower.flip(0, 1)
    if factors is not None:
        factors.append(Factor(h=h, damp=damp, order=order, u=u))
    return u


def invert(lower: Float[Tensor, "i i"], leaf: int = 256) -> None:
    """L becomes L⁻¹, by way of its quarters: in place, a third of the multiplications of solving L X = I."""
    i = len(lower)
    if i <= leaf:
        eye = torch.eye(i, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = i // 2
    top, bottom, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert(top, leaf)
    invert(bottom, leaf)
    corner.copy_(-bottom @ (corner @ top))


def reversed_root(h: Float[Tensor, "i i"], damp: float, order: Int[Tensor, " i"]) -> Float[Tensor, "i i"]:
    """L, lower triangular, with L Lᵀ = H + λI, in the reverse of `order`, λ = damp · mean(diag H).

    Where rounding makes H indefinite the damping grows tenfold until it factors.

    Raises:
        RecipeError: the damping is negative, or there are no numbers to damp, and it would grow for ever.
    """
    at_least(0, damp=damp)
    back = order.flip(0)
    h = h.index_select(0, back).index_select(1, back)
    dead = h.diagonal() <= 0
    h.diagonal()[dead] = 1.0
    strength = damp * h.diagonal().mean()
    while strength.isfinite():
        h.diagonal().add_(strength)
        lower, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            return lower  # type: ignore[no-any-return]
        strength = strength * 10 + torch.finfo(h.dtype).eps * h.diagonal().mean()
    raise RecipeError(f"damp={damp} is too large, or the statistics are no finite numbers, as of data that holds none,")
