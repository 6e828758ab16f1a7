"""Floats: each weight becomes the nearest small floating-point number, in one of the formats that accelerators read.

OCP Microscaling Formats Specification 1.0, 2023, section 6.3: the scale of a group is 2^(⌊log₂ max|w|⌋ - e), e the
largest exponent of an element. Here the powers of two on either side are tried as well; and of NVFP4's scales those
that put the group's largest weight at other elements than the last, as Cook et al., Four Over Six, 2025,
arXiv:2512.02010, put it at 4: whichever makes Σ_j E[x_j²] (w_j - v_j)² smallest.

Shapes: o outputs, i inputs, g groups of a row, k inputs of a group.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lissom.formats import Floats, Weight
from lissom.formats.floats import KINDS, Kind, held, read
from lissom.statistics import Moments
from lissom.techniques.knobs import one_of
from lissom.techniques.quantize.grid import group_size

POWERS = (1.0, 2.0, 0.5)
FACTORS = (1.0, 1.5, *(1.0 - 0.05 * n for n in range(1, 9)))


def floats(w: Weight, x: Moments, /, *, kind: str = "nvfp4", search: bool = True) -> Floats:
    """Elements of a kind: fp8_e4m3, fp8_e5m2, mxfp8, mxfp4 or nvfp4; without `search` the specified scales."""
    one_of(KINDS, kind=kind)
    matrix, form = w.dense(), KINDS[kind]
    size = group_size(form.group, matrix.shape[1])
    grouped, power = matrix.unflatten(1, (-1, size)), x.power.clamp(min=0).reshape(-1, size)
    largest = grouped.abs().amax(-1)
    whole = overall(largest, form)
    factors = (POWERS if form.scale == torch.float8_e8m0fnu else FACTORS) if search else (1.0,)
    tried = [held(form, scales(largest, form, whole) * factor) for factor in factors]
    errors = torch.stack([error(grouped, power, scale, whole, form) for scale in tried])
    best = errors.argmin(0)
    scale = torch.stack([t.view(torch.uint8) if t.element_size() == 1 else t for t in tried]).gather(0, best[None])[0]
    return Floats.of(matrix, scale.view(tried[0].dtype), whole, kind, w.kept())


def overall(largest: Float[Tensor, "o g"], form: Kind) -> Float[Tensor, " 1"] | None:
    """The scale of the whole, for which the largest group's is the largest there is."""
    if not form.overall or form.scale is None:
        return None
    whole = largest.max() / (form.largest * torch.finfo(form.scale).max)
    return torch.where(whole > 0, whole, 1.0).reshape(1)


def scales(largest: Float[Tensor, "o g"], form: Kind, whole: Float[Tensor, " 1"] | None) -> Float[Tensor, "o g"]:
    """The specified scale of each group."""
    largest = largest.clamp(min=torch.finfo(torch.float32).tiny)
    if form.scale == torch.float8_e8m0fnu:
        return torch.exp2(largest.frexp().exponent - 1.0 - math.floor(math.log2(form.largest)))
    return largest / form.largest / (1 if whole is None else whole)


def error(
    w: Float[Tensor, "o g k"],
    power: Float[Tensor, "g k"],
    scale: Shaped[Tensor, "o g"],
    whole: Float[Tensor, " 1"] | None,
    form: Kind,
) -> Float[Tensor, "o g"]:
    """What rounding under a scale costs each group."""
    wide = read(scale, whole).unsqueeze(-1)
    rounded = form.values(w.device)[form.codes(w / wide).int()] * wide
    return (rounded - w).square_().mul_(power).sum(-1)
