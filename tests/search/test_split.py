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
    lots = split(numbers(n), ACCURACY, Budget())
    found: list[list[int]] = []
    for lot in (lots.calibration, lots.selection, lots.certification):
        assert isinstance(lot, tuple)
        assert torch.equal(lot[0].flatten().long(), lot[1])  # inputs stay with their targets
        found.append(lot[1].tolist())
    assert sorted(number for lot in found for number in lot) == list(range(n))
    assert [len(lot) for lot in found] == [n // 5, n // 2 - n // 5, n - n // 2]
    assert found[2] != sorted(found[2])


def test_the_division_is_the_same_each_time() -> None:
    one, other = (split(numbers(720), ACCURACY, Budget()).certification for _ in range(2))
    another = split(numbers(720), ACCURACY, Budget(), seed=1).certification
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
        split(torch.zeros(9, 4, dtype=torch.long), kind, budget)
    assert f"of which {fewest} certify" in str(told.value)
    assert split(torch.zeros(2 * fewest, 4, dtype=torch.long), kind, budget)
    with pytest.raises(DataError):
        split(torch.zeros(2 * fewest - 2, 4, dtype=torch.long), kind, budget)


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
