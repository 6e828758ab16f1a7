"""How a weight is written down."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lissom.formats.affine import Affine
from lissom.formats.binary import Binary
from lissom.formats.dense import Dense
from lissom.formats.dynamic import Dynamic
from lissom.formats.floats import Floats
from lissom.formats.gpu.operators import kernel_of
from lissom.formats.linear import (
    CompressedConv,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Frozen,
    freeze,
    matrix_of,
    scale_of,
    share_base,
    unfreeze,
    wrap,
)
from lissom.formats.lowrank import LowRank
from lissom.formats.masked import Masked
from lissom.formats.narrow import Narrow
from lissom.formats.palette import Palette
from lissom.formats.signs import Signs
from lissom.formats.sum import BASES, Sum
from lissom.formats.ternary import Ternary
from lissom.formats.turned import Turned
from lissom.formats.weight import Trainable, Weight
from lissom.formats.xnor import Xnor

FORMATS: dict[str, type[Weight]] = {**BASES, "sum": Sum, "turned": Turned}  # a new format is written into BASES


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
    "Dynamic",
    "Floats",
    "Frozen",
    "LowRank",
    "Masked",
    "Narrow",
    "Palette",
    "Signs",
    "Sum",
    "Ternary",
    "Trainable",
    "Turned",
    "Weight",
    "Xnor",
    "freeze",
    "kernel_of",
    "matrix_of",
    "read_weight",
    "scale_of",
    "share_base",
    "unfreeze",
    "wrap",
]
