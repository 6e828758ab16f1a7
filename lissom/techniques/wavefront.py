"""The sweep with error feedback on both sides: of inputs, as in GPTQ, and of outputs, as the end loss ties them.

    min over V of tr( G (W - V) H (W - V)ᵀ )        H = E[x xᵀ] of a layer's inputs, G = E[g gᵀ] of the loss's gradients

With H = M D Mᵀ and G = N D' Nᵀ, M and N unit upper triangular, the objective is the weighted sum of squares of

    R = Nᵀ (W - V) M        R_ij = e_ij + Σ_l<j e_il M_lj + Σ_k<i N_ki t_kj,    e = W - V,  t = e M

so each V_ij is chosen so that R_ij is as small as can be, given all entries above it and to its left.

Tseng, Sun, Hou, De Sa, YAQA, 2025, arXiv:2505.22988, section 3 (adaptive rounding with feedback from both factors).
With
G = I it is GPTQ. Entries of one anti-diagonal do not depend on each other and are chosen together; tiles of the matrix
are done one after another, so that what lies behind them is a matrix product.

Shapes: o outputs, i inputs, p rows and q columns of a tile, d entries of an anti-diagonal.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.techniques.sweep import reversed_root

# (what the entries should be, their rows, their columns, both in the matrix's own order) -> what they become
Choice = Callable[[Float[Tensor, " d"], Int[Tensor, " d"], Int[Tensor, " d"]], Float[Tensor, " d"]]


def sweep_both(
    w: Float[Tensor, "o i"],
    h: Float[Tensor, "i i"],
    g: Float[Tensor, "o o"],
    choose: Choice,
    *,
    damp: float,
    damp_out: float,
    rows: Int[Tensor, " o"],
    columns: Int[Tensor, " i"],
    tile: int = 128,
) -> Float[Tensor, "o i"]:
    """Replace every entry by what `choose` makes of it, in the order of `rows` and `columns`."""
    m, n = unit(h, damp, columns), unit(g, damp_out, rows)
    free = w[rows][:, columns]
    error, felt, done = (torch.zeros_like(free) for _ in range(3))
    for top in range(0, w.shape[0], tile):
        for left in range(0, w.shape[1], tile):
            here = slice(top, top + tile), slice(left, left + tile)
            beside = error[here[0], :left] @ m[:left, here[1]]
            above = n[:top, here[0]].T @ felt[:top, here[1]]
            inside = m[here[1], here[1]], n[here[0], here[0]]
            done[here] = sweep_tile(free[here], beside, above, *inside, choose, rows[here[0]], columns[here[1]])
            error[here] = free[here] - done[here]
            felt[here] = error[here] @ m[here[1], here[1]] + error[here[0], :left] @ m[:left, here[1]]
    swept: Tensor = torch.empty_like(w).index_put_((rows.unsqueeze(1), columns.unsqueeze(0)), done)
    return swept


def sweep_tile(
    w: Float[Tensor, "p q"],
    beside: Float[Tensor, "p q"],
    above: Float[Tensor, "p q"],
    m: Float[Tensor, "q q"],
    n: Float[Tensor, "p p"],
    choose: Choice,
    rows: Int[Tensor, " p"],
    columns: Int[Tensor, " q"],
) -> Float[Tensor, "p q"]:
    """One tile, anti-diagonal by anti-diagonal; `beside` and `above` are the feedback, and take in the tile's own."""
    p, q = w.shape
    right, down = m.triu(1), n.triu(1)
    done = torch.empty_like(w)
    for diagonal in range(p + q - 1):
        first, last = max(0, diagonal - q + 1), min(p - 1, diagonal)
        r = torch.arange(first, last + 1, device=w.device)
        c = diagonal - r
        done[r, c] = choose(w[r, c] + beside[r, c] + above[r, c], rows[r], columns[c])
        error = w[r, c] - done[r, c]
        felt = error + beside[r, c]
        beside[first : last + 1].addcmul_(error.unsqueeze(1), right[c])
        above[:, diagonal - last : diagonal - first + 1].addcmul_(down[r].flip(0).T, felt.flip(0).unsqueeze(0))
    return done


def unit(h: Float[Tensor, "i i"], damp: float, order: Int[Tensor, " i"]) -> Float[Tensor, "i i"]:
    """M, unit upper triangular, with H + λI = M D Mᵀ, rows and columns of H in `order`, λ = damp · mean(diag H)."""
    upper = reversed_root(h.double(), damp, order).flip(0, 1)
    found: Tensor = (upper / upper.diagonal()).float()
    return found
