"""What the original says, remembered, so that it need not be in memory while a compressed model learns from it.

Shapes: n examples, s predictions of each, k classes that are remembered of each.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.compress.layers import evaluating
from lissom.progress import Progress, Tell, quiet
from lissom.recover.feed import Examples
from lissom.recover.lessons import largest

CHUNK = 64  # examples that are asked for, and kept, at once


class Memory:
    """Answers of the original by the numbers of the examples, in a journal or else in memory.

    The original is opened only where an answer is missing, and let go of then.
    """

    def __init__(self, k: int, journal: Journal | None = None) -> None:
        self.k, self.journal = k, journal
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def fill(self, feed: Examples, original: Callable[[], nn.Module], progress: Tell = quiet) -> None:
        """Ask for what is missing of all examples."""
        chunks = list(feed.chunks(CHUNK))
        missing = [number for number in range(len(chunks)) if not self.has(number)]
        if not missing:
            return
        model = original()
        with evaluating(model):
            for done, number in enumerate(missing, 1):
                logs, places = largest(model, chunks[number].batch, self.k)
                several = len(chunks[number].numbers)  # type: ignore[arg-type]
                short = torch.int16 if int(places.max()) < 2**15 else torch.int32
                self.keep(number, logs.half().unflatten(0, (several, -1)), places.to(short).unflatten(0, (several, -1)))
                progress(Progress(stage="recover", text="ask the original", done=done, total=len(missing)))

    def has(self, number: int) -> bool:
        """Whether a chunk was asked for."""
        return number in self.held if self.journal is None else self.journal.has(f"answers {number}")

    def keep(self, number: int, logs: Float[Tensor, "n s k"], places: Int[Tensor, "n s k"]) -> None:
        """Keep what was said to a chunk."""
        if self.journal is None:
            self.held[number] = (logs.cpu(), places.cpu())
        else:
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
