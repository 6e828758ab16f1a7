"""What the original says, remembered, so that it need not be in memory while a compressed model learns from it.

Of several workers each asks the original for its share; the first one keeps what all have asked. The others read it
where that is kept, if they see it, and else have it in memory: by and by a worker learns from all examples.

Shapes: n examples, s predictions of each, k classes that are remembered of each.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.compress.layers import evaluating
from lissom.progress import Progress, Tell, quiet
from lissom.recover.feed import Examples, Lot
from lissom.recover.lessons import largest
from lissom.recover.parallel.workers import ALONE, Kept, Workers

CHUNK = 64  # examples that are asked for, and kept, at once
PARTS = ("logs", "places")


class Memory:
    """Answers of the original by the numbers of the examples, in a journal or else in memory.

    The original is opened only where an answer is missing, and let go of then. The first of a `team` writes in the
    journal, the others only read it.
    """

    def __init__(self, k: int, journal: Journal | None = None, team: Workers = ALONE) -> None:
        self.k, self.journal, self.team = k, journal, team
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def fill(self, feed: Examples, original: Callable[[], nn.Module], progress: Tell = quiet) -> None:
        """Ask for what is missing of all examples; all workers must call it."""
        chunks = list(feed.chunks(CHUNK))
        missing = self.missing(len(chunks))
        if missing:
            self.ask(chunks, missing, original(), progress)
        self.team.wait()  # until the first one has written all of it
        for number in range(len(chunks)):
            self.share(number)

    def missing(self, count: int) -> list[int]:
        """The chunks that were not asked for, by what the first worker has."""
        own = [number for number in range(count) if not self.has(number)] if self.team.first else []
        told = self.team.told((own, {}))
        assert told is not None
        numbers: list[int] = told[0]
        return numbers

    def ask(self, chunks: Sequence[Lot], missing: Sequence[int], original: nn.Module, progress: Tell) -> None:
        """Ask the original, each worker for another chunk at a time, and keep what it says."""
        several = self.team.count
        with evaluating(original):
            for done in range(0, len(missing), several):
                numbers = missing[done : done + several]
                mine = self.team.rank < len(numbers)
                found = self.answers(original, chunks[numbers[self.team.rank]]) if mine else None
                for number, told in zip(numbers, self.team.gathered(found), strict=False):
                    assert told is not None
                    self.keep(number, told[1]["logs"], told[1]["places"])
                if self.team.first:
                    ready = done + len(numbers)
                    progress(Progress(stage="recover", text="ask the original", done=ready, total=len(missing)))

    def answers(self, original: nn.Module, lot: Lot) -> Kept:
        """What the original says to some examples, in as few bytes as hold it."""
        logs, places = largest(original, lot.batch, self.k)
        each = (len(lot.numbers), -1)  # type: ignore[arg-type]
        short = torch.int16 if int(places.max()) < 2**15 else torch.int32
        return {}, {"logs": logs.half().unflatten(0, each), "places": places.to(short).unflatten(0, each)}

    def share(self, number: int) -> None:
        """Tell a chunk to the workers that do not see where it is kept, if there are any."""
        lacks = not self.has(number)
        if not self.team.mean(float(lacks), 1.0):
            return
        told = self.team.told(({}, dict(zip(PARTS, self.chunk(number), strict=True))) if self.team.first else None)
        if lacks and told is not None:
            self.held[number] = told[1]["logs"], told[1]["places"]

    def has(self, number: int) -> bool:
        """Whether it is known here what was said to a chunk."""
        return number in self.held or (self.journal is not None and self.journal.has(f"answers {number}"))

    def keep(self, number: int, logs: Float[Tensor, "n s k"], places: Int[Tensor, "n s k"]) -> None:
        """Keep what was said to a chunk."""
        if self.journal is None:
            self.held[number] = (logs.cpu(), places.cpu())
        elif self.team.first:
            self.journal.keep(f"answers {number}", {}, {"logs": logs.contiguous(), "places": places.contiguous()})

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """What was said to a chunk; from a journal it is mapped into memory."""
        with suppress(KeyError):
            return self.held[number]
        assert self.journal is not None
        found = self.journal.tensors(f"answers {number}")
        self.held[number] = found["logs"], found["places"]
        return self.held[number]

    def of(self, numbers: Tensor) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
        """What was said to some examples, prediction by prediction."""
        found = [(self.chunk(number // CHUNK), number % CHUNK) for number in numbers.tolist()]
        logs = torch.cat([own[0][place].float() for own, place in found])  # mixed precision knows no half floats
        places = torch.cat([own[1][place] for own, place in found])
        return logs, places.long()
