"""How a weight is written down."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lissom.formats.affine import Affine
from lissom.formats.binary import Binary
from lissom.formats.dense import Dense
from lissom.formats.linear import (
    CompressedConv,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Frozen,
    freeze,
    matrix_of,
    unfreeze,
    wrap,
)
from lissom.formats.masked import Masked
from lissom.formats.palette import Palette
from lissom.formats.weight import Trainable, Weight

FORMATS: dict[str, type[Weight]] = {
    "dense": Dense,
    "masked": Masked,
    "affine": Affine,
    "palette": Palette,
    "binary": Binary,
}


def read_weight(spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Weight:
    """The weight that `spec` and `parts` describe; the inverse of its two methods of those names."""
    return FORMATS[spec["format"]].of_parts(spec, parts)


__all__ = [
    "FORMATS",
    "Affine",
    "Binary",
    "CompressedConv",
    "CompressedEmbedding",
    "CompressedLayer",
    "CompressedLinear",
    "Dense",
    "Frozen",
    "Masked",
    "Palette",
    "Trainable",
    "Weight",
    "freeze",
    "matrix_of",
    "read_weight",
    "unfreeze",
    "wrap",
]
