"""The memory that compressing a checkpoint takes, foreseen; and how to stay below a bound.

    peak = program + embedding + hidden + max over parts of ( 2 part + 6 largest layer + Grams + 3 largest Gram + lot )

with, in float32: the program as it is when it begins; the embedding, which stays; the hidden states of all windows, old
and new (twice that for those who tune), or none of them where they wait on disk; a part (a block, the embedding, the
head) as it was and as it becomes; 6 copies of its largest layer for what a technique holds while it works, and 3 of its
largest Gram for the factors; the Grams of its layers; and what one lot of windows makes inside it, 4 times its widest
layers. Techniques that hold more than that (those that solve for many candidates of a weight at once) are not foreseen.

A bound that does not hold at first is met by fewer windows at a time, then by hidden states on disk.
"""

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lissom.compress.plan import Phase, wanted
from lissom.errors import DataError
from lissom.formats import matrix_of
from lissom.models import Checkpoint, compressible
from lissom.models.families import at
from lissom.statistics import Gram

FLOAT = 4  # bytes
LOTS = (8, 4, 2, 1)  # windows at a time
WORKING, FACTORS, INSIDE = 6, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many windows run at a time, whether hidden states wait on disk, and the bytes that this takes at most."""

    batch: int = LOTS[0]
    spilled: bool = False
    program: int = 0
    hidden: int = 0
    part: int = 0
    embedding: int = 0

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return self.program + self.embedding + self.hidden + self.part


def room_for(
    checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], windows: tuple[int, int], max_ram: int
) -> Room:
    """The fastest way to stay below so many bytes.

    Raises:
        DataError: there is none; the message says what is needed for what.
    """
    for room in ways(checkpoint, model, plan, windows):
        if room.peak <= max_ram:
            return room
    raise DataError(
        f"max-ram: {told(max_ram)} are too few, {told(room.peak)} are needed: {told(room.program)} for the program, "
        f"{told(room.embedding)} for the embedding, {told(room.part)} for the largest part with its statistics and "
        f"{told(room.hidden)} for hidden states; give that much, shorter windows, or steps that need no Gram"
    )


def ways(checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], windows: tuple[int, int]) -> Iterator[Room]:
    """All ways to run, the fastest first."""
    n, t = windows
    config = checkpoint.config
    copies = 4 if any(phase.grain == "block" for phase in plan) else 2
    hidden = copies * n * t * config.hidden_size * FLOAT
    program, embedding = resident(), config.vocab_size * config.hidden_size * FLOAT
    for spilled in (False, True) if n else (False,):
        for batch in LOTS:
            lot = min(batch, n) * t
            part = max(part_bytes(checkpoint, model, plan, name, lot) for name in parts(checkpoint))
            kept = copies * lot * config.hidden_size * FLOAT if spilled else hidden
            yield Room(batch=batch, spilled=spilled, program=program, hidden=kept, part=part, embedding=embedding)


def parts(checkpoint: Checkpoint) -> list[str]:
    """The parts that differ in size; blocks are alike."""
    family = checkpoint.family
    head = [] if checkpoint.config.tie_word_embeddings else [family.head]
    return [family.embedding, f"{family.blocks}.0", *head]


def part_bytes(checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], name: str, tokens: int) -> int:
    """What working on one part takes, `tokens` at a time."""
    layers = compressible(at(model, name), name)
    shapes = {own: matrix_of(layer).shape for own, layer in layers.items()}
    whole = sum(o * i for o, i in shapes.values())
    acted = [shapes[own] for phase in plan for own in phase.on(layers)]
    grams = [
        shapes[own][1] ** 2
        for phase in plan
        if phase.grain == "layer"
        for own, kinds in wanted(phase.on(layers)).items()
        if Gram in kinds
    ]
    widest = sum(sorted(o + i for o, i in shapes.values())[-3:])
    looked_up = name == checkpoint.family.embedding
    inside = 0 if looked_up else tokens * max(widest, INSIDE * checkpoint.config.hidden_size)
    working = WORKING * max((o * i for o, i in acted), default=0)
    factors = 0 if looked_up else sum(grams) + FACTORS * max(grams, default=0)
    return FLOAT * (2 * whole + working + factors + inside)


def resident() -> int:
    """Bytes of this process that are in memory now; where the system does not tell, the most there ever were."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def told(nbytes: int) -> str:
    """A size as a reader wants it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
