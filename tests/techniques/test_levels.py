"""Binary and ternary weights against their literal definitions, and against definitions that are wrong on purpose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Dense, Masked
from lissom.statistics import Gram
from lissom.techniques.quantize import binary as binary_file
from lissom.techniques.quantize import levels
from lissom.techniques.quantize import ternary as ternary_file
from lissom.techniques.quantize.binary import binary
from lissom.techniques.quantize.ternary import ternary

Technique = Callable[..., Any]
TECHNIQUES: dict[str, Technique] = {"binary": binary, "ternary": ternary}
O, I, GROUP, DAMP = 6, 32, 8, 0.01  # noqa: E741  the letters of the shapes


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, I, generator=generator) * torch.logspace(-0.5, 0.5, I)[torch.randperm(I, generator=generator)]
    x = x @ (torch.eye(I) + 0.3 * torch.randn(I, I, generator=generator))
    return torch.randn(O, I, generator=generator), x


def gram(x: Tensor) -> Gram:
    found = Gram.zero(x.shape[1])
    found.see(x)
    return found


def best_by_hand(w: Tensor, power: Tensor, trits: bool) -> tuple[Tensor, float]:
    """One group: every number of nonzero weights (for signs: all of them), every choice the largest; the best α."""
    w, power = w.double(), power.double()
    best: tuple[float, Tensor, float] = (torch.inf, w, 0.0)
    for count in range(1, len(w) + 1) if trits else [len(w)]:
        chosen = w.abs().argsort(descending=True)[:count]
        alpha = float((power * w.abs())[chosen].sum() / power[chosen].sum())
        levels = torch.zeros_like(w)
        levels[chosen] = torch.where(w[chosen] >= 0, 1.0, -1.0).double()
        error = float((power * (w - alpha * levels).square()).sum())
        best = min(best, (error, levels, alpha), key=lambda found: found[0])
    return best[1].float(), best[2]


def oracle(w: Tensor, x: Tensor, trits: bool, rounds: int) -> Tensor:
    """The matrix: by hand group by group, then optimal brain surgery column by column and least squares row by row."""
    h = (x.T @ x / len(x)).double()
    power, o, i = h.diagonal(), w.shape[0], w.shape[1]
    spans = [slice(first, first + GROUP) for first in range(0, i, GROUP)]
    scale, level = torch.zeros(o, i), torch.zeros(o, i)
    for row in range(o):
        for span in spans:
            level[row, span], alpha = best_by_hand(w[row, span], power[span], trits)
            scale[row, span] = torch.tensor(alpha).half().float()
    order = power.float().argsort(descending=True, stable=True).tolist()
    damped = h + DAMP * power.mean() * torch.eye(i)
    for _ in range(rounds):
        left = w.double().clone()
        for n, j in enumerate(order):
            inverse = torch.linalg.inv(damped[order[n:]][:, order[n:]])
            level[:, j] = torch.where(left[:, j] >= 0, 1.0, -1.0)
            if trits:
                level[:, j] *= left[:, j].abs() > scale[:, j] / 2
            error = (left[:, j] - level[:, j] * scale[:, j]) / inverse[0, 0]
            left[:, order[n:]] -= torch.outer(error, inverse[0])
        for row in range(o):
            said = torch.stack([x[:, span] @ level[row, span] for span in spans], 1)
            fitted = torch.linalg.lstsq(said.double(), (x @ w[row]).double()).solution
            scale[row] = fitted.half().float().repeat_interleave(GROUP)
    return level * scale


def far(found: Tensor, expected: Tensor) -> bool:
    """More than a tie that fell the other way, or a last digit of a scale."""
    return bool((found - expected).abs().gt(3e-3).float().mean() > 0.02)


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_is_its_definition(data: tuple[Tensor, Tensor], name: str, rounds: int) -> None:
    w, x = data
    found = TECHNIQUES[name](Dense(values=w), gram(x), group=GROUP, rounds=rounds, damp=DAMP).dense()
    assert not far(found, oracle(w, x, name == "ternary", rounds))


WRONG: dict[str, tuple[str, Any, str, Callable[[Any], Any]]] = {
    "no error feedback": (
        "both",
        levels,
        "sweep",
        lambda f: lambda w, h, rule, **k: f(w, torch.eye(len(h)), rule, **k),
    ),
    "damping thirty times as strong": (
        "both",
        levels,
        "sweep",
        lambda f: lambda w, h, rule, **k: f(w, h, rule, **{**k, "damp": 0.3}),
    ),
    "damping missing": ("both", levels, "sweep", lambda f: lambda w, h, rule, **k: f(w, h, rule, **{**k, "damp": 0.0})),
    "order not followed": (
        "both",
        levels,
        "sweep",
        lambda f: lambda w, h, rule, **k: f(w, h, rule, **{**k, "order": torch.arange(len(h))}),
    ),
    "scales of the wrong group": ("both", levels, "rescale", lambda f: lambda w, c, h, s: f(w, c, h, s).roll(1, 1)),
    "scales fitted without the Gram": (
        "both",
        levels,
        "rescale",
        lambda f: lambda w, c, h, s: f(w, c, torch.eye(len(h)), s),
    ),
    "scales not fitted again": ("both", levels, "rescale", lambda f: lambda w, c, h, s: s),
    "threshold at the scale": ("ternary", ternary_file, "nearest", lambda f: lambda w, s: f(w, 2 * s)),
    "threshold of zero": ("ternary", ternary_file, "nearest", lambda f: lambda w, s: f(w, 0 * s)),
    "all inputs alike": ("ternary", ternary_file, "best_scale", lambda f: lambda m, p: f(m, torch.ones_like(p))),
    "signs turned": ("binary", binary_file, "nearest", lambda f: lambda w, s: -f(w, s)),
    "group off by one": (
        "binary",
        binary_file,
        "mean_magnitude",
        lambda f: lambda w, p, k, size: f(w.roll(1, 1), p.roll(1), k, size),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_definition_catches_what_is_wrong(
    data: tuple[Tensor, Tensor], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x = data
    where, module, function, change = WRONG[wrong]
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    for name, technique in TECHNIQUES.items():
        if where in ("both", name):
            caught = [
                far(
                    technique(Dense(values=w), gram(x), group=GROUP, rounds=rounds, damp=DAMP).dense(),
                    oracle(w, x, name == "ternary", rounds),
                )
                for rounds in (0, 2)
            ]
            assert any(caught), name


@pytest.mark.parametrize("name", TECHNIQUES)
def test_refining_makes_the_output_error_smaller(data: tuple[Tensor, Tensor], name: str) -> None:
    w, x = data
    errors = [
        float((x @ (w - TECHNIQUES[name](Dense(values=w), gram(x), rounds=rounds).dense()).T).square().sum())
        for rounds in (0, 1)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_neighbours_make_good_what_was_pruned(data: tuple[Tensor, Tensor], name: str) -> None:
    w, x = data
    kept = torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    pruned = Masked.of(w, kept)
    for mask, better in ((kept, True), (~kept, False)):
        found = TECHNIQUES[name](pruned, gram(x)).dense()
        assert bool((found[~mask] == 0).all()) is better
    assert TECHNIQUES[name](pruned, gram(x)).kept().equal(kept)


def test_a_group_must_divide_the_inputs(data: tuple[Tensor, Tensor]) -> None:
    for technique in TECHNIQUES.values():
        with pytest.raises(RecipeError, match="group=24 does not divide 32 inputs; try 32"):
            technique(Dense(values=data[0]), gram(data[1]), group=24)
