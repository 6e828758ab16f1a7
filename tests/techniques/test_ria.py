"""RIA against its definition in loops, and wrong variants of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lissom.formats import Dense, Masked
from lissom.statistics import Moments
from lissom.techniques.prune.ria import ria


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(6, 16, generator=generator) * torch.logspace(-1, 1, 6)[:, None] * torch.logspace(1, -1, 16)
    return w, torch.randn(40, 16, generator=generator) * torch.logspace(-1, 1, 16).flip(0)


def moments(x: Tensor) -> Moments:
    statistic = Moments.zero(x.shape[1])
    statistic.see(x)
    return statistic


def score_oracle(w: Tensor, x: Tensor) -> list[list[float]]:
    """The definition, weight by weight."""
    o, i = w.shape
    scores = []
    for a in range(o):
        row = []
        for b in range(i):
            size = abs(w[a, b].item())
            column, across = sum(abs(w[k, b].item()) for k in range(o)), sum(abs(w[a, k].item()) for k in range(i))
            relative = size / column + size / across if size else 0.0
            row.append(relative * sum(v.item() ** 2 for v in x[:, b]) ** 0.25)
        scores.append(row)
    return scores


def kept_oracle(w: Tensor, x: Tensor, keep: int, of: int) -> list[list[bool]]:
    kept = []
    for row in score_oracle(w, x):
        best = [sorted(range(g, g + of), key=lambda j, row=row: -row[j])[:keep] for g in range(0, len(row), of)]
        kept.append([any(j in group for group in best) for j in range(len(row))])
    return kept


@pytest.mark.parametrize(("knobs", "pattern"), [({"keep": 2, "of": 4}, (2, 4)), ({"sparsity": 0.5}, (8, 16))])
def test_ria_is_its_definition(knobs: dict[str, float], pattern: tuple[int, int]) -> None:
    w, x = problem()
    result = ria(Dense(values=w), moments(x), **knobs)  # type: ignore[arg-type]
    kept = result.kept()
    assert kept is not None
    assert kept.tolist() == kept_oracle(w, x, *pattern)
    assert torch.equal(result.dense(), w * kept)


def test_columns_and_rows_of_zeros_are_no_trouble() -> None:
    w, x = problem()
    w[:, 3] = 0
    w[2] = 0
    x[:, 5] = 0
    assert ria(Dense(values=w), moments(x)).dense().isfinite().all()


def test_sums_are_of_what_earlier_steps_kept() -> None:
    w, x = problem()
    pruned = Masked.of(w, torch.arange(16).expand(6, 16) % 4 != 1)
    kept = ria(pruned, moments(x), sparsity=0.5).kept()
    assert kept is not None
    assert not kept[:, 1::4].any()
    assert (kept.sum(1) == 8).all()
    assert kept.tolist() == kept_oracle(pruned.dense(), x, 8, 16)


MUTANTS: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "only the row's share": lambda w, x: ria(Dense(values=w / w.abs().sum(1, keepdim=True)), moments(x)).kept(),
    "the norm not rooted": lambda w, x: ria(Dense(values=w), moments(x), power=1.0).kept(),
    "no norm": lambda w, x: ria(Dense(values=w), moments(x), power=0.0).kept(),
    "inputs of the neighbour": lambda w, x: ria(Dense(values=w), moments(x.roll(1, 1))).kept(),
    "mask inverted": lambda w, x: ~ria(Dense(values=w), moments(x)).kept(),  # type: ignore[operator]
    "a pattern instead of rows": lambda w, x: ria(Dense(values=w), moments(x), keep=2, of=4).kept(),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_catches(mutant: str) -> None:
    w, x = problem()
    kept = MUTANTS[mutant](w, x)
    assert kept is not None
    assert kept.tolist() != kept_oracle(w, x, 8, 16)
