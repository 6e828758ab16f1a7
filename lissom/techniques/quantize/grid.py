"""Fitting an integer grid to a group of weights: which scale, which zero, where to clip.

The range is shrunk step by step from the largest weight down, and for each group the step is kept that makes the least
error found, weighted by how strongly each input is driven: min over c of Σ_j E[x_j²] (w_j - Q_c(w_j))². First in
large steps, then in small ones around the best: 24 of 80 ranges of a symmetric grid are tried, 14 of 40 of others.
A symmetric grid has one more code below zero than above, so the scale may be negative: the longer side goes where the
largest weight is.

With scales of 8 bits those of a row are whole multiples, -127 to 127, of one float (Dettmers et al., QLoRA, NeurIPS
2023, arXiv:2305.14314, section 3, quantizes its scales likewise): groups half as large then cost no more.

Shapes: o outputs, i inputs, g groups of a row, k inputs of a group.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats.affine import STEPS, held
from lissom.formats.weight import stored
from lissom.techniques.knobs import between, one_of

SHRINK = 40  # ranges of the search, from 1 down to 1/2 of the group's
EVERY, CLOSER = 4, (2, 1)  # of these are tried at first, and how far from the best so far then
LOT = 2**18  # weights that are searched for at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """w = (code - zero) * scale; the scale is already what storing it leaves."""

    scale: Float[Tensor, "o g"]
    zero: Float[Tensor, "o g"]
    bits: int
    symmetric: bool
    step: Float[Tensor, "o 1"] | None = None

    def codes(self, w: Float[Tensor, "o i"]) -> UInt8[Tensor, "o i"]:
        """The nearest code of each weight."""
        grouped = w.unflatten(1, (self.scale.shape[1], -1))
        return nearest(grouped, self.scale.unsqueeze(-1), self.zero.unsqueeze(-1), self.bits).flatten(1).to(torch.uint8)

    def stored_zero(self) -> UInt8[Tensor, "o g"] | None:
        """The zeros to store; a symmetric grid needs none."""
        return None if self.symmetric else self.zero.to(torch.uint8)


def nearest(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """round(w / scale) + zero, clipped to the codes there are."""
    return (w / scale).round_().add_(zero).clamp_(0, 2**bits - 1)


def check(bits: int, group: int, inputs: int) -> int:
    """The group size to use (0 stands for the whole row).

    Raises:
        RecipeError: the bits are not written by any format, or the group does not divide the inputs.
    """
    between(2, 8, bits=bits)
    return group_size(group, inputs)


def group_size(group: int, inputs: int) -> int:
    """Inputs that share a scale; 0 stands for the whole row.

    Raises:
        RecipeError: the group does not divide the inputs.
    """
    if group < 0 or inputs % (group or inputs):
        fits = [size for size in (32, 64, 128, 256) if inputs % size == 0]
        raise RecipeError(
            f"group={group} does not divide {inputs} inputs; try {' or '.join(map(str, fits[-2:] or [0]))}"
        )
    return group or inputs


def fit(
    w: Float[Tensor, "o i"],
    power: Float[Tensor, " i"],
    *,
    bits: int,
    group: int,
    symmetric: bool,
    clip: bool,
    scale_bits: int = 16,
) -> Grid:
    """The grid of least weighted error for each group of `group` inputs (0: the whole row).

    Raises:
        RecipeError: a knob is none of those possible.
    """
    group = check(bits, group, w.shape[1])
    one_of((16, 8), scale_bits=scale_bits)
    grouped = w.unflatten(1, (-1, group))
    weight = power.clamp(min=0).reshape(-1, group)
    step = None if scale_bits == 16 else step_of(grouped, 2 ** (bits - 1), symmetric)
    lot = max(1, LOT // w.shape[1])  # rows at a time: what is computed of them stays in the cache
    steps = [None] * -(-len(w) // lot) if step is None else step.split(lot)
    found = [
        searched(rows, weight, bits, symmetric, SHRINK if clip else 1, own)
        for rows, own in zip(grouped.split(lot), steps, strict=True)
    ]
    scale, zero = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Grid(scale=scale, zero=zero, bits=bits, symmetric=symmetric, step=step)


def searched(
    w: Float[Tensor, "o g k"],
    weight: Float[Tensor, "g k"],
    bits: int,
    symmetric: bool,
    shrinks: int,
    step: Float[Tensor, "o 1"] | None,
) -> tuple[Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """The scale and the zero of least weighted error for each group, of those that are tried.

    Every fourth of `shrinks` ranges is, of a symmetric grid either way round; then those beside the best, two away and
    one. A test holds the error to within 1 % of the least of all ranges.
    """
    best = Best(w, weight, bits, symmetric, step)
    low, high = ends(w, 2 ** (bits - 1), symmetric)
    part = 0.5 / max(shrinks - 1, 1)
    for place in range(0, shrinks, EVERY):
        for first, last in ((low, high), (high, low))[: 1 + symmetric]:
            best.consider(first, last, torch.full_like(low, 1 - place * part))
    side = best.scale.sign()  # negative for the other way round
    for away in CLOSER if shrinks > 1 else ():
        around = best.shrink
        for beside in (around - away * part, around + away * part):
            best.consider(low * side, high * side, beside.clamp(0.5, 1))
    return best.scale, best.zero


class Best:
    """The best of the ranges considered, for each group."""

    def __init__(
        self,
        w: Float[Tensor, "o g k"],
        weight: Float[Tensor, "g k"],
        bits: int,
        symmetric: bool,
        step: Float[Tensor, "o 1"] | None,
    ) -> None:
        self.w, self.weight, self.bits, self.symmetric, self.step = w, weight, bits, symmetric, step
        self.error = torch.full(w.shape[:2], torch.inf, device=w.device)
        self.scale, self.zero = torch.ones_like(self.error), torch.full_like(self.error, 2 ** (bits - 1))
        self.shrink = torch.ones_like(self.error)

    def consider(self, low: Float[Tensor, "o g"], high: Float[Tensor, "o g"], shrink: Float[Tensor, "o g"]) -> None:
        """Keep `shrink` times a range for the groups for which it is better."""
        scale, zero = spread(low * shrink, high * shrink, 2 ** (self.bits - 1), self.symmetric, self.step)
        code = nearest(self.w, scale.unsqueeze(-1), zero.unsqueeze(-1), self.bits)
        off = code.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).sub_(self.w)
        error = off.square_().mul_(self.weight).sum(-1)
        better = error < self.error
        self.error, self.shrink = torch.where(better, error, self.error), torch.where(better, shrink, self.shrink)
        self.scale, self.zero = torch.where(better, scale, self.scale), torch.where(better, zero, self.zero)


def step_of(w: Float[Tensor, "o g k"], half: int, symmetric: bool) -> Float[Tensor, "o 1"]:
    """The step of each row's scales, of which its widest range takes the most there are."""
    widest, _ = spread(*ends(w, half, symmetric), half, symmetric)
    return stored(widest.abs().amax(1, keepdim=True) / STEPS).float()


def ends(w: Float[Tensor, "o g k"], half: int, symmetric: bool) -> tuple[Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """The range of each group, with 0 in it; a symmetric grid's has 0 in the middle."""
    if symmetric:
        largest = w.abs().amax(-1).clamp(min=torch.finfo(torch.float16).tiny * half)
        return -largest, largest
    return w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)


def spread(
    low: Float[Tensor, "o g"],
    high: Float[Tensor, "o g"],
    half: int,
    symmetric: bool,
    step: Float[Tensor, "o 1"] | None = None,
) -> tuple[Float[Tensor, "o g"], Float[Tensor, "o g"]]:
    """The scales and zeros of a grid from `low` to `high`; a symmetric one has its additional code beyond `low`."""
    tiny = torch.finfo(torch.float16).tiny
    if symmetric:
        return held(high / half, step), torch.full_like(high, half)
    scale = held(((high - low) / (2 * half - 1)).clamp(min=tiny), step)
    return scale, (-low / scale).round().clamp(0, 2 * half - 1)
