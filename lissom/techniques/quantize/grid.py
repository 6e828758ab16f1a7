"""Fitting an integer grid to a group of weights: which scale, which zero, where to clip.

The range is shrunk step by step from the largest weight down, and for each group the step that makes the smallest
error, weighted by how strongly each input is driven, is kept: min over c of Σ_j E[x_j²] (w_j - Q_c(w_j))².
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

SHRINK = 40  # steps of the search, from 1 down to 1/2 of the range
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
    """The scale and the zero of least weighted error for each group."""
    half = 2 ** (bits - 1)
    best = torch.full(w.shape[:2], torch.inf, device=w.device)
    best_scale = torch.ones_like(best)
    best_zero = torch.full_like(best, half)
    for shrink in torch.linspace(1, 0.5, shrinks, device="cpu").tolist():
        for scale, zero in ranges(w, shrink, half, symmetric, step):
            error = _error(w, weight, scale, zero, bits)
            better = error < best
            best = torch.where(better, error, best)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def step_of(w: Float[Tensor, "o g k"], half: int, symmetric: bool) -> Float[Tensor, "o 1"]:
    """The step of each row's scales, of which its widest range takes the most there are."""
    (widest, _), *_ = ranges(w, 1.0, half, symmetric)
    return stored(widest.abs().amax(1, keepdim=True) / STEPS).float()


def ranges(
    w: Float[Tensor, "o g k"], shrink: float, half: int, symmetric: bool, step: Float[Tensor, "o 1"] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The scales and zeros to try for a range of `shrink` times the group's."""
    tiny = torch.finfo(torch.float16).tiny
    if symmetric:
        largest = w.abs().amax(-1).clamp(min=tiny * half) * shrink
        zero = torch.full_like(largest, half)
        return [(held(sign * largest / half, step), zero) for sign in (1, -1)]
    low, high = w.amin(-1).clamp(max=0) * shrink, w.amax(-1).clamp(min=0) * shrink
    scale = held(((high - low) / (2 * half - 1)).clamp(min=tiny), step)
    return [(scale, (-low / scale).round().clamp(0, 2 * half - 1))]


def _error(w: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    code = nearest(w, scale.unsqueeze(-1), zero.unsqueeze(-1), bits)
    return code.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).sub_(w).square_().mul_(weight).sum(-1)
