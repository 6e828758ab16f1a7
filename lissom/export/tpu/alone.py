"""What TPUs' compiler says of the product of one layer, compiled by itself for one chip that need not be there."""

from dataclasses import dataclass

import torch
from torch import nn

from lissom.export.tpu.chips import compiled
from lissom.export.tpu.lower import Lowered, lowered
from lissom.export.tpu.plain import make_plain
from lissom.formats import Weight, wrap

CHIPS = {"v5p": 8}  # whose smallest topology has four chips; nothing is shared out among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of a product, and the bytes that it passes through memory.

    These are its arguments and what comes out, as they lie on the chip, and twice what is made on the way: written, and
    read again. (What XLA calls accessed also has what is copied within the chip.)
    """

    operations: float
    nbytes: float


def work_of(weight: Weight, rows: int, kind: str, dtype: torch.dtype) -> Work:
    """A product of so many rows with a weight, on one chip of a kind, such as v5e.

    Raises:
        ModelError: it cannot be compiled, or the compiler is not installed.
    """
    found = compiled(product(weight, rows, dtype), {}, f"{kind}-{CHIPS.get(kind, 1)}")
    return Work(operations=found.flops, nbytes=found.argument_bytes + found.output_bytes + 2 * found.temporary_bytes)


def product(weight: Weight, rows: int, dtype: torch.dtype) -> Lowered:
    """The product, lowered."""
    o, i = weight.shape
    layer = wrap(nn.Linear(i, o, bias=False, device="meta"), weight)
    return lowered(make_plain(layer, dtype), {"x": torch.zeros(rows, i, dtype=dtype)})
