"""The memory that compressing a checkpoint takes, foreseen; and how to stay below a bound.

    peak = program + embedding + hidden + max over parts of ( 2 part + 6 largest layer + Grams + 3 largest Gram + lot )

with: the program as it is when it begins; the embedding where the end loss is heard, which comes back to it; the hidden
states of all windows, old and new (twice that for those who tune), or none of them where they wait on disk; a part (a
block, the embedding, the head) as it was and, if a step acts on it, as it becomes, both in the type that the checkpoint
runs in. In float32: 6 copies of its largest layer for what a technique holds while it works, and 3 of its largest Gram
(or Fisher matrix) for the factors; the Grams of its layers, and half as much beside those of bfloat16; and what one lot
of windows makes inside it, 4 times its widest layers. Where the end loss is heard (`listening.py`) what is kept of it
is added, and the pass back may be what takes most. Techniques that hold more (that solve for many candidates of a
weight at once) are not foreseen.

A bound that does not hold at first is met by fewer windows at a time, then by hidden states on disk.
"""

import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import nn

from lissom.calibrate.stream import native
from lissom.compress.layers import back
from lissom.compress.listening import judged, kept, scores, waiting, way_back
from lissom.compress.plan import Phase, wanted
from lissom.errors import DataError
from lissom.formats import matrix_of
from lissom.models import Checkpoint, compressible
from lissom.models.families import at
from lissom.statistics import Gram, Guided
from lissom.types import Step

FLOAT = 4  # bytes
LOTS = (4, 2, 1)  # windows at a time
TUNED = 8  # the same where each lot is a step of tuning
WORKING, FACTORS, INSIDE = 6, 3, 4
ROWS = 2**24  # weights of a large matrix that candidates are tried on at a time
ROWWISE = ("rtn",)  # techniques that make each row of a matrix by itself
TRIED = 3  # bytes a weight: lots of rows of 8 bits, all of them, and what is written of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many windows run at a time, whether hidden states wait on disk, and the bytes that this takes at most."""

    batch: int = LOTS[0]
    spilled: bool = False
    program: int = 0
    hidden: int = 0
    part: int = 0
    embedding: int = 0
    heard: int = 0
    back: int = 0

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return self.program + self.embedding + self.heard + max(self.hidden + self.part, self.back)

    @property
    def told(self) -> str:
        """What is needed for what."""
        heard = f"{told(self.heard)} for what is heard of the end loss, " * (self.heard > 0)
        most = f"{told(self.part)} for the largest part with its statistics and {told(self.hidden)} for hidden states"
        if self.back > self.hidden + self.part:
            most = f"{told(self.back)} for the largest part on the way back and for hidden states"
        return f"{told(self.program)} for the program, {told(self.embedding)} for the embedding, {heard}{most}"


def room_for(
    checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], windows: tuple[int, int], max_ram: int | None
) -> Room:
    """The fastest way to stay below so many bytes; without a bound, the fastest way.

    Raises:
        DataError: there is none; the message says what is needed for what.
    """
    found = ways(checkpoint, model, plan, windows)
    return next(found) if max_ram is None else first_below(max_ram, found)


def first_below(max_ram: int, rooms: Iterable[Room]) -> Room:
    """The first of some ways to run that takes no more than so many bytes; the last one takes least.

    Raises:
        DataError: there is none.
    """
    for room in rooms:
        if room.peak <= max_ram:
            return room
    raise DataError(
        f"max-ram: {told(max_ram)} are too few, {told(room.peak)} are needed: {room.told}; give that much, shorter "
        "windows, or steps that need no Gram"
    )


def runs_in(checkpoint: Checkpoint, plan: Sequence[Phase]) -> torch.dtype:
    """The type that a checkpoint runs in; who tunes lives on differences that bfloat16 does not show."""
    return torch.float32 if tunes(plan) else native(checkpoint)


def tunes(plan: Sequence[Phase]) -> bool:
    """Whether a step learns block by block, a lot of data at a time."""
    return any(phase.grain == "block" for phase in plan)


def ways(checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], windows: tuple[int, int]) -> Iterator[Room]:
    """All ways to run, the fastest first."""
    n, t = windows
    config, family = checkpoint.config, checkpoint.family
    copies = 4 if tunes(plan) else 2
    floats = runs_in(checkpoint, plan).itemsize
    state = copies * config.hidden_size * floats
    program = resident()
    listened = {name for phase in plan for name in back(wanted(phase.plan))} - {family.embedding} if n else set()
    embedding = config.vocab_size * config.hidden_size * floats if listened else 0
    for spilled in (False, True) if n else (False,):
        for batch in (TUNED, *LOTS) if tunes(plan) else LOTS:
            lot = min(batch, n) * t
            yield Room(
                batch=batch,
                spilled=spilled,
                program=program,
                embedding=embedding,
                hidden=state * (lot if spilled else n * t),
                part=max(part_bytes(checkpoint, model, plan, name, lot, floats, t) for name in parts(checkpoint)),
                heard=kept(family, model, listened, n * t, spilled),
                back=way_back(checkpoint, model, windows, batch, spilled) if listened else 0,
            )


def ways_back(
    checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], windows: tuple[int, int]
) -> Iterator[Room]:
    """All ways to try a plan's steps on the original model, on the way back from the end loss; the fastest first."""
    n, t = windows
    config, names = checkpoint.config, [name for phase in plan for name in phase.plan]
    guided = [name for phase in plan for name in back(wanted(phase.plan))]
    program, embedding = resident(), config.vocab_size * config.hidden_size * FLOAT
    for spilled, batch in product((False, True), LOTS):
        lot = min(batch, n) * t
        part = max(tried_bytes(checkpoint, model, plan, name, lot, t) for name in parts(checkpoint))
        yield Room(
            batch=batch,
            spilled=spilled,
            program=program,
            embedding=embedding,
            hidden=waiting(checkpoint, windows, batch, spilled),
            part=part,
            heard=judged(checkpoint, model, names, guided, n * t),
            back=way_back(checkpoint, model, windows, batch, spilled),
        )


def lot_of(o: int, i: int, steps: Iterable[Step]) -> int:
    """How many of a matrix's o rows steps are tried on at a time: some, if it is large and each is made by itself."""
    return max(1, min(o, ROWS // i)) if all(step.technique in ROWWISE for step in steps) else o


def tried_bytes(checkpoint: Checkpoint, model: nn.Module, plan: Sequence[Phase], name: str, tokens: int, t: int) -> int:
    """What trying candidates on one part takes; of a large embedding, which is there already, some rows at a time."""
    if name == checkpoint.family.embedding:
        o, i = matrix_of(at(model, name)).shape
        lot = lot_of(o, i, (step for phase in plan for step in phase.plan.get(name, ())))
        if lot < o:
            return TRIED * o * i + FLOAT * WORKING * lot * i
    return part_bytes(checkpoint, model, plan, name, tokens, t=t)


def parts(checkpoint: Checkpoint) -> list[str]:
    """The parts with layers; a plan may do more in one block than in another."""
    family = checkpoint.family
    head = [] if checkpoint.config.tie_word_embeddings else [family.head]
    blocks = [f"{family.blocks}.{number}" for number in range(checkpoint.config.num_hidden_layers)]
    return [family.embedding, *blocks, *head]


def part_bytes(
    checkpoint: Checkpoint,
    model: nn.Module,
    plan: Sequence[Phase],
    name: str,
    tokens: int,
    floats: int = FLOAT,
    t: int = 0,
) -> int:
    """What working on one part takes, `tokens` at a time in windows of `t`, its weights being of `floats` bytes."""
    layers = compressible(at(model, name), name)
    shapes = {own: matrix_of(layer).shape for own, layer in layers.items()}
    whole = sum(o * i for o, i in shapes.values())
    acted = [shapes[own] for phase in plan for own in phase.on(layers)]
    grams = [
        shapes[own][1] ** 2
        for phase in plan
        if phase.grain == "layer"
        for own, kinds in wanted(phase.on(layers)).items()
        if kinds & {Gram, Guided}
    ]
    fishers = [shapes[own][0] ** 2 for phase in plan for own in back(wanted(phase.on(layers)))]
    widest = sum(sorted(o + i for o, i in shapes.values())[-3:])
    looked_up = name == checkpoint.family.embedding
    inside = (
        0 if looked_up else tokens * max(widest, INSIDE * checkpoint.config.hidden_size, INSIDE * scores(checkpoint, t))
    )
    working = WORKING * max((o * i for o, i in acted), default=0)
    factors = 0 if looked_up else sum(grams) + FACTORS * max([*grams, *fishers], default=0)
    typical = 0 if looked_up or floats == FLOAT else sum(grams)
    return floats * ((2 if acted else 1) * whole + typical) + FLOAT * (working + factors + inside)


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
