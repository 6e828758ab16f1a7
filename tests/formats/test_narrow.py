"""Small floats on both sides: the literal definition, in fractions, and what must not pass for it."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Dense, Floats, Narrow, freeze, read_weight, unfreeze, wrap
from lissom.formats.narrow import narrowed
from lissom.statistics import Moments
from lissom.techniques.quantize.dynamic import dynamic
from lissom.techniques.quantize.floats import floats


def weight(o: int = 6, i: int = 24) -> Narrow:
    made = dynamic(floats(Dense(values=torch.randn(o, i)), Moments.blank(i), kind="fp8_e4m3"), Moments.blank(i))
    assert isinstance(made, Narrow)
    return made


def nearest(x: Fraction) -> Fraction:
    """The E4M3 number nearest to x, of two the one with an even last bit, by trying all of them."""
    every = [Fraction(m, 2**9) for m in range(8)] + [
        Fraction(8 + m, 8) * Fraction(2) ** e for e in range(-6, 9) for m in range(8) if (e, m) != (8, 7)
    ]
    distances = [abs(abs(x) - one) for one in every]
    closest = [number for number, distance in enumerate(distances) if distance == min(distances)]
    found = every[next((number for number in closest if number % 2 == 0), closest[0])]
    return found if x >= 0 else -found


def literal(w: Narrow, row: list[float]) -> list[float]:
    """One row, in fractions."""
    a = max(abs(Fraction(x)) for x in row) / 448 or Fraction(1)
    q = [nearest(Fraction(x) / a) for x in row]
    return [float(a * sum(one * Fraction(v) for one, v in zip(q, line, strict=True))) for line in w.dense().tolist()]


def layer(w: Narrow, trainable: bool = False) -> nn.Module:
    return wrap(nn.Linear(w.shape[1], w.shape[0], bias=False), w, trainable=trainable)


def test_a_layer_is_its_definition() -> None:
    w, x = weight(), torch.randn(4, 24) * torch.tensor([[1.0], [1e-6], [1e6], [0.0]])
    wanted = torch.tensor([literal(w, row) for row in x.tolist()])
    for found in (layer(w)(x), layer(w, trainable=True)(x), w.linear(w.activate(x))):
        torch.testing.assert_close(
            found / x.abs().amax(1, True).clamp(min=1e-9), wanted / x.abs().amax(1, True).clamp(min=1e-9)
        )


MUTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "inputs as they were": lambda x: x,
    "one scale for all rows": lambda x: narrowed(x.reshape(1, -1)).reshape(x.shape),
    "without a scale": lambda x: x.to(torch.float8_e4m3fn).float(),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_definition_catches(mutant: str) -> None:
    w, x = weight(), torch.randn(3, 24) * torch.tensor([[1.0], [300.0], [1e-3]])
    wanted = torch.tensor([literal(w, row) for row in x.tolist()])
    assert not torch.allclose(MUTANTS[mutant](x) @ w.dense().T, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_rounded_stays(dtype: torch.dtype) -> None:
    x = torch.randn(50, 24).to(dtype)
    x[7] = 0
    once = narrowed(x)
    assert once.dtype == dtype
    torch.testing.assert_close(narrowed(once), once, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=0)
    assert ((once - x).abs() <= x.abs() / 14 + x.abs().amax(1, keepdim=True) * 2**-18).all()


def test_training_reaches_weights_and_inputs_and_is_served_as_it_ends() -> None:
    model, x = nn.Sequential(layer(weight(), trainable=True)), torch.randn(16, 24, requires_grad=True)
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


def test_it_exports_and_is_read_again() -> None:
    w = weight()
    model, x = nn.Sequential(layer(w)).eval(), torch.randn(4, 24)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
    assert torch.equal(read_weight(w.spec(), w.parts()).linear(x), w.linear(x))


def test_only_weights_of_that_kind_have_such_inputs() -> None:
    w, x = Dense(values=torch.randn(4, 32)), Moments.blank(32)
    again = weight()
    assert dynamic(again, Moments.blank(24)) is again
    with pytest.raises(RecipeError, match="bits=4: weights in fp8_e4m3 have inputs of 8 bits"):
        dynamic(floats(w, x, kind="fp8_e4m3"), x, bits=4)
    assert isinstance(floats(w, x, kind="nvfp4"), Floats)
    with pytest.raises(RecipeError, match="integer inputs need integer weights, not floats"):
        dynamic(floats(w, x, kind="nvfp4"), x)
