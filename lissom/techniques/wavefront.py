"""The sweep with error feedback on both sides: of inputs, as in GPTQ, and of outputs, as the end loss ties them.

    min over V of tr( G (W - V) H (W - V)ᵀ )        H = E[x xᵀ] of a layer's inputs, G = E[g gᵀ] of the loss's gradients

With H = M D Mᵀ and G = N D' Nᵀ, M and N unit upper triangular, the objective is the weighted sum of squares of

    R = Nᵀ (W - V) M        R_ij = e_ij + Σ_l<j e_il M_lj + Σ_k<i N_ki t_kj,    e = W - V,  t = e M

so each V_ij is chosen so that R_ij is as small as can be, given all entries above it and to its left.

Tseng, Sun, Hou, De Sa, YAQA, 2025, arXiv:2505.22988, section 3 (adaptive rounding with feedback from both factors).
With G = I it is GPTQ. Entries of one anti-diagonal do not depend on each other and are chosen together. The matrix is
cut into tiles, so that what lies behind them is a matrix product; tiles of one anti-diagonal do not depend on each
other either.

Shapes: o outputs, i inputs, t tiles, p rows and q columns of a tile, d entries.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

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
    tile: int = 64,
) -> Float[Tensor, "o i"]:
    """Replace every entry by what `choose` makes of it, in the order of `rows` and `columns`."""
    m, n = unit(h, damp, columns), unit(g, damp_out, rows)
    free = w[rows][:, columns]
    error, felt, done = (torch.zeros_like(free) for _ in range(3))
    for alike in independent(w.shape[0], w.shape[1], tile):
        made = sweep_tiles(
            torch.stack([free[r, c] for r, c in alike]),
            torch.stack([error[r, : c.start] @ m[: c.start, c] for r, c in alike]),
            torch.stack([n[: r.start, r].T @ felt[: r.start, c] for r, c in alike]),
            torch.stack([m[c, c] for _, c in alike]),
            torch.stack([n[r, r] for r, _ in alike]),
            choose,
            torch.stack([rows[r] for r, _ in alike]),
            torch.stack([columns[c] for _, c in alike]),
        )
        for here, *found in zip(alike, *made, strict=True):
            done[here], felt[here] = found
            error[here] = free[here] - done[here]
    swept: Tensor = torch.empty_like(w).index_put_((rows.unsqueeze(1), columns.unsqueeze(0)), done)
    return swept


def independent(o: int, i: int, tile: int) -> Iterator[list[tuple[slice, slice]]]:
    """Tiles of one shape that lie on one anti-diagonal of tiles, from the first to the last."""
    across, down = ([slice(at, min(at + tile, size)) for at in range(0, size, tile)] for size in (i, o))
    for diagonal in range(len(down) + len(across) - 1):
        first = max(0, diagonal - len(across) + 1)
        here = [(r, across[diagonal - at]) for at, r in enumerate(down[first : diagonal + 1], first)]
        for _, alike in groupby(here, lambda one: [part.stop - part.start for part in one]):
            yield list(alike)


def sweep_tiles(
    w: Float[Tensor, "t p q"],
    beside: Float[Tensor, "t p q"],
    above: Float[Tensor, "t p q"],
    m: Float[Tensor, "t q q"],
    n: Float[Tensor, "t p p"],
    choose: Choice,
    rows: Int[Tensor, "t p"],
    columns: Int[Tensor, "t q"],
) -> tuple[Float[Tensor, "t p q"], Float[Tensor, "t p q"]]:
    """What the entries of some tiles become, anti-diagonal by anti-diagonal, and t = e M.

    `beside` and `above` are the feedback from other tiles, and take in the tiles' own.
    """
    _, p, q = w.shape
    right, down = m.triu(1), n.triu(1)
    done, error = torch.empty_like(w), torch.empty_like(w)
    for diagonal in range(p + q - 1):
        first, last = max(0, diagonal - q + 1), min(p - 1, diagonal)
        r = torch.arange(first, last + 1, device=w.device)
        c = diagonal - r
        own, behind = w[:, r, c], beside[:, r, c]
        sought = own + behind + above[:, r, c]
        chosen = choose(sought.flatten(), rows[:, r].flatten(), columns[:, c].flatten()).view_as(own)
        off = own - chosen
        done[:, r, c], error[:, r, c] = chosen, off
        beside[:, first : last + 1].addcmul_(off.unsqueeze(2), right[:, c])
        felt = (off + behind).flip(1).unsqueeze(1)
        above[..., diagonal - last : diagonal - first + 1].addcmul_(down[:, r.flip(0)].mT, felt)
    return done, error.add_(beside)


def unit(h: Float[Tensor, "i i"], damp: float, order: Int[Tensor, " i"]) -> Float[Tensor, "i i"]:
    """M, unit upper triangular, with H + λI = M D Mᵀ, rows and columns of H in `order`, λ = damp · mean(diag H)."""
    upper = reversed_root(h.double(), damp, order).flip(0, 1)
    found: Tensor = (upper / upper.diagonal()).float()
    return found
