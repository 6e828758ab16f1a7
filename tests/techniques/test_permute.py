"""The permutation of channels for N:M, against trying all there are."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from lissom.coupling import Coupling, Reader
from lissom.errors import RecipeError
from lissom.statistics import Gram
from lissom.techniques.prune.permute import better, dealt, gains, kept_score, permutation, permute, scored

module = sys.modules[permute.__module__]


def scores(o: int, i: int, seed: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(o, i, generator=generator) ** 3 * torch.logspace(0, 2, i)


def kept_oracle(score: Tensor, order: list[int], keep: int, of: int) -> float:
    """What the pattern keeps, row by row and group by group."""
    total = 0.0
    for row in score.tolist():
        ordered = [row[j] for j in order]
        total += sum(sum(sorted(ordered[g : g + of])[-keep:]) for g in range(0, len(order), of))
    return total


@pytest.mark.parametrize("seed", range(4))
def test_it_is_nearly_the_best_of_all_permutations(seed: int) -> None:
    score = scores(3, 6, seed)
    best = max(kept_oracle(score, list(order), 1, 3) for order in permutations(range(6)))
    found = permutation(score, keep=1, of=3)
    assert kept_oracle(score, found.tolist(), 1, 3) >= 0.95 * best


def test_every_input_is_in_it_once_and_more_is_kept_than_by_dealing_than_by_leaving() -> None:
    score = scores(12, 64)
    order = permutation(score, keep=2, of=4)
    assert sorted(order.tolist()) == list(range(64))
    kept = [kept_score(score, o, keep=2, of=4) for o in (torch.arange(64), dealt(score, 4).flatten(), order)]
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] == pytest.approx(kept_oracle(score, order.tolist(), 2, 4))


def test_a_gain_is_what_the_group_keeps_more() -> None:
    score = scores(5, 12)
    groups = torch.arange(12).reshape(3, 4)
    gain = gains(score, groups[:, 0], groups[:, 1:], 2)
    for c in range(3):
        for g in range(3):
            others = groups[g, 1:].tolist()
            less = sum(sum(sorted(row[j] for j in others)[-2:]) for row in score.tolist())
            more = kept_oracle(score[:, [4 * c, *others]], [0, 1, 2, 3], 2, 4)
            assert gain[c, g].item() == pytest.approx(more - less, rel=1e-4, abs=1e-4)


def test_more_rounds_never_keep_less() -> None:
    score = scores(8, 48)
    kept = [kept_score(score, permutation(score, rounds=rounds)) for rounds in range(5)]
    assert kept == sorted(kept)


def test_the_result_is_deterministic_and_the_scores_untouched() -> None:
    score = scores(6, 32)
    before = score.clone()
    assert torch.equal(permutation(score), permutation(score))
    assert torch.equal(score, before)


@pytest.mark.parametrize(("keep", "of"), [(2, 5), (4, 4), (0, 4)])
def test_a_pattern_that_does_not_fit_is_named(keep: int, of: int) -> None:
    with pytest.raises(RecipeError, match=f"keep={keep}, of={of} is no pattern|of=5 does not divide 16 inputs"):
        permutation(scores(2, 16), keep=keep, of=of)


@pytest.mark.parametrize("mutant", ["for the least", "the other way round", "the bar of one too many"])
def test_a_wrong_assignment_keeps_less(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    score = scores(12, 64)
    right = kept_score(score, permutation(score))
    wrong = {
        "for the least": lambda *given: -gains(*given),
        "the other way round": lambda *given: gains(*given).T,
        "the bar of one too many": lambda score, channels, others, keep: gains(score, channels, others, keep + 1),
    }
    monkeypatch.setattr(module, "gains", wrong[mutant])
    assert kept_score(score, permutation(score)) < right


C = 8  # channels, of which two of four are kept


def seen(x: Tensor) -> Gram:
    gram = Gram.zero(x.shape[1])
    gram.see(x)
    return gram


def case() -> tuple[Coupling, list[Tensor]]:
    """Two readers: one of the channels alone, one that reads them twice, and four columns of something else."""
    generator = torch.Generator().manual_seed(28)

    def sized(o: int, i: int) -> Tensor:
        return torch.randn(o, i, generator=generator) * torch.logspace(1, -1, i)

    xs = [sized(40, n) for n in (C, 2 * C + 4)]
    xs = [x[:, torch.randperm(x.shape[1], generator=generator)] for x in xs]
    twice = torch.cat(
        [torch.stack([torch.arange(C), C + torch.arange(C)], 1).flatten(), torch.arange(2 * C, 2 * C + 4)]
    )
    readers = (Reader(matrix=sized(3, C)), Reader(matrix=sized(5, 2 * C + 4)[:, twice], others=4, at=twice))
    makers = (torch.arange(C * 3.0).reshape(C, 3), torch.arange(C * 1.0).reshape(C, 1))
    return Coupling(channels=C, makers=makers, readers=readers), [xs[0], xs[1][:, twice]]


def kept_literally(c: Coupling, xs: list[Tensor], order: list[int]) -> float:
    """RIA's score of what the pattern keeps of all readers, weight by weight, in the layers' own order of columns."""
    total = 0.0
    for r, x in zip(c.readers, xs, strict=True):
        own = r.matrix.shape[1] - r.others
        k = own // C
        columns = [order[j // k] * k + j % k for j in range(own)] + list(range(own, own + r.others))
        w, x, at = r.matrix[:, columns].abs(), x[:, columns], range(own) if r.at is None else r.at.tolist()
        row = [[0.0] * w.shape[1] for _ in w]
        for a in range(len(w)):
            for b in range(w.shape[1]):
                share = w[a, b] / w[:, b].sum() + w[a, b] / w[a].sum()
                row[a][[*at, *range(own, own + r.others)][b]] = float(share * x[:, b].square().sum() ** 0.25)
        scale = len(x) ** -0.25  # a Gram is a mean
        total += sum(scale * sum(sorted(s[g : g + 4])[-2:]) for s in row for g in range(0, own, 4))
    return total


def test_it_is_the_best_of_all_orders_there_are() -> None:
    c, xs = case()
    after = permute(c, tuple(seen(x) for x in xs))
    assert after.alive is not None
    ways = [[0, *three] for three in combinations(range(1, C), 3)]
    kept = [kept_literally(c, xs, [*way, *(j for j in range(C) if j not in way)]) for way in ways]
    found = kept_literally(c, xs, after.alive.tolist())
    assert found == pytest.approx(max(kept), rel=1e-5)
    assert found > 1.02 * kept_literally(c, xs, list(range(C)))
    score = torch.cat([s for r, x in zip(c.readers, xs, strict=True) for s in scored(r, seen(x), C, C, 2, 4, 0.5)])
    assert kept_score(score, after.alive) == pytest.approx(found, rel=1e-4)


def test_makers_and_readers_are_put_into_the_order() -> None:
    c, xs = case()
    after = permute(c, tuple(seen(x) for x in xs))
    assert after.alive is not None
    order = after.alive.tolist()
    assert sorted(order) == list(range(C)) != order
    assert after.makers[1].flatten().tolist() == order
    assert torch.equal(after.makers[0], c.makers[0][order])
    assert torch.equal(after.readers[0].matrix, c.readers[0].matrix[:, order])
    twice = c.readers[1].matrix[:, :-4].unflatten(1, (C, 2))[:, order].flatten(1)
    assert torch.equal(after.readers[1].matrix, torch.cat([twice, c.readers[1].matrix[:, -4:]], 1))


def test_values_stay_in_their_head() -> None:
    c, xs = case()
    heads = replace(c, unit=4, rotates=True, readers=c.readers[:1])
    alone = permute(heads, (seen(xs[0]),)).alive
    assert alone is not None
    assert alone.tolist() == list(range(C))  # one group a head: nothing to be gained
    after = permute(heads, (seen(xs[0]),), keep=1, of=2).alive
    assert after is not None
    assert after.tolist() != list(range(C))
    assert [sorted(part) for part in (after.tolist()[:4], after.tolist()[4:])] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_groups_that_hold_more_than_these_channels_have_no_say() -> None:
    matrix = torch.randn(4, C * 3)
    pixels = Coupling(channels=C, makers=(), readers=(Reader(matrix=matrix),))
    assert permute(pixels, (Gram.blank(C * 3),)) is pixels
    shifted = Reader(matrix=torch.randn(4, C + 4), others=4, at=torch.cat([torch.arange(2, 2 + C), torch.arange(4)]))
    assert permute(replace(pixels, readers=(shifted,)), (Gram.blank(C + 4),)).alive is None
    with pytest.raises(RecipeError, match="of=5 does not divide 24 inputs"):
        permute(pixels, (Gram.blank(C * 3),), of=5)


@pytest.mark.parametrize("seed", range(6))
def test_never_is_less_kept_than_at_first(seed: int) -> None:
    score = scores(3, 8, seed)
    first = permutation(score)
    assert better(score[:, first], 2, 4, 0).tolist() == list(range(8))
    assert kept_score(score, better(score, 2, 4, 0)) >= kept_score(score, torch.arange(8))


MUTANTS: dict[str, tuple[str, Callable[..., object]]] = {
    "no statistics": ("scored", lambda r, x, *rest: scored(r, Gram.blank(len(x.xtx)), *rest)),
    "the norm not rooted": ("scored", lambda *given: scored(*given[:-1], 4 * given[-1])),
    "inputs of the neighbour": ("scored", lambda r, x, *rest: scored(r, Gram(x.n, x.xtx.roll(1, 0), x.sum), *rest)),
    "only the magnitude": ("relative_importance", lambda w: w.abs()),
    "the second time forgotten": ("scored", lambda *given: list(scored(*given))[:1]),
    "only the other reader": ("scored", lambda r, *rest: scored(r, *rest) if r.others else []),
    "the order turned round": ("better", lambda *given: better(*given).argsort()),
    "as it was": ("better", lambda score, *rest: torch.arange(score.shape[1])),
    "groups strided": ("better", lambda *given: better(*given).reshape(2, 4).T.flatten()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_catches(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c, xs = case()
    right = permute(c, tuple(seen(x) for x in xs)).alive
    monkeypatch.setattr(module, *MUTANTS[mutant])
    wrong = permute(c, tuple(seen(x) for x in xs)).alive
    assert right is not None
    assert wrong is not None
    assert kept_literally(c, xs, wrong.tolist()) < 0.9999 * kept_literally(c, xs, right.tolist())
