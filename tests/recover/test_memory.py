"""Memory: each worker asks for a share of the examples, and all know what the original said to every one of them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.recover.feed import Examples
from lissom.recover.memory import CHUNK, Memory
from lissom.recover.parallel.workers import Kept, Workers

ASKED = {"model": "m", "data": "d"}
EXAMPLES, K = 3 * CHUNK + 5, 4  # four chunks: of three workers two ask once, and one twice


class Meeting:
    """Where workers that are threads tell one another something."""

    def __init__(self, count: int) -> None:
        self.barrier, self.told = threading.Barrier(count, timeout=60), dict[int, Any]()

    def all(self, rank: int, said: Any) -> dict[int, Any]:
        """What all say."""
        self.told[rank] = said
        self.barrier.wait()
        found = dict(self.told)
        self.barrier.wait()
        return found


class Threads(Workers):
    """A worker that is a thread."""

    def __init__(self, rank: int, count: int, meeting: Meeting) -> None:
        super().__init__()
        self.rank, self.count, self.meeting, self.sent = rank, count, meeting, 0

    def mean(self, total: float, weight: float) -> float:
        """The totals of all over the weights of all."""
        both = self.meeting.all(self.rank, (total, weight)).values()
        return float(sum(one for one, _ in both) / sum(one for _, one in both))

    def told(self, kept: Kept | None, rank: int = 0) -> Kept | None:
        """What the one of this rank has."""
        found: Kept | None = self.meeting.all(self.rank, kept)[rank]
        self.sent += bool(found and found[1])
        return found


class Counted(nn.Module):
    """A model that counts the examples that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.asked = nn.Linear(6, 9), 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.layer(x)  # type: ignore[no-any-return]


def filled(count: int, place: Path | None, sees: Callable[[int], bool]) -> tuple[list[Memory], list[Counted]]:
    """The memories of some workers, and what each of them asked; `sees` says of a rank whether it sees the journal."""
    meeting, models = Meeting(count), [Counted() for _ in range(count)]
    feed = Examples(examples(), 8, 0.1, 0, 0)

    def work(rank: int, journal: Journal | None) -> Memory:
        memory = Memory(K, journal, Threads(rank, count, meeting))
        memory.fill(feed, lambda: models[rank])
        return memory

    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        first = None if place is None else stack.enter_context(Journal.open(place, ASKED))
        others = [Journal.seen(place, ASKED) if place and sees(rank) else None for rank in range(1, count)]
        return list(pool.map(work, range(count), [first, *others])), models


def examples() -> Tensor:
    return torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted() -> tuple[Tensor, Tensor]:
    """The definition: what the original says to each example, the likeliest first."""
    with torch.no_grad():
        logs = Counted()(examples()).log_softmax(-1).topk(K)
    return logs.values.half().float(), logs.indices


@pytest.mark.parametrize("sees", [lambda rank: True, lambda rank: False, lambda rank: rank == 2])
@pytest.mark.parametrize("journal", [True, False])
def test_workers_share_what_they_ask(
    sees: Callable[[int], bool], journal: bool, wanted: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    place = tmp_path / "work" if journal else None
    memories, models = filled(3, place, sees)
    assert [model.asked for model in models] == [CHUNK + 5, CHUNK, CHUNK]
    numbers = torch.randperm(EXAMPLES)
    for rank, memory in enumerate(memories):
        assert rank == 0 or bool(memory.held) == (not journal or not sees(rank))
        logs, places = memory.of(numbers)
        torch.testing.assert_close(logs, wanted[0][numbers], atol=2e-3, rtol=0)
        assert torch.equal(places, wanted[1][numbers])


def test_who_goes_on_asks_nothing_again_and_tells_those_who_see_no_journal(
    wanted: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    filled(1, tmp_path / "work", lambda rank: False)
    memories, models = filled(2, tmp_path / "work", lambda rank: False)
    assert [model.asked for model in models] == [0, 0]
    assert torch.equal(memories[1].of(torch.arange(EXAMPLES))[1], wanted[1])
    memories, _ = filled(2, tmp_path / "work", lambda rank: True)
    assert [memory.team.sent for memory in memories] == [0, 0]  # type: ignore[attr-defined]


def test_a_journal_that_was_begun_for_something_else_is_not_read(tmp_path: Path) -> None:
    assert Journal.seen(tmp_path / "work", ASKED) is None
    with Journal.open(tmp_path / "work", ASKED) as journal:
        journal.keep("answers 0", {})
    seen = Journal.seen(tmp_path / "work", ASKED)
    assert seen is not None
    assert seen.has("answers 0")
    assert Journal.seen(tmp_path / "work", {**ASKED, "data": "another"}) is None
