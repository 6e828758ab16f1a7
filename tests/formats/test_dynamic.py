"""Integer inputs: the literal definition, in numbers without end, and what must not pass for it."""

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Affine, Dense, Dynamic, Palette, freeze, unfreeze, wrap
from lissom.formats.dynamic import rounded, whole_product
from lissom.statistics import Moments
from lissom.techniques.quantize.dynamic import dynamic


def weight(bits: int, groups: int, symmetric: bool, pruned: bool = False, inputs: int = 8) -> Dynamic:
    codes = torch.randint(2**bits, (6, 24), dtype=torch.uint8)
    zero = None if symmetric else torch.randint(2**bits, (6, groups), dtype=torch.uint8)
    kept = torch.rand(6, 24) < 0.5 if pruned else None
    return Dynamic(affine=Affine.of(codes, 0.01 + torch.rand(6, groups).half(), zero, bits, kept), inputs=inputs)


def literal(w: Dynamic, row: list[float]) -> list[float]:
    """One row, in fractions: nothing is lost between the rounding and the end."""
    o, i = w.shape
    size = i // w.affine.scale.shape[1]
    a = max(abs(Fraction(x)) for x in row) / (2 ** (w.inputs - 1) - 1) or Fraction(1)
    q = [round(Fraction(x) / a) for x in row]
    codes, zeros, kept = w.affine.plane.codes().tolist(), w.affine.zeros().tolist(), w.kept()
    there = torch.ones(o, i).tolist() if kept is None else kept.float().tolist()
    scale = w.affine.scale.float().tolist()
    return [
        float(
            a
            * sum(
                Fraction(scale[r][j // size]) * q[j] * int(codes[r][j] - zeros[r][j // size]) * int(there[r][j])
                for j in range(i)
            )
        )
        for r in range(o)
    ]


def layer(w: Dynamic, trainable: bool = False) -> nn.Module:
    return wrap(nn.Linear(w.shape[1], w.shape[0], bias=False), w, trainable=trainable)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_products_over_one_input_are_not_left_unwritten(rows: int) -> None:
    q, c = torch.randint(-127, 128, (rows, 1)), torch.randint(-255, 256, (5, 1))
    assert torch.equal(whole_product(q.to(torch.int8), c.to(torch.int16)), (q @ c.T).float())


def test_products_are_exact_for_all_that_a_code_less_a_zero_can_be() -> None:
    q, c = torch.randint(-127, 128, (3, 511)), torch.arange(-255, 256).expand(2, -1)
    assert torch.equal(whole_product(q.to(torch.int8), c.to(torch.int16)), (q @ c.T).float())


CASES = list(itertools.product((8, 4, 3), (1, 3), (True, False), (True, False), (8, 4)))


@pytest.mark.parametrize(("bits", "groups", "symmetric", "pruned", "inputs"), CASES)
def test_a_layer_is_its_definition(bits: int, groups: int, symmetric: bool, pruned: bool, inputs: int) -> None:
    w, x = weight(bits, groups, symmetric, pruned, inputs), torch.randn(3, 24)
    wanted = torch.tensor([literal(w, row) for row in x.tolist()])
    torch.testing.assert_close(layer(w)(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(w, trainable=True)(x), wanted, rtol=1e-4, atol=1e-4)


MUTANTS: dict[str, Callable[[Tensor, Dynamic], Tensor]] = {
    "inputs as they were": lambda x, w: x @ w.dense().T,
    "one scale for all rows": lambda x, w: rounded(x.reshape(1, -1), 8).reshape(x.shape) @ w.dense().T,
    "a scale a column": lambda x, w: rounded(x.T, 8).T @ w.dense().T,
    "one bit less": lambda x, w: rounded(x, 7) @ w.dense().T,
    "the groups the other way round": lambda x, w: rounded(x, 8) @ flipped(w).dense().T,
}


def flipped(w: Dynamic) -> Affine:
    zero = None if w.affine.zero is None else w.affine.zero.codes()
    return Affine.of(w.affine.plane.codes(), w.affine.scale.flip(1), zero, w.affine.bits)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_definition_catches(mutant: str) -> None:
    w, x = weight(4, 3, True), torch.randn(3, 24) * torch.tensor([[1.0], [3.0], [0.2]])
    wanted = torch.tensor([literal(w, row) for row in x.tolist()])
    assert not torch.allclose(MUTANTS[mutant](x, w), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_rounded_stays(dtype: torch.dtype) -> None:
    x = torch.randn(50, 24).to(dtype)
    x[7] = 0
    once = rounded(x, 8)
    assert once.dtype == dtype
    torch.testing.assert_close(rounded(once, 8), once, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=0)
    assert ((once - x).abs() <= 0.51 / 127 * x.abs().amax(1, keepdim=True) + 1e-2 * x.abs()).all()


def test_a_convolution_rounds_each_example() -> None:
    conv = nn.Conv2d(3, 5, 3, bias=False)
    w = dynamic(Dense(values=conv.weight.detach().flatten(1)), Moments.blank(27))
    x = torch.randn(2, 3, 6, 6) * torch.tensor([1.0, 20.0]).reshape(2, 1, 1, 1)
    wanted = torch.cat(
        [
            conv._conv_forward(rounded(e.reshape(1, -1), 8).reshape(1, 3, 6, 6), w.dense().reshape(5, 3, 3, 3), None)
            for e in x
        ]
    )
    torch.testing.assert_close(wrap(conv, w)(x), wanted)


def test_training_reaches_weights_and_inputs_and_is_served_as_it_ends() -> None:
    model, x = nn.Sequential(layer(weight(4, 3, True), trainable=True)), torch.randn(16, 24, requires_grad=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    before = model(x).detach()
    (model(x) - 1).square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    optimizer.step()
    trained = model(x).detach()
    assert not torch.equal(trained, before)
    torch.testing.assert_close(freeze(model)(x), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unfreeze(model)(x), trained, rtol=1e-4, atol=1e-4)


def test_it_exports() -> None:
    model = nn.Sequential(layer(weight(8, 1, True))).eval()
    x = torch.randn(4, 24)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_only_integers_can_be_run_on_integers() -> None:
    palette = Palette.of(torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(1, 4).half(), 0)
    with pytest.raises(RecipeError, match="integer inputs need integer weights, not palette; put rtn or gptq before"):
        dynamic(palette, Moments.blank(8))
    with pytest.raises(RecipeError, match="bits=9 must be from 2 to 8"):
        dynamic(Dense(values=torch.randn(2, 8)), Moments.blank(8), bits=9)
    again = dynamic(dynamic(Dense(values=torch.randn(2, 8)), Moments.blank(8)), Moments.blank(8), bits=4)
    assert again.inputs == 4
