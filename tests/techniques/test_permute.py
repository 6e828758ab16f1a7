"""The permutation of channels for N:M, against trying all there are."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.techniques.prune import permute as module
from lissom.techniques.prune.permute import dealt, gains, kept_score, permutation


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
    with pytest.raises(RecipeError, match=f"keep={keep}, of={of} is no pattern for 16 inputs"):
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
