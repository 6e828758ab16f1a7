"""What the operators of the formats do on CUDA: the kernel that reads the weight as it is stored, or their definition.

PyTorch's dispatcher chooses: an operator that is given tensors on a GPU comes here. Without Triton, on a GPU older than
Ampere, for a pruned matrix (whose codes have no fixed places), and for entries that stand for several inputs, it is
what it is on a CPU, the definition, which writes the matrix down. Kernels are imported when the first tensor comes.

Shapes: o outputs, i inputs, g groups of a row.
"""

from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.formats.affine import Affine, affine_linear
from lissom.formats.binary import Binary, binary_linear
from lissom.formats.dynamic import Dynamic, dynamic_linear
from lissom.formats.floats import KINDS, Floats, floats_linear, read
from lissom.formats.narrow import KIND, Narrow, narrow_linear
from lissom.formats.palette import Palette, palette_linear
from lissom.formats.weight import Weight

AMPERE, ADA = (8, 0), (8, 9)  # from when on there are units for bfloat16, and for small floats
TYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def triton_there() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """What a GPU can do; in Triton's interpreter, on a CPU, all that kernels ask for."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else ADA


def runs(x: Tensor, mask: Tensor | None, least: tuple[int, int] = AMPERE) -> bool:
    """Whether a kernel takes this input, and a matrix from which nothing was pruned."""
    return mask is None and x.dtype in TYPES and triton_there() and capability(x.device) >= least


def kernel_of(weight: Weight) -> str | None:
    """The kind of kernel that a weight has on a GPU; None where the matrix is written down.

    "coded": the input as it is, the weight decoded as it is read. "whole": products of bytes; "narrow": of small
    floats.
    """
    if isinstance(weight, Dynamic) and weight.inputs <= 8:
        return "whole" if weight.affine.plane.mask is None else None
    if isinstance(weight, Narrow):
        return "narrow" if weight.floats.plane.mask is None else None
    if isinstance(weight, (Affine, Binary, Floats)) or (isinstance(weight, Palette) and weight.width == 1):
        return "coded" if weight.plane.mask is None else None
    return None


@affine_linear.register_kernel("cuda")
def affine(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
) -> Tensor:
    """Integers as they are read."""
    if not runs(x, mask):
        return affine_linear._init_fn(x, words, mask, scale, zero, bits, rows, columns)  # type: ignore[no-any-return]
    from lissom.formats.gpu.coded import Coded, product

    return product(x, Coded(words=words, bits=bits, inputs=columns, scale=scale, zeros=zero))


@binary_linear.register_kernel("cuda")
def binary(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """A codebook of -1 and 1."""
    if not runs(x, mask):
        return binary_linear._init_fn(x, words, mask, scale, rows, columns)  # type: ignore[no-any-return]
    from lissom.formats.gpu.coded import Coded, product
    from lissom.formats.gpu.reading import BOOK

    book = words.new_tensor([[-1.0, 1.0]], dtype=torch.float32)
    return product(x, Coded(words=words, bits=1, inputs=columns, scale=scale, kind=BOOK.value, book=book, rows=rows))


@palette_linear.register_kernel("cuda")
def palette(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    book_rows: int,
    bits: int,
    rows: int,
    columns: int,
    scale: Tensor | None = None,
    width: int = 1,
) -> Tensor:
    """Codebooks, looked up as indices are read."""
    if width > 1 or not runs(x, mask):
        own = (words, mask, codebook, book_rows, bits, rows, columns, scale, width)
        return palette_linear._init_fn(x, *own)  # type: ignore[no-any-return]
    from lissom.formats.gpu.coded import Coded, product
    from lissom.formats.gpu.reading import BOOK

    book = {"kind": BOOK.value, "book": codebook.contiguous(), "rows": book_rows}
    return product(x, Coded(words=words, bits=bits, inputs=columns, scale=scale, **book))


@floats_linear.register_kernel("cuda")
def floats(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    overall: Tensor | None,
    kind: str,
    rows: int,
    columns: int,
) -> Tensor:
    """Small floats by their bits, those of 4 bits by a codebook of all there are."""
    if not runs(x, mask):
        own = (words, mask, scale, overall, kind, rows, columns)
        return floats_linear._init_fn(x, *own)  # type: ignore[no-any-return]
    return coded_floats(x, words, read(scale, overall), kind, rows, columns)


def coded_floats(
    x: Float[Tensor, "*n i"], words: Tensor, scale: Float[Tensor, "o g"], kind: str, rows: int, columns: int
) -> Float[Tensor, "*n o"]:
    """x Wᵀ for small floats of a kind, with plain scales."""
    from lissom.formats.gpu.coded import Coded, product
    from lissom.formats.gpu.reading import BOOK, E4M3, E5M2

    element = KINDS[kind].element
    if element is None:
        book = KINDS[kind].values(words.device).unsqueeze(0)
        told = Coded(words=words, bits=4, inputs=columns, scale=scale, kind=BOOK.value, book=book, rows=rows)
        return product(x, told)
    meaning = E4M3 if element == torch.float8_e4m3fn else E5M2
    return product(x, Coded(words=words, bits=8, inputs=columns, scale=scale, kind=meaning.value))


@dynamic_linear.register_kernel("cuda")
def dynamic(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
    inputs: int,
) -> Tensor:
    """Whole numbers on both sides."""
    if inputs > 8 or not runs(x, mask):
        own = (words, mask, scale, zero, bits, rows, columns, inputs)
        return dynamic_linear._init_fn(x, *own)  # type: ignore[no-any-return]
    from lissom.formats.gpu.coded import Coded
    from lissom.formats.gpu.whole import whole_product

    weight = Coded(words=words, bits=bits, inputs=columns, scale=scale, zeros=zero)
    return whole_product(x, weight, 2 ** (inputs - 1) - 1)


@narrow_linear.register_kernel("cuda")
def narrow(x: Tensor, words: Tensor, mask: Tensor | None, scale: Tensor, rows: int, columns: int) -> Tensor:
    """Small floats on both sides, or on that of the weight where a GPU has no units for them."""
    if scale.shape[1] > 1 or not runs(x, mask):
        return narrow_linear._init_fn(x, words, mask, scale, rows, columns)  # type: ignore[no-any-return]
    if capability(x.device) < ADA:
        return coded_floats(x, words, scale.float(), KIND, rows, columns)
    from lissom.formats.gpu.narrow import narrow_product

    return narrow_product(x, words, scale)
