"""What is learned from at which step."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from lissom.errors import DataError
from lissom.recover.feed import Batches, Examples, Lot, counted, feed

N, BATCH = 41, 6


def numbers(fed: Examples, first: int, steps: int) -> list[list[int]]:
    return [lot.numbers.tolist() for lot in islice(fed.lots(first), steps) if lot.numbers is not None]


def examples(seed: int = 0, split: int = 0) -> Examples:
    made = feed((torch.arange(N), torch.arange(N) * 2), batch=BATCH, held=0.2, seed=seed, split=split)
    assert isinstance(made, Examples)
    return made


def test_every_pass_has_every_example_once_and_none_that_is_held_out() -> None:
    fed = examples()
    held = [number for lot in fed.held for number in lot.numbers.tolist()]  # type: ignore[union-attr]
    assert len(held) == round(0.2 * N)
    assert fed.steps == (N - len(held)) // BATCH
    for epoch in range(3):
        seen = [number for step in numbers(fed, epoch * fed.steps, fed.steps) for number in step]
        assert len(set(seen)) == len(seen) == fed.steps * BATCH
        assert not {*seen} & {*held}
    for lot in islice(fed.lots(0), 4):
        assert isinstance(lot.batch, tuple)
        assert torch.equal(lot.batch[0], lot.numbers)
        assert torch.equal(lot.batch[1], 2 * lot.batch[0])


def test_who_goes_on_later_learns_the_same() -> None:
    whole = numbers(examples(), 0, 17)
    for first in (1, 5, 11):
        assert numbers(examples(), first, 17 - first) == whole[first:]


def test_a_seed_is_an_order_and_a_split_is_what_is_held_out() -> None:
    first, other, apart = examples(), examples(seed=1), examples(split=1)
    assert torch.equal(first.held[0].numbers, other.held[0].numbers)  # type: ignore[arg-type]
    assert numbers(first, 0, 5) != numbers(other, 0, 5)
    assert not torch.equal(first.held[0].numbers, apart.held[0].numbers)  # type: ignore[arg-type]


def test_processes_share_a_batch() -> None:
    for lot in islice(examples().lots(0), 3):
        shares = [lot.share(rank, 4) for rank in range(4)]
        joined = torch.cat([share.numbers for share in shares])  # type: ignore[misc]
        assert sorted(joined.tolist()) == sorted(lot.numbers.tolist())  # type: ignore[union-attr]


def test_parts_are_as_equal_as_they_can_be() -> None:
    lot = Lot(torch.arange(7), torch.arange(7))
    assert [len(part.batch) for part in lot.parts(3)] == [2, 2, 3]
    assert [len(part.batch) for part in lot.parts(9)] == [1] * 7
    assert torch.equal(torch.cat([part.batch for part in lot.parts(3)]), torch.arange(7))  # type: ignore[misc]


def test_data_of_its_own_is_judged_by() -> None:
    fed = feed(torch.arange(10), batch=5, held=torch.arange(100, 103))
    assert [lot.batch.tolist() for lot in fed.held] == [[100, 101, 102]]  # type: ignore[union-attr]
    assert sorted(next(fed.lots(0)).batch.tolist() + list(islice(fed.lots(0), 2))[1].batch.tolist()) == [*range(10)]  # type: ignore[union-attr]
    assert isinstance(fed, Examples)
    assert [lot.batch.tolist() for lot in fed.chunks(6)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 100, 101], [102]]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="shape of the data"):
        feed(torch.arange(10), held=torch.zeros(3, 2))


def test_batches_come_in_their_own_order() -> None:
    data = [torch.full((3,), value) for value in range(5)]
    fed = feed(data, held=0.2)
    assert [lot.batch[0].item() for lot in fed.held] == [0]  # type: ignore[index]
    assert fed.steps == 4
    assert [lot.batch[0].item() for lot in islice(fed.lots(0), 6)] == [1, 2, 3, 4, 1, 2]  # type: ignore[index]
    assert [lot.batch[0].item() for lot in islice(fed.lots(5), 2)] == [2, 3]  # type: ignore[index]


def test_a_stream_is_read_once_and_its_end_is_told() -> None:
    def stream() -> Iterator[Tensor]:
        yield from (torch.full((2,), value) for value in range(3))

    fed = feed(stream())
    assert isinstance(fed, Batches)
    assert fed.steps is None
    lots = fed.lots(0)
    assert [next(lots).batch[0].item() for _ in range(2)] == [1, 2]  # type: ignore[index]
    with pytest.raises(DataError, match="come to its end"):
        next(lots)


@pytest.mark.parametrize("data", [torch.arange(1), [torch.arange(4)][:0]])
def test_too_little_is_refused(data: object) -> None:
    with pytest.raises(DataError, match=r"too few|nothing is there"):
        feed(data)


def test_tokens_are_counted_of_windows_and_examples_of_others() -> None:
    assert counted(torch.zeros(3, 7, dtype=torch.int32)) == 21
    assert counted(torch.zeros(3, 7)) == 3
    assert counted((torch.zeros(4, 2), torch.zeros(4))) == 4
    assert counted({"x": torch.zeros(5, 2)}) == 5
