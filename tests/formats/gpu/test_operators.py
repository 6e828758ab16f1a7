"""What operators do on a GPU against the same product of the dense matrix in double precision: any shape, any group.

On a CPU the kernels run in Triton's interpreter. With a GPU the very same tests run there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.formats import Affine, Binary, Dynamic, Floats, Narrow, Palette, Weight, freeze, kernel_of, wrap
from lissom.formats.floats import KINDS, held
from lissom.formats.gpu import operators
from lissom.formats.plane import Plane

pytest.importorskip("triton", "3.7", reason="needs triton, which PyTorch for CUDA brings along")
PLACE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
Draw = torch.Generator


def integers(bits: int, zeros: bool) -> Callable[[int, int, int, Draw], Affine]:
    def made(o: int, g: int, size: int, draw: Draw) -> Affine:
        codes = torch.randint(2**bits, (o, g * size), dtype=torch.uint8, generator=draw)
        zero = torch.randint(2**bits, (o, g), dtype=torch.uint8, generator=draw) if zeros else None
        return Affine.of(codes, 0.1 + torch.rand(o, g, generator=draw), zero, bits)

    return made


def book(rows: int, scaled: bool) -> Callable[[int, int, int, Draw], Palette]:
    def made(o: int, g: int, size: int, draw: Draw) -> Palette:
        indices = torch.randint(16, (o, g * size), dtype=torch.uint8, generator=draw)
        scale = 0.1 + torch.rand(o, g, generator=draw) if scaled else None
        return Palette.of(indices, torch.randn(-(-o // rows), 16, generator=draw), rows, scale=scale)

    return made


def signs(o: int, g: int, size: int, draw: Draw) -> Binary:
    return Binary.of(torch.rand(o, g * size, generator=draw) < 0.5, 0.1 + torch.rand(o, g, generator=draw))


def small(kind: str) -> Callable[[int, int, int, Draw], Floats]:
    def made(o: int, g: int, size: int, draw: Draw) -> Floats:
        form = KINDS[kind]
        g, size = (g, size) if form.group else (1, g * size)
        there = torch.arange(len(form.values()))[form.values().isfinite()].to(torch.uint8)
        codes = there[torch.randint(len(there), (o, g * size), generator=draw)]
        scale = held(form, (0.5 + torch.rand(o, g, generator=draw)) / form.largest)
        whole = torch.tensor([0.37]) if form.overall else None
        return Floats(kind=kind, plane=Plane.of(codes, form.bits), scale=scale, overall=whole)

    return made


CODED: dict[str, Callable[[int, int, int, Draw], Weight]] = {
    **{f"int{bits}": integers(bits, False) for bits in (2, 4, 7)},
    **{f"int{bits}, zeros": integers(bits, True) for bits in (3, 4, 8)},
    "a book a row": book(1, False),
    "a book for three rows, scaled": book(3, True),
    "signs": signs,
    **{kind: small(kind) for kind in KINDS},
}
SIZES = {"o": st.integers(1, 70), "g": st.integers(1, 3), "size": st.sampled_from([1, 5, 8, 16, 30, 32, 64, 128, 200])}
SEEDS = {"seed": st.integers(0, 2**16), "rows": st.sampled_from([0, 1, 3, 17, 70])}
FEW = settings(max_examples=3, phases=[Phase.generate])


def there(weight: Any) -> Any:
    """The weight where kernels run."""
    return type(weight).of_parts(weight.spec(), {name: part.to(PLACE) for name, part in weight.parts().items()})


def on_gpu(weight: Any, x: Tensor) -> Tensor:
    """What its operator does on CUDA, wherever the tensors are."""
    operator: Any = {
        Affine: operators.affine,
        Binary: operators.binary,
        Floats: operators.floats,
        Palette: operators.palette,
        Dynamic: operators.dynamic,
        Narrow: operators.narrow,
    }[type(weight)]
    match weight:
        case Affine():
            return operator(x, *weight.flat())
        case Binary():
            return operator(x, weight.plane.words, weight.plane.mask, weight.scale, *weight.shape)
        case Palette():
            return operator(x, *weight._flat(), weight.scale, weight.width)
        case Dynamic():
            return operator(x, *weight.affine.flat(), weight.inputs)
        case Narrow():
            return operator(x, weight.floats.plane.words, None, weight.floats.scale, *weight.shape)
        case _:
            return operator(x, *weight._flat())


def product(weight: Weight, x: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ, and the sum of the magnitudes, which bounds how far rounding can take it."""
    w = weight.dense().double()
    return x.double() @ w.T, x.double().abs() @ w.abs().T


def near(found: Tensor, weight: Weight, x: Tensor, dtype: torch.dtype) -> bool:
    """Weights and results are rounded once each; to bfloat16 the interpreter does not round, it cuts."""
    wanted, most = product(weight, x)
    cut = 2 if PLACE == "cpu" and dtype == torch.bfloat16 else 1
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return bool(((found.double() - wanted).abs() <= 2.1 * cut * ROUNDING[dtype] * most + least).all())


@pytest.mark.parametrize("name", CODED)
@given(**SIZES, **SEEDS, dtype=st.sampled_from(list(ROUNDING)))
@FEW
def test_codes_are_multiplied_as_their_matrix(
    name: str, o: int, g: int, size: int, seed: int, rows: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = there(CODED[name](o, g, size, draw))
    x = torch.randn(rows, weight.shape[1], generator=draw).to(PLACE, dtype)
    found = on_gpu(weight, x)
    assert (found.dtype, found.shape) == (dtype, (rows, o))
    assert near(found, weight, x, dtype)
    assert kernel_of(weight) == "coded"


@given(**SIZES, **SEEDS, bits=st.sampled_from([3, 4, 8]), zeros=st.booleans(), inputs=st.sampled_from([4, 8]))
@FEW
def test_whole_numbers_are_multiplied_as_defined(
    o: int, g: int, size: int, seed: int, rows: int, bits: int, zeros: bool, inputs: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    affine = integers(bits, zeros)(o, g, size, draw)
    x = torch.randn(rows, affine.shape[1], generator=draw) * torch.logspace(-3, 3, max(rows, 1))[:rows, None]
    weight = Dynamic(affine=affine, inputs=inputs)
    wanted, found = weight.linear(x), on_gpu(there(weight), x.to(PLACE)).cpu()
    bound = 2e-6 * product(affine, weight.activate(x))[1].float() + 1e-30
    assert ((found - wanted).abs() <= bound).all()
    assert kernel_of(weight) == "whole"


@given(o=SIZES["o"], i=st.integers(1, 300), **SEEDS, dtype=st.sampled_from(list(ROUNDING)))
@FEW
def test_small_floats_are_multiplied_as_defined(o: int, i: int, seed: int, rows: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = there(Narrow(floats=small("fp8_e4m3")(o, 1, i, draw)))
    x = torch.randn(rows, i, generator=draw) * torch.logspace(-2, 2, max(rows, 1))[:rows, None]
    found = on_gpu(weight, x.to(PLACE, dtype))
    given = weight.activate(x.to(PLACE, dtype).float())
    assert found.dtype == dtype
    assert near(found, weight, given, torch.float32 if dtype == torch.float32 else torch.bfloat16)
    assert kernel_of(weight) == "narrow"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_become_the_very_numbers_of_the_definition(dtype: torch.dtype) -> None:
    from lissom.formats.dynamic import integers as defined
    from lissom.formats.gpu.narrow import small_rows
    from lissom.formats.gpu.whole import whole_rows

    x = (torch.randn(6, 1500) * torch.logspace(-20, 20, 6)[:, None]).to(PLACE, dtype)
    x[3], x[4, :9] = 0, x[4].abs().amax() * torch.arange(9, device=PLACE) / 254  # halves, which go to the even one
    for levels, bits in ((127, 8), (7, 4)):
        q, a = whole_rows(x, levels)
        wanted, unit = defined(x, bits)
        assert torch.equal(q.float(), wanted)
        assert torch.equal(a, unit[:, 0])
    small_q, a = small_rows(x)
    unit = torch.where(x.float().abs().amax(1) > 0, x.float().abs().amax(1) / 448, 1.0)
    assert torch.equal(a, unit)
    assert torch.equal(small_q.float(), (x.float() / unit[:, None]).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("busy", [1, 1000])
def test_sums_in_parts_are_the_same_sums(busy: int) -> None:
    from lissom.formats.gpu.coded import Coded
    from lissom.formats.gpu.coded import product as coded
    from lissom.formats.gpu.narrow import narrow_product
    from lissom.formats.gpu.whole import whole_product

    draw = torch.Generator().manual_seed(0)
    weight: Any = there(integers(4, True)(40, 3, 160, draw))
    x = torch.randn(5, 480, generator=draw).to(PLACE)
    words, _, scale, zeros, *_ = weight.flat()
    given = Coded(words=words, bits=4, inputs=480, scale=scale, zeros=zeros)
    assert near(coded(x, given, busy=busy), weight, x, torch.float32)
    by_whole = whole_product(x, given, 127, busy=busy)
    torch.testing.assert_close(by_whole, Dynamic(affine=weight, inputs=8).linear(x), rtol=1e-5, atol=1e-4)
    floats: Any = there(small("fp8_e4m3")(40, 1, 480, draw))
    by_small = narrow_product(x, floats.plane.words, floats.scale, busy=busy)
    torch.testing.assert_close(by_small, Narrow(floats=floats).linear(x), rtol=1e-4, atol=1e-4)


def test_what_has_no_kernel_is_its_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    codes, kept = torch.randint(16, (6, 24), dtype=torch.uint8, generator=draw), torch.rand(6, 24) < 0.5
    pairs = Palette.of(codes[:, :12], torch.randn(1, 32, generator=draw), 6, width=2)
    pruned = Affine.of(codes, torch.rand(6, 3, generator=draw), None, 4, kept)
    wide = Dynamic(affine=integers(4, False)(6, 3, 8, draw), inputs=12)
    x = torch.randn(3, 24, generator=draw)
    for weight in (pairs, pruned, wide, Dynamic(affine=pruned, inputs=8)):
        torch.testing.assert_close(on_gpu(there(weight), x.to(PLACE)).cpu(), weight.linear(x))
    for weight in (pairs, pruned, Dynamic(affine=pruned, inputs=8)):
        assert kernel_of(weight) is None
    double = integers(4, False)(6, 3, 8, draw)
    assert torch.equal(on_gpu(double, x.double()), double.linear(x.double()))


def test_without_units_for_small_floats_the_weight_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "capability", lambda _: (8, 0))
    draw = torch.Generator().manual_seed(0)
    weight = there(Narrow(floats=small("fp8_e4m3")(7, 1, 50, draw)))
    x = weight.activate(torch.randn(3, 50, generator=draw).to(PLACE))
    assert near(on_gpu(weight, x), weight, x, torch.float32)


@pytest.mark.parametrize("name", ["affine", "binary", "dynamic", "floats", "narrow", "palette"])
def test_tensors_on_a_gpu_come_here(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lissom::{name}_linear", "CUDA")


@pytest.mark.skipif(PLACE == "cpu", reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ["int4, zeros", "a book a row", "fp8_e4m3", "nvfp4"])
def test_a_layer_on_a_gpu_says_what_it_says_on_a_cpu(name: str) -> None:
    layer = wrap(nn.Linear(128, 64), CODED[name](64, 1, 128, torch.Generator().manual_seed(0)))
    x = torch.randn(5, 128)
    torch.testing.assert_close(freeze(layer).cuda()(x.cuda()).cpu(), layer.cpu()(x), rtol=1e-4, atol=1e-4)
