"""What every format of a weight keeps, whatever it is: its definition, its parts, its size, its rows, its trainable."""

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import (
    FORMATS,
    Affine,
    Binary,
    Dense,
    Dynamic,
    Floats,
    LowRank,
    Masked,
    Narrow,
    Palette,
    Signs,
    Sum,
    Ternary,
    Turned,
    Weight,
    Xnor,
    read_weight,
)
from lissom.formats.floats import KINDS, held, read
from lissom.formats.plane import Plane
from lissom.formats.weight import leave, stored, straight_through

Made = tuple[Weight, Tensor]
Makes = Callable[[tuple[int, int], Tensor | None, torch.Generator], Made]


def dense(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    values = torch.randn(shape, generator=random)
    return Dense(values=values), values


def dense_half(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    values = torch.randn(shape, generator=random).bfloat16()
    return Dense(values=values), values.float()


def masked(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    values = torch.randn(shape, generator=random)
    kept = torch.ones(shape, dtype=torch.bool) if kept is None else kept
    return Masked.of(values, kept), values * kept


def affine(bits: int, symmetric: bool, groups: int) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        o, i = shape
        g = groups if i % groups == 0 else 1
        codes = torch.randint(2**bits, shape, dtype=torch.uint8, generator=random)
        zero = None if symmetric else torch.randint(2**bits, (o, g), dtype=torch.uint8, generator=random)
        scale = (0.1 + torch.rand((o, g), generator=random)).half()
        weight = Affine.of(codes, scale, zero, bits, kept)
        offset = torch.full((o, g), 2.0 ** (bits - 1)) if zero is None else zero.float()
        wide = [part.float().repeat_interleave(i // g, 1) for part in (offset, scale)]
        return weight, (codes.float() - wide[0]) * wide[1] * (1 if kept is None else kept)

    return made


def stepped(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    """Scales that are whole multiples of a step of each row."""
    o, i = shape
    g = 3 if i % 3 == 0 else 1
    codes = torch.randint(64, shape, dtype=torch.uint8, generator=random)
    count = torch.randint(1, 128, (o, g), generator=random) * (torch.randint(2, (o, g), generator=random) * 2 - 1)
    step = (0.01 + torch.rand((o, 1), generator=random)).half().float()
    weight = Affine.of(codes, count * step, None, 6, kept, step)
    values = (codes.float() - 32) * (count * step).repeat_interleave(i // g, 1)
    return weight, values * (1 if kept is None else kept)


def dynamic(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    weight, values = affine(5, False, 2)(shape, kept, random)
    assert isinstance(weight, Affine)
    return Dynamic(affine=weight, inputs=8), values


def floats(kind: str) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        (o, i), form = shape, KINDS[kind]
        g = 2 if form.group and i % 2 == 0 else 1
        table = form.values()
        codes = torch.arange(len(table), dtype=torch.uint8)[table.isfinite()]
        codes = codes[torch.randint(len(codes), shape, generator=random)]
        scale = held(form, 0.5 + torch.rand((o, g), generator=random))
        whole = torch.tensor([0.37]) if form.overall else None
        weight = Floats(kind=kind, plane=Plane.of(codes, form.bits, kept), scale=scale, overall=whole)
        wide = read(scale, whole).repeat_interleave(i // g, 1)
        return weight, table[codes.int()] * wide * (1 if kept is None else kept)

    return made


def narrow(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    weight, values = floats("fp8_e4m3")(shape, kept, random)
    assert isinstance(weight, Floats)
    return Narrow(floats=weight), values


def palette(bits: int, rows: int, quantized: bool) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        o, _ = shape
        shared = rows or o
        codebook = torch.randn((-(-o // shared), 2**bits), generator=random).half()
        indices = torch.randint(2**bits, shape, dtype=torch.uint8, generator=random)
        weight = Palette.of(indices, codebook, shared, kept)
        if quantized:
            codes = torch.randint(256, codebook.shape, dtype=torch.uint8, generator=random)
            book = Affine.of(codes, torch.full((codebook.shape[0], 1), 0.01), None, 8)
            weight, codebook = Palette(plane=weight.plane, codebook=book, rows=shared), book.dense()
        entries = [[codebook[row // shared, index] for index in line] for row, line in enumerate(indices.tolist())]
        values = torch.tensor(entries, dtype=torch.float32)
        return weight, values * (1 if kept is None else kept)

    return made


def binary(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    positive = torch.rand(shape, generator=random) < 0.5
    scale = (0.1 + torch.rand((shape[0], 1), generator=random)).half()
    values = torch.where(positive, 1.0, -1.0) * scale.float()
    return Binary.of(positive, scale, kept), values * (1 if kept is None else kept)


def xnor(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    weight, values = binary(shape, kept, random)
    assert isinstance(weight, Binary)
    return Xnor(binary=weight), values


def ternary(groups: int) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        o, i = shape
        g = groups if i % groups == 0 else 1
        trits = torch.randint(3, shape, dtype=torch.uint8, generator=random)
        scale = (0.1 + torch.rand((o, g), generator=random)).half()
        values = (trits.float() - 1) * scale.float().repeat_interleave(i // g, 1)
        return Ternary.of(trits, scale, kept), values * (1 if kept is None else kept)

    return made


def signs(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
    (o, i), r = shape, 5
    left, right = torch.rand((r, o), generator=random) < 0.5, torch.rand((r, i), generator=random) < 0.5
    rows, middle, columns = ((0.5 + torch.rand(n, generator=random)).half() for n in (o, r, i))
    values = torch.zeros(shape)
    for k in range(r):
        one, other = (torch.where(part[k], 1.0, -1.0) for part in (left, right))
        values += torch.outer(rows * one, columns * other) * middle[k]
    return Signs.of(left, right, rows, middle, columns), values


def lowrank(rank: int, quantized: bool) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        (o, i), r = shape, rank
        a, b = torch.randn((o, r), generator=random), torch.randn((r, i), generator=random)
        weight = LowRank.of(a, b)
        if quantized:
            codes = torch.randint(256, (r, i), dtype=torch.uint8, generator=random)
            scale = (0.001 + 0.01 * torch.rand((r, 1), generator=random)).half()
            weight = LowRank(a=weight.a, b=Affine.of(codes, scale, None, 8))
            b = (codes.float() - 128) * scale.float()
        else:
            b = b.half().float()
        return weight, (a.half().double() @ b.double()).float()

    return made


def total(base: Makes) -> Makes:
    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        below, values = base(shape, kept, random)
        correction, more = lowrank(2, True)(shape, None, random)
        assert isinstance(correction, LowRank)
        return Sum(base=below, correction=correction), values + more

    return made


def turned(base: Makes) -> Makes:
    """Behind butterflies of the largest size; the matrix that they stand for, by the recursion of Sylvester."""

    def made(shape: tuple[int, int], kept: Tensor | None, random: torch.Generator) -> Made:
        below, values = base(shape, kept, random)
        size = shape[1] & -shape[1]
        h = torch.ones(1, 1)
        while len(h) < size:
            h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), h) / 2**0.5
        return Turned(base=below, size=size), values @ torch.block_diag(*[h] * (shape[1] // size))

    return made


MAKERS: dict[str, Makes] = {
    "dense": dense,
    "dense bfloat16": dense_half,
    "masked": masked,
    "affine 8": affine(8, True, 1),
    "affine 4 grouped": affine(4, True, 4),
    "affine 3 asymmetric": affine(3, False, 2),
    "affine 2 asymmetric": affine(2, False, 3),
    "affine 6 stepped": stepped,
    "dynamic": dynamic,
    "narrow": narrow,
    **{kind: floats(kind) for kind in KINDS},
    "palette a row": palette(2, 1, False),
    "palette three rows": palette(3, 3, False),
    "palette whole, quantized": palette(4, 0, True),
    "binary": binary,
    "xnor": xnor,
    "ternary": ternary(1),
    "ternary grouped": ternary(4),
    "signs": signs,
    "low rank": lowrank(3, False),
    "low rank, quantized": lowrank(1, True),
    "sum on affine": total(affine(4, True, 4)),
    "sum on masked": total(masked),
    "sum on dense": total(dense_half),
    "turned affine": turned(affine(4, True, 4)),
    "turned dynamic": turned(dynamic),
    "turned dense": turned(dense_half),
    "turned sum": turned(total(masked)),
}
NEVER = {"xnor", "signs"}
UNCUT = (
    NEVER,
    NEVER | {name for name in MAKERS if name.startswith(("turned", "dynamic", "narrow"))},
)  # along outputs, inputs
PRODUCTS = {
    name for name in MAKERS if name.startswith(("low rank", "sum", "turned"))
}  # their rows are sums, in any order
WEIGHTS = {
    "name": st.sampled_from(sorted(MAKERS)),
    "shape": st.tuples(st.integers(1, 7), st.integers(1, 24)),
    "density": st.sampled_from([None, 0.0, 0.3, 1.0]),
    "seed": st.integers(0, 2**16),
}


def make(name: str, shape: tuple[int, int], density: float | None, seed: int) -> Made:
    random = torch.Generator().manual_seed(seed)
    kept = None if density is None else torch.rand(shape, generator=random) < density
    return MAKERS[name](shape, kept, random)


def test_every_format_is_made_here() -> None:
    assert {make(name, (2, 4), None, 0)[0].spec()["format"] for name in MAKERS} == set(FORMATS)


@given(**WEIGHTS)
@settings(max_examples=80)
def test_the_dense_matrix_is_its_definition(
    name: str, shape: tuple[int, int], density: float | None, seed: int
) -> None:
    weight, values = make(name, shape, density, seed)
    assert weight.shape == shape
    torch.testing.assert_close(weight.dense(), values, rtol=1e-6, atol=1e-6)
    kept = weight.kept()
    if kept is not None:
        assert (weight.dense()[~kept] == 0).all()


@given(**WEIGHTS)
@settings(max_examples=80)
def test_parts_and_spec_give_the_weight_back(
    name: str, shape: tuple[int, int], density: float | None, seed: int
) -> None:
    weight, _ = make(name, shape, density, seed)
    spec = json.loads(json.dumps(weight.spec()))
    again = read_weight(spec, {part: tensor.clone() for part, tensor in weight.parts().items()})
    assert torch.equal(again.dense(), weight.dense())
    assert again.spec() == weight.spec()
    assert again.shape == shape
    assert weight.nbytes == sum(tensor.nbytes for tensor in weight.parts().values())
    assert weight.bits_per_weight == 8 * weight.nbytes / (shape[0] * shape[1])


@given(**WEIGHTS)
@settings(max_examples=60)
def test_rows_and_products_are_those_of_the_dense_matrix(
    name: str, shape: tuple[int, int], density: float | None, seed: int
) -> None:
    weight, _ = make(name, shape, density, seed)
    index = torch.tensor([0, shape[0] - 1, 0])
    rows = weight.look_up(index)
    torch.testing.assert_close(rows, weight.dense()[index], rtol=0, atol=1e-5 if name in PRODUCTS else 0)
    x = weight.activate(torch.randn(6, shape[1])).reshape(2, 3, shape[1])
    torch.testing.assert_close(weight.linear(x), x @ weight.dense().T, rtol=1e-5, atol=1e-5)


@given(**WEIGHTS)
@settings(max_examples=60)
def test_a_trainable_weight_starts_as_the_weight_and_writes_it_down(
    name: str, shape: tuple[int, int], density: float | None, seed: int
) -> None:
    weight, _ = make(name, shape, density, seed)
    trainable = weight.trainable()
    assert torch.equal(trainable(), weight.dense())
    again = trainable.weight()
    assert again.spec() == weight.spec()
    assert torch.equal(again.dense(), weight.dense())
    assert again.nbytes == weight.nbytes
    assert any(parameter.requires_grad for parameter in trainable.parameters())


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_the_parameters_and_not_the_pruned(name: str) -> None:
    weight, _ = make(name, (4, 12), 0.5, 3)
    trainable = weight.trainable()
    (trainable() * torch.randn(4, 12)).sum().backward()
    reached = [parameter for parameter in trainable.parameters() if parameter.grad is not None]
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in reached if parameter.grad is not None)
    kept = weight.kept()
    latent = getattr(trainable, "latent", None)
    if kept is not None and latent is not None:
        assert (latent.grad[~kept] == 0).all()


@given(**WEIGHTS, dim=st.sampled_from([0, 1]), share=st.integers(1, 3))
@settings(max_examples=100)
def test_a_trainable_weight_is_cut_into_pieces_of_its_matrix(
    name: str, shape: tuple[int, int], density: float | None, seed: int, dim: int, share: int
) -> None:
    trainable = make(name, shape, density, seed)[0].trainable()
    whole = trainable().detach()
    places = torch.arange(shape[dim] - max(1, shape[dim] // share), shape[dim])
    groups = [part.shape[1] for part in trainable.buffers() if part.dim() == 2]
    if name in UNCUT[dim] or (dim and any(g > 1 and len(places) % (shape[1] // g) for g in groups)):
        with pytest.raises(RecipeError, match=f"along its {('outputs', 'inputs')[dim]}|between groups of"):
            trainable.taken(dim, places)
        return
    taken = trainable.taken(dim, places)
    leave(trainable, taken)
    torch.testing.assert_close(trainable(), whole.index_select(dim, places), rtol=1e-6, atol=1e-6)


def test_scales_are_narrow_where_that_holds_them() -> None:
    assert stored(torch.tensor([1.0, 0.0, -0.5])).dtype == torch.float16
    assert stored(torch.tensor([1.0, 1e-6])).dtype == torch.float32
    assert stored(torch.tensor([1.0, 1e6])).dtype == torch.float32
    assert stored(torch.zeros(3)).dtype == torch.float16


def test_straight_through_is_the_value_with_the_gradient_of_the_latent() -> None:
    latent = torch.tensor([0.3, 1.7], requires_grad=True)
    value = straight_through(latent * 2, torch.tensor([1.0, 3.0]))
    assert value.tolist() == [1.0, 3.0]
    value.sum().backward()
    assert latent.grad is not None
    assert latent.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("floats", [torch.bfloat16, torch.float32])
def test_a_dense_matrix_is_widened_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, floats: torch.dtype) -> None:
    weight, x = Dense(values=torch.randn(11, 6).to(floats)), torch.randn(2, 3, 6)
    monkeypatch.setattr("lissom.formats.dense.WIDENED", 4 * 6)
    assert torch.allclose(weight.linear(x), x @ weight.dense().T, atol=1e-6)
    assert torch.equal(weight.look_up(torch.tensor([3, 10])), weight.dense()[[3, 10]])
