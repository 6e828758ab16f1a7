"""Examples are divided so that what certifies was never looked at before."""

from typing import Any

import pytest
import torch

from lissom.errors import DataError
from lissom.evaluate import metric
from lissom.search.split import joined, split
from lissom.types import Budget

ACCURACY, PERPLEXITY = metric("accuracy"), metric("perplexity")


def numbers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(float(n)).unsqueeze(1), torch.arange(n)


@pytest.mark.parametrize("n", [720, 1001])
def test_the_lots_are_all_the_examples_and_have_none_in_common(n: int) -> None:
    lots = split(numbers(n), {ACCURACY: Budget()})
    found: list[list[int]] = []
    for lot in (lots.calibration, lots.selection, lots.certification):
        assert isinstance(lot, tuple)
        assert torch.equal(lot[0].flatten().long(), lot[1])  # inputs stay with their targets
        found.append(lot[1].tolist())
    assert sorted(number for lot in found for number in lot) == list(range(n))
    assert [len(lot) for lot in found] == [n // 5, n // 2 - n // 5, n - n // 2]
    assert found[2] != sorted(found[2])


def test_the_division_is_the_same_each_time() -> None:
    one, other = (split(numbers(720), {ACCURACY: Budget()}).certification for _ in range(2))
    another = split(numbers(720), {ACCURACY: Budget()}, seed=1).certification
    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    assert isinstance(another, tuple)
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[1], another[1])


@pytest.mark.parametrize("budget", [Budget(), Budget(max_drop=0.05), Budget(confidence=0.99)], ids=str)
@pytest.mark.parametrize("kind", [ACCURACY, PERPLEXITY], ids=lambda kind: kind.name)
def test_too_few_examples_say_how_many_are_needed(kind: Any, budget: Budget) -> None:
    fewest = kind.fewest_examples(budget)
    with pytest.raises(
        DataError, match=f"data: 9 examples are too few .* at least {2 * fewest} are needed, of"
    ) as told:
        split(torch.zeros(9, 4, dtype=torch.long), {kind: budget})
    assert f"of which {fewest} certify" in str(told.value)
    assert split(torch.zeros(2 * fewest, 4, dtype=torch.long), {kind: budget})
    with pytest.raises(DataError):
        split(torch.zeros(2 * fewest - 2, 4, dtype=torch.long), {kind: budget})


def test_clusters_stay_whole_and_side_by_side() -> None:
    """In lots of nearly the sizes they have else; and what certifies comes with its labels."""
    clusters = torch.arange(2000).repeat_interleave(3).flip(0)[torch.randperm(6000)] * 7 - 3
    lots = split(numbers(6000), {ACCURACY: Budget()}, clusters=clusters)
    found = []
    for lot in (lots.calibration, lots.selection, lots.certification):
        assert isinstance(lot, tuple)
        labels = clusters[lot[1]]
        assert len(labels.unique_consecutive()) == len(labels.unique()) == len(labels) / 3
        found.append(set(labels.tolist()))
    assert not found[0] & found[1] | found[1] & found[2] | found[0] & found[2]
    assert [abs(len(lot) - share) <= 1 for lot, share in zip(found, (400, 600, 1000), strict=True)] == [True] * 3
    assert isinstance(lots.certification, tuple)
    assert lots.clusters is not None
    assert torch.equal(lots.clusters, clusters[lots.certification[1]])
    assert lots.clusters.tolist() != sorted(lots.clusters.tolist())


def test_what_is_scored_may_be_of_another_kind() -> None:
    text, asked = torch.arange(50).reshape(10, 5), numbers(800)
    lots = split(text, {ACCURACY: Budget()}, examples=asked)
    assert isinstance(lots.calibration, torch.Tensor)
    assert isinstance(lots.outputs, torch.Tensor)
    assert (len(lots.calibration), len(lots.outputs)) == (4, 6)
    assert sorted(torch.cat([lots.calibration, lots.outputs])[:, 0].tolist()) == list(range(0, 50, 5))
    assert isinstance(lots.selection, tuple)
    assert isinstance(lots.certification, tuple)
    assert [len(lots.selection[1]), len(lots.certification[1])] == [300, 500]
    assert sorted(torch.cat([lots.selection[1], lots.certification[1]]).tolist()) == list(range(800))
    with pytest.raises(DataError, match="1 examples are too few to divide among 2 lots"):
        split(text[:1], {ACCURACY: Budget()}, examples=asked)


def test_batches_of_every_shape_are_joined() -> None:
    x, y = numbers(10)
    assert torch.equal(joined([x[:4], x[4:]]), x)  # type: ignore[arg-type]
    pair = joined([(x[:4], y[:4]), [x[4:], y[4:]]])
    assert isinstance(pair, tuple)
    assert torch.equal(pair[1], y)
    named = joined([{"x": x[:4], "labels": y[:4]}, {"x": x[4:], "labels": y[4:]}])
    assert isinstance(named, dict)
    assert torch.equal(named["labels"], y)


def test_no_examples_are_named() -> None:
    with pytest.raises(DataError, match="no examples are in it"):
        joined([])
