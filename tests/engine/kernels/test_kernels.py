"""The kernels against the dense matrix, in the precision of the activations: bfloat16, summed in float32."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lissom.engine.kernels.int4 import int4_layer
from lissom.engine.kernels.int8 import int8_layer
from lissom.formats import Affine, CompressedLinear, wrap

Make = Callable[[], CompressedLinear]
BFLOAT16 = 2.0**-8  # half the distance of two bfloat16 numbers, relative


def layer(
    o: int, i: int, bits: int, group: int = 0, *, symmetric: bool = True, pruned: bool = False, bias: bool = False
) -> CompressedLinear:
    g = i // (group or i)
    codes = torch.randint(2**bits, (o, i), dtype=torch.uint8)
    zero = None if symmetric else torch.randint(2**bits, (o, g), dtype=torch.uint8)
    kept = torch.rand(o, i) < 0.5 if pruned else None
    weight = Affine.of(codes, 0.01 + 0.1 * torch.rand(o, g).half(), zero, bits, kept)
    wrapped = wrap(nn.Linear(i, o, bias=bias), weight)
    assert isinstance(wrapped, CompressedLinear)
    return wrapped


INT8: dict[str, Make] = {
    "plain": lambda: layer(64, 128, 8),
    "odd": lambda: layer(7, 48, 8),
    "one output": lambda: layer(1, 96, 8),
    "sixteen inputs": lambda: layer(5, 16, 8),
    "bias": lambda: layer(33, 80, 8, bias=True),
    "pruned": lambda: layer(24, 112, 8, pruned=True),
    "seven bits": lambda: layer(16, 64, 7),
    "five bits, pruned": lambda: layer(16, 64, 5, pruned=True),
}
INT4: dict[str, Make] = {
    f"{bits} bits, {'symmetric' if symmetric else 'asymmetric'}, {extra}": partial(
        layer, 48, 192, bits, 64, symmetric=symmetric, pruned=extra == "pruned", bias=extra == "bias"
    )
    for bits in (4, 3, 2)
    for symmetric in (True, False)
    for extra in ("plain", "pruned", "bias")
}
INT4 |= {
    "a group of a whole row": lambda: layer(16, 96, 4),
    "groups of 128": lambda: layer(32, 256, 4, 128),
    "groups of 512, halved": lambda: layer(16, 512, 4, 512, symmetric=False),
}


def literal(given: CompressedLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ + b in float64 with activations rounded to bfloat16, and the size of what was summed.

    A weight is summed as the distances of its code and of its zero from the middle of the codes.
    """
    weight = given.weight
    assert isinstance(weight, Affine)
    middle, wide = 2 ** (weight.bits - 1), weight.group
    zero, scale = (part.double().repeat_interleave(wide, 1) for part in (weight.zeros(), weight.scale))
    summed = ((weight.plane.codes().double() - middle).abs() + (zero - middle).abs()) * scale
    rounded = x.bfloat16().double()
    bias = 0 if given.bias is None else given.bias.detach().double()
    return rounded @ weight.dense().double().T + bias, rounded.abs() @ summed.T


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 17), (130,), ()], ids=str)
@pytest.mark.parametrize("name", INT8)
def test_int8_is_its_definition(name: str, rows: tuple[int, ...]) -> None:
    given = INT8[name]()
    kernel = int8_layer(given)
    assert kernel is not None
    x = torch.randn(*rows, given.weight.shape[1])
    expected, size = literal(given, x)
    found = kernel(x)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert ((found - expected).abs() <= 2 * BFLOAT16 * (expected.abs() + 1e-5 * size) + 1e-3).all()


@pytest.mark.parametrize("rows", [(1,), (2, 17), (130,)], ids=str)
@pytest.mark.parametrize("name", INT4)
def test_int4_is_the_grouped_product(name: str, rows: tuple[int, ...]) -> None:
    given = INT4[name]()
    kernel = int4_layer(given)
    assert kernel is not None
    x = torch.randn(*rows, given.weight.shape[1])
    expected, size = literal(given, x)
    found = kernel(x)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert ((found - expected).abs() <= 2 * BFLOAT16 * expected.abs() + BFLOAT16 * size + 1e-3).all()
    relative = (found - expected).norm() / expected.norm()
    assert relative < 0.01


@pytest.mark.parametrize(("name", "make", "kernel"), [
    *((name, make, int8_layer) for name, make in INT8.items()),
    *((name, make, int4_layer) for name, make in INT4.items()),
])  # fmt: skip
def test_a_row_does_not_depend_on_how_many_others_there_are(
    name: str, make: Make, kernel: Callable[..., nn.Module]
) -> None:
    given = make()
    lowered = kernel(given)
    x = torch.randn(70, given.weight.shape[1])
    together = lowered(x)
    for few in (1, 2, 5, 33):
        assert torch.equal(torch.cat([lowered(part) for part in x.split(few)]), together), few


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_answer_has_the_type_of_the_question(dtype: torch.dtype) -> None:
    for kernel, given in ((int8_layer, layer(16, 64, 8)), (int4_layer, layer(16, 64, 4, 32))):
        lowered = kernel(given)
        assert lowered is not None
        assert lowered(torch.randn(3, 64, dtype=dtype)).dtype == dtype


def test_a_pruned_weight_is_silent() -> None:
    codes = torch.randint(256, (16, 64), dtype=torch.uint8)
    kept = torch.ones(16, 64, dtype=torch.bool)
    kept[:, :32] = False
    x = torch.cat([torch.full((2, 32), 1e4), torch.zeros(2, 32)], dim=1)
    eight = wrap(nn.Linear(64, 16, bias=False), Affine.of(codes, torch.ones(16, 1), None, 8, kept))
    four = wrap(nn.Linear(64, 16, bias=False), Affine.of(codes % 16, torch.ones(16, 2), None, 4, kept))
    assert isinstance(eight, CompressedLinear)
    assert isinstance(four, CompressedLinear)
    for kernel in (int8_layer(eight), int4_layer(four)):
        assert kernel is not None
        assert (kernel(x) == 0).all()
