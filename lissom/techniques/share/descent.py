"""Codebooks under the Gram: which entry each place takes, and what the entries are, improved in turns.

Both turns lower E = Σ_r (w_r - v_r) H (w_r - v_r)ᵀ, v_r = P_r c, where P_r says which entry stands where:

    entries    (Σ_r P_rᵀ H P_r) c = Σ_r P_rᵀ H w_r            least squares, by conjugate gradients
    indices    a_rJ = argmin_e  c_e H_JJ c_eᵀ - 2 c_e bᵀ,   b = ((w_r - v_r) H)_J + v_rJ H_JJ      place after place

Kim, Hwang, Lee, Kim, GuidedQuant, ICML 2025, arXiv:2505.07004, algorithm 2 (LNQ), where J is one input; here also a few
inputs that follow one another. The entries are rounded to what is stored before the indices are chosen. Groups of
a row's inputs may have a scale that multiplies their entries; each is then fitted too, group after group:

    s_rG += ((w_r - v_r) H)_G u_rGᵀ / (u_rG H_GG u_rGᵀ),   v_rG = s_rG u_rG

Shapes: o outputs, i inputs, p codebooks of `rows` rows each, e entries, d inputs that an entry stands for, m = i / d
places of a row, g groups of a row.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lissom.formats import Palette
from lissom.formats.palette import multiplied
from lissom.formats.weight import stored
from lissom.techniques.sweep import feedback, sweep

BLOCK = 128  # inputs whose changes are carried to the others together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """A matrix as codebooks and the entry that stands at each place."""

    books: Float[Tensor, "p e d"]
    indices: Int[Tensor, "o m"]
    rows: int
    scale: Float[Tensor, "o g"] | None = None
    kept: Bool[Tensor, "o i"] | None = None

    def places(self) -> Int[Tensor, "o i"]:
        """Where each weight's value stands among all entries."""
        _, e, d = self.books.shape
        here = self.indices.device
        book = torch.arange(len(self.indices), device=here).unsqueeze(1) // self.rows
        return ((self.indices + book * e).unsqueeze(2) * d + torch.arange(d, device=here)).flatten(1)

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        return multiplied(self.unscaled(), self.scale)

    def unscaled(self) -> Float[Tensor, "o i"]:
        """The matrix before its scales."""
        return masked(self.books.flatten()[self.places()], self.kept)

    def scales(self, inputs: slice) -> Float[Tensor, "o 1"]:
        """The scale of inputs of one group."""
        if self.scale is None:
            return self.books.new_ones(len(self.indices), 1)
        group = inputs.start * self.scale.shape[1] // (self.indices.shape[1] * self.books.shape[2])
        return self.scale[:, group : group + 1]

    def palette(self) -> Palette:
        """The matrix as it is stored."""
        indices, books = self.indices.to(torch.uint8), self.books.flatten(1)
        return Palette.of(indices, books, self.rows, self.kept, width=self.books.shape[2], scale=self.scale)


def masked(matrix: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"] | None) -> Float[Tensor, "o i"]:
    """Zero where pruned."""
    return matrix if kept is None else matrix * kept


def errors(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"]) -> Float[Tensor, " p"]:
    """E of each codebook."""
    gap = w - shared.dense()
    return by_book((gap @ h * gap).sum(1), shared.rows)


def by_book(values: Float[Tensor, " o"], rows: int) -> Float[Tensor, " p"]:
    """Sums over the rows of each codebook."""
    return F.pad(values, (0, -len(values) % rows)).reshape(-1, rows).sum(1)


def improve(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"], iterations: int) -> Shared:
    """Scales, entries and indices in turns, until no index moves or E falls by less than a thousandth."""
    best = errors(w, shared, h)
    for _ in range(iterations):
        before, moved = best, shared.indices
        for turn in (refit, rescale):
            tried = turn(w, shared, h)
            error = errors(w, tried, h)
            shared, best = better(tried, shared, error < best), torch.minimum(error, best)
        shared = replace(shared, indices=descend(w, shared, h))
        best = errors(w, shared, h)
        if torch.equal(shared.indices, moved) or best.sum() > 0.999 * before.sum():
            break
    return shared


def better(tried: Shared, shared: Shared, mine: Bool[Tensor, " p"]) -> Shared:
    """The entries and scales tried for some of the codebooks, as they were for the others."""
    books = torch.where(mine[:, None, None], tried.books, shared.books)
    if tried.scale is None or shared.scale is None:
        return replace(shared, books=books)
    rows = mine.repeat_interleave(shared.rows)[: len(shared.indices)]
    return replace(shared, books=books, scale=torch.where(rows.unsqueeze(1), tried.scale, shared.scale))


def rescale(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"]) -> Shared:
    """Each group's scale of least E while the others stay, from the first to the last."""
    if shared.scale is None:
        return shared
    u, scale = shared.unscaled(), shared.scale.clone()
    r = (w - shared.dense()) @ h
    size = w.shape[1] // scale.shape[1]
    for g in range(scale.shape[1]):
        own = slice(g * size, g * size + size)
        felt = (u[:, own] @ h[own, own] * u[:, own]).sum(1)
        best = scale[:, g] + (r[:, own] * u[:, own]).sum(1) / felt
        best = torch.where((felt > 0) & (best > 0), best, scale[:, g])
        r -= (u[:, own] * (best - scale[:, g]).unsqueeze(1)) @ h[own]
        scale[:, g] = best
    return replace(shared, scale=stored(scale).float())


def refit(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"], steps: int = 8) -> Shared:
    """The entries of least E for these indices; an entry that nothing uses stays where it is.

    Conjugate gradients on every codebook at once, from those there are, scaled by Σ s² H_jj of who uses each.
    """
    places = shared.places().flatten()
    c = shared.books.flatten(1)

    def spread(entries: Tensor) -> Tensor:
        return multiplied(masked(entries.flatten()[places].view_as(w), shared.kept), shared.scale)

    def gather(matrix: Tensor) -> Tensor:
        felt = multiplied(masked(matrix, shared.kept), shared.scale)
        found = c.new_zeros(c.numel()).index_add_(0, places, felt.flatten())
        return found.view_as(c)

    used = gather(multiplied(h.diagonal().expand_as(w), shared.scale))
    left = gather((w - spread(c)) @ h)
    direction = toward = torch.where(used > 0, left / used, 0.0)
    size = (left * toward).sum(1, keepdim=True)
    for _ in range(steps):
        felt = gather(spread(direction) @ h)
        power = (direction * felt).sum(1, keepdim=True)
        step = torch.where(power > torch.finfo(power.dtype).tiny, size / power, 0.0)  # 0: there is nothing left to gain
        c, left = c + step * direction, left - step * felt
        toward = torch.where(used > 0, left / used, 0.0)
        before, size = size, (left * toward).sum(1, keepdim=True)
        direction = toward + torch.where(before > 0, size / before, 0.0) * direction
    return replace(shared, books=stored(c.view_as(shared.books)).float())


def choose(
    books: Float[Tensor, "p e d"],
    metric: Float[Tensor, "d d"],
    b: Float[Tensor, "o d"],
    rows: int,
    kept: Bool[Tensor, "o d"] | None,
) -> Int[Tensor, " o"]:
    """argmin_e c_e M c_eᵀ - 2 c_e bᵀ for each row, with c_e zero where the row is pruned."""
    p, e, d = books.shape
    squares = (books.unsqueeze(3) * books.unsqueeze(2) * metric).reshape(p, e, d * d)
    if kept is None:
        cost = squares.sum(2).unsqueeze(1)
    else:
        b = b * kept
        pairs = (kept.unsqueeze(2) & kept.unsqueeze(1)).flatten(1).float()
        cost = by_rows(pairs, rows) @ squares.transpose(1, 2)
    cost = torch.baddbmm(cost.expand(p, rows, e), by_rows(b, rows), books.transpose(1, 2), alpha=-2)
    return cost.argmin(2).flatten()[: len(b)]


def by_rows(matrix: Float[Tensor, "o k"], rows: int) -> Float[Tensor, "p r k"]:
    """The rows of each codebook."""
    return F.pad(matrix, (0, 0, 0, -len(matrix) % rows)).reshape(-1, rows, matrix.shape[1])


def descend(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"]) -> Int[Tensor, "o m"]:
    """The best index of each place while the others stay, from the first place to the last."""
    d = shared.books.shape[2]
    indices = shared.indices.T.contiguous()
    v = shared.dense().T.contiguous()  # transposed: one input of all rows lies together
    r = h @ (w.T - v)
    size = BLOCK // d * d
    for first in range(0, len(v), size):
        block = slice(first, min(first + size, len(v)))
        inside, here, before = h[block, block], r[block], v[block].clone()
        for j in range(0, len(here), d):
            at, own = slice(j, j + d), slice(first + j, first + j + d)
            old = v[own].clone()
            indices[own.start // d], v[own] = take(shared, own, inside[at, at], (here[at] + inside[at, at] @ old).T)
            here.addmm_(inside[:, at], v[own] - old, alpha=-1)
        moved = v[block] - before
        r[: block.start].addmm_(h[: block.start, block], moved, alpha=-1)
        r[block.stop :].addmm_(h[block.stop :, block], moved, alpha=-1)
    return indices.T.contiguous()


def take(
    shared: Shared, own: slice, metric: Float[Tensor, "d d"], b: Float[Tensor, "o d"]
) -> tuple[Int[Tensor, " o"], Float[Tensor, "d o"]]:
    """The best entry for the inputs `own` of each row, argmin_v v M vᵀ - 2 v bᵀ, and the values it gives them."""
    scale = shared.scales(own)
    kept = None if shared.kept is None else shared.kept[:, own]
    found = choose(shared.books, metric, b / scale, shared.rows, kept)
    book = torch.arange(len(b), device=b.device) // shared.rows
    return found, (masked(shared.books[book, found], kept) * scale).T


def start(w: Float[Tensor, "o i"], shared: Shared, h: Float[Tensor, "i i"], damp: float) -> Shared:
    """The indices that the column sweep with error feedback leaves, the places of strong inputs first.

    Of H any multiple will do, such as XᵀX itself.

    A place of d inputs is chosen at once. The sweep's errors of its inputs are e = (y - v) U_JJ⁻¹, so that the choice
    is of least (y - v) M (y - v)ᵀ with M = (U_JJᵀ U_JJ)⁻¹. Baalen et al., GPTVQ, 2024, arXiv:2402.15319, section 3.
    """
    d = shared.books.shape[2]
    strong = h.diagonal().reshape(-1, d).sum(1).argsort(descending=True, stable=True)
    order = (strong.unsqueeze(1) * d + torch.arange(d, device=strong.device)).flatten()
    u = feedback(h, damp, order)
    indices, values = torch.empty_like(shared.indices), w.new_empty(d, len(w))

    def column(j: int, block: Tensor, diagonal: Tensor, place: int) -> Tensor:
        if j % d == 0:
            at = int(strong[j // d])
            metric = torch.cholesky_inverse(u[j : j + d, j : j + d], upper=True)
            b = block[place : place + d].T @ metric
            indices[:, at], values[:] = take(shared, slice(at * d, at * d + d), metric, b)
        return values[j % d]

    sweep(w, h, column, damp=damp, order=order, block=BLOCK // d * d)
    return replace(shared, indices=indices)
