"""A turned input: the literal definition, what the steps behind it see, and what must not pass for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.errors import RecipeError
from lissom.formats import Affine, Dense, Dynamic, Sum, Turned, Weight, freeze, unfreeze
from lissom.formats.dynamic import rounded
from lissom.statistics import Fisher, Gram, Guided, Moments
from lissom.techniques.contract import apply
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.hadamard import hadamard, turned_statistic
from lissom.types import Step

INPUTS, SIZE = 48, 16


def matrix(size: int = SIZE) -> Tensor:
    """H, entry by entry: the sign is the parity of the bits that two numbers have in common."""
    signs = [[(-1) ** bin(a & b).count("1") for b in range(size)] for a in range(size)]
    return torch.block_diag(*[torch.tensor(signs).float() / size**0.5] * (INPUTS // size))


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, INPUTS, generator=generator)
    x[:, 5] *= 30  # stands out
    return x @ (torch.eye(INPUTS) + 0.1 * torch.randn(INPUTS, INPUTS, generator=generator))


def weight() -> Dense:
    return Dense(values=torch.randn(24, INPUTS, generator=torch.Generator().manual_seed(2)))


def seen(x: Tensor) -> dict[Any, Any]:
    found: dict[Any, Any] = {kind: kind.zero(INPUTS) for kind in (Moments, Gram, Guided)}
    for statistic in found.values():
        statistic.see(x)
    return found


def run(*steps: tuple[str, dict[str, Any]]) -> Weight:
    w: Weight = weight()
    for name, knobs in steps:
        w = apply(Step(technique=name, knobs=knobs), "layer", w, weight(), seen(data()))
    return w


TURN = ("hadamard", {"size": SIZE})
GPTQ = ("gptq", {"bits": 3, "group": 16})


@pytest.mark.parametrize("size", [1, 2, 16, 0])
def test_the_base_is_the_matrix_turned(size: int) -> None:
    w = hadamard(weight(), size=size)
    assert w.size == (size or 16)
    torch.testing.assert_close(w.base.dense(), weight().values @ matrix(w.size), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(w.dense(), weight().values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(w.linear(data()), data() @ weight().values.T, rtol=1e-4, atol=1e-3)


def test_what_follows_is_fitted_to_turned_inputs() -> None:
    w, x, h = run(TURN, GPTQ), data(), matrix()
    assert isinstance(w, Turned)
    assert isinstance(w.base, Affine)
    wanted = gptq(Dense(values=weight().values @ h), seen(x @ h)[Gram], **GPTQ[1])
    assert (w.base.plane.codes() == wanted.plane.codes()).float().mean() > 0.99  # sums in another order
    torch.testing.assert_close(w.base.scale, wanted.scale, rtol=1e-2, atol=1e-4)


MUTANTS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "the Gram as it was": lambda w, x, h: (w @ h, x),
    "the matrix as it was": lambda w, x, h: (w, x @ h),
    "another size": lambda w, x, h: (w @ matrix(8), x @ matrix(8)),
    "the Gram turned on one side": lambda w, x, h: (w @ h, x.abs() @ h),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_definition_catches(mutant: str) -> None:
    w = run(TURN, GPTQ)
    assert isinstance(w, Turned)
    assert isinstance(w.base, Affine)
    values, x = MUTANTS[mutant](weight().values, data(), matrix())
    wrong = gptq(Dense(values=values), seen(x)[Gram], **GPTQ[1])
    assert (w.base.plane.codes() == wrong.plane.codes()).float().mean() < 0.95


def test_inputs_are_rounded_where_they_are_turned() -> None:
    w, x, h = run(TURN, GPTQ, ("dynamic", {"bits": 4})), data()[:20], matrix()
    assert isinstance(w, Turned)
    assert isinstance(w.base, Dynamic)
    wanted = rounded(x @ h, 4) @ w.base.dense().T
    torch.testing.assert_close(w.linear(x), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(w.activate(x), rounded(x @ h, 4) @ h, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rounded(x, 4) @ w.dense().T, wanted, rtol=0.1, atol=0.1)


def test_one_feature_that_stands_out_costs_less_behind_a_turn() -> None:
    four = (("gptq", {"bits": 4, "group": 16}), ("dynamic", {"bits": 4}))
    x = data()
    errors = [
        float((w.linear(w.activate(x)) - x @ weight().values.T).square().mean()) for w in (run(TURN, *four), run(*four))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_a_correction_corrects_what_was_turned() -> None:
    w, plain = run(TURN, GPTQ, ("residual", {"rank": 24, "bits": 16})), run(TURN, GPTQ)
    assert isinstance(w, Turned)
    assert isinstance(w.base, Sum)
    assert (w.dense() - weight().values).norm() < 0.01 * (plain.dense() - weight().values).norm()


def test_statistics_are_turned_as_the_data_is() -> None:
    x, h = data(), matrix()
    found, wanted = (seen(part) for part in (x, x @ h))
    for kind in (Gram, Guided):
        turned = turned_statistic(found[kind], SIZE)
        assert type(turned) is kind
        torch.testing.assert_close(turned.xtx, wanted[kind].xtx, rtol=1e-4, atol=1.0)
        torch.testing.assert_close(turned.sum, wanted[kind].sum, rtol=1e-3, atol=0.1)
    moments: Any = turned_statistic(found[Moments], SIZE)
    torch.testing.assert_close(moments.power.sum(), wanted[Moments].power.sum(), rtol=1e-4, atol=0)
    assert (moments.largest >= wanted[Moments].largest).all()
    assert len(set(moments.power[:SIZE].tolist())) == 1
    fisher = Fisher.zero(4)
    assert turned_statistic(fisher, SIZE) is fisher


def test_a_turned_layer_trains_is_saved_and_exported(tmp_path: Path) -> None:
    steps = [{"technique": "hadamard"}, {"technique": "gptq", "bits": 4, "group": 16}, {"technique": "dynamic"}]
    model = lissom.compress_model(nn.Sequential(nn.Linear(INPUTS, 8)), data(), steps=steps)
    optimizer, before = torch.optim.Adam(model.parameters(), lr=0.01), model(data()).detach()
    x = data().requires_grad_()
    (model(x) - 1).square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    optimizer.step()
    trained = model(data()).detach()
    assert not torch.allclose(trained, before, rtol=1e-3)
    torch.testing.assert_close(freeze(model)(data()), trained, rtol=1e-3, atol=1e-2)
    again = lissom.load(lissom.save(model, tmp_path / "saved"))
    assert torch.equal(again(data()), model(data()))
    exported = torch.export.export(model.eval(), (data(),)).module()
    assert torch.equal(exported(data()), model(data()))
    torch.testing.assert_close(unfreeze(model)(data()), trained, rtol=1e-3, atol=1e-2)


def test_a_latent_weight_comes_near_the_original_that_is_turned() -> None:
    w = run(TURN, GPTQ)
    trainable, original = w.trainable(), weight().values
    trainable.near(original)
    assert torch.equal(trainable(), w.dense())
    latent: Any = trainable.get_submodule("base")
    off = latent.latent.detach() - w.base.dense() if hasattr(latent, "latent") else torch.zeros(1)
    assert off.shape[0] in (1, 24)


def test_a_convolution_says_what_it_said() -> None:
    conv, x = nn.Conv2d(4, 5, 2, bias=False), torch.randn(3, 4, 5, 5)
    turned = lissom.compress_model(nn.Sequential(conv), x, steps=[{"technique": "hadamard"}])
    torch.testing.assert_close(turned(x), conv(x), rtol=1e-4, atol=1e-4)
    steps = [{"technique": "hadamard"}, {"technique": "rtn"}, {"technique": "dynamic"}]
    near = lissom.compress_model(nn.Sequential(conv), x, steps=steps)
    torch.testing.assert_close(near(x), conv(x), rtol=0.05, atol=0.05)


def test_an_embedding_says_what_it_said() -> None:
    model, index = nn.Sequential(nn.Embedding(10, 12)), torch.arange(10)
    turned = lissom.compress_model(model, steps=[{"technique": "hadamard"}, {"technique": "rtn"}])
    torch.testing.assert_close(turned(index), model(index), rtol=0.05, atol=0.05)


def test_mistakes_are_named() -> None:
    with pytest.raises(RecipeError, match="size=12 must be a power of two that divides the 48 inputs, such as 16"):
        hadamard(weight(), size=12)
    for steps in ([GPTQ, TURN], [TURN, TURN]):
        with pytest.raises(RecipeError, match="weights cannot be turned; put hadamard before what made them"):
            run(*steps)
