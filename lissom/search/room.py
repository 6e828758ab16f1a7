"""The memory and the time that a search of a language model takes, foreseen; and how it stays below a bound.

    calibrating    as `compress/ram.py` says of the way back: all forms of one part, with what they are judged by
    assembling     the engine of the original + 2 largest part      a part as it is read and as it is written
    comparing      candidate + logits + 2 logits of a window        one model at a time, some rows of it in float32
    timing         the engine of the original + candidate           by turns

each beside the program, and what runs a model beside its weights. The original stays as it is stored, mapped into
memory. A candidate takes as much as the original, or where that is more `OPENED` bytes a weight while it is opened,
what is stored and what kernels make of it; in an engine, which lets go of what is stored as it goes, `SERVED`.
A metric between two models needs both at once. A bound that does not hold at first is met by fewer tokens at a time.

The time is that of one core of a processor with AVX2, shared out among those there are: of another it may be half.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lissom.compress.ram import parts, resident, told
from lissom.errors import DataError
from lissom.evaluate import Metric
from lissom.formats.dense import WIDENED
from lissom.hardware.machine import cores
from lissom.models import Checkpoint
from lissom.progress import Progress, Tell
from lissom.resident import give_back
from lissom.search.foresee import rooms_back
from lissom.search.forms import CACHE
from lissom.search.latency import EACH
from lissom.search.sensitivity import Steps
from lissom.search.shallow import ENOUGH
from lissom.search.split import Split

FLOAT = 4  # bytes
OPENED, SERVED = 2.1, 1.5  # bytes a weight of a candidate while it is opened; of 8 bits an engine was seen to take 1.4
LATER = 100_000_000  # bytes of the program that it takes once all is imported
ENGINE = 16_000_000  # bytes of what runs a model beside its weights
FORM, PRODUCTS, BACK, WRITTEN = 0.3e-6, 6e10, 8, 1e-8  # s a weight and form; operations/s; 2 a weight; s a weight
COMPARED = 20  # choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """Bytes at most by what is done, how many tokens are compared at a time, and about how many seconds all takes."""

    phases: Mapping[str, int]
    tokens: int
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return max(self.phases.values())

    def __str__(self) -> str:
        """The largest first, and the time."""
        ordered = sorted(self.phases.items(), key=lambda one: -one[1])
        return ", ".join(f"{told(nbytes)} for {phase}" for phase, nbytes in ordered)


def within(
    checkpoint: Checkpoint,
    forms: Mapping[str, Mapping[str, Steps]],
    kinds: int,
    lots: Split,
    metrics: Collection[Metric],
    max_ram: int | None,
    tell: Tell,
) -> int | None:
    """How many tokens at a time stay below so many bytes, None where there is no bound; what is foreseen is told.

    Args:
        checkpoint: the original.
        forms: the forms of each layer.
        kinds: how many kinds of layers are timed.
        lots: the data.
        metrics: what quality means.
        max_ram: bytes that the process may take; None for as many as it needs.
        tell: told the bytes and the time.

    Raises:
        DataError: nothing stays below the bound, as far as can be foreseen.
    """
    give_back()  # what is resident now is counted as the program
    ways = list(foreseen(checkpoint, forms, kinds, lots, metrics, max_ram))
    found = next((way for way in ways if max_ram is None or way.peak <= max_ram), None)
    if found is None:
        raise DataError(
            f"max-ram: {told(max_ram or 0)} are too few, {told(ways[-1].peak)} are needed: {ways[-1]}; give that much, "
            "or shorter windows"
        )
    minutes = max(1, round(found.seconds / 60))
    text = f"memory: at most {told(found.peak)}, {found}; time: about {minutes} minutes"
    tell(Progress(stage="read", text=text))
    return None if max_ram is None else found.tokens


def at_once(metric: Metric, tokens: int | None) -> Metric:
    """A metric of so many tokens at a time, where it counts them and a number is given."""
    return metric if tokens is None or metric.tokens is None else dataclasses.replace(metric, tokens=tokens)


def foreseen(
    checkpoint: Checkpoint,
    forms: Mapping[str, Mapping[str, Steps]],
    kinds: int,
    lots: Split,
    metrics: Collection[Metric],
    max_ram: int | None,
) -> Iterator[Foreseen]:
    """The ways to run, the fastest first, the last of which takes least."""
    assert isinstance(lots.calibration, Tensor)
    n, t = lots.calibration.shape
    tried = {name: list(own.values()) for name, own in forms.items() if name != CACHE}
    rooms = [room.peak for room in rooms_back(checkpoint, checkpoint.skeleton(), tried, (n, t))]
    calibrating = next((peak for peak in rooms if max_ram is None or peak <= max_ram), min(rooms))
    stored, weights = sizes(checkpoint, checkpoint.names)
    program = resident() + LATER
    candidate, served = (max(stored, int(each * weights)) for each in (OPENED, SERVED))
    largest = max(sizes(checkpoint, names)[0] for names in by_part(checkpoint))
    logits = FLOAT * int(checkpoint.config.vocab_size)
    both = any(metric.against is not None for metric in metrics)
    most = max((metric.tokens for metric in metrics if metric.tokens is not None), default=t)
    seconds = time_of(checkpoint, tried, kinds, lots, weights)
    for tokens in lots_of(most, t):
        said = (2 if both else 1) * tokens * logits + 2 * t * logits + FLOAT * WIDENED
        yield Foreseen(
            phases={
                "calibrating": calibrating,
                "putting a candidate together": program + stored + ENGINE + 2 * largest,
                "comparing": program + candidate + ENGINE + both * stored + said,
                "timing a candidate beside the original": program + stored + served + 2 * ENGINE,
            },
            tokens=tokens,
            seconds=seconds,
        )


def lots_of(tokens: int, t: int) -> list[int]:
    """So many tokens at a time, and fewer, down to one window of t."""
    found = [max(tokens, t)]
    while found[-1] > t:
        found.append(max(t, found[-1] // 2))
    return found


def sizes(checkpoint: Checkpoint, names: Sequence[str]) -> tuple[int, int]:
    """Bytes and numbers of tensors."""
    held = [checkpoint.tensor(name) for name in names]
    return sum(tensor.nbytes for tensor in held), sum(tensor.numel() for tensor in held)


def by_part(checkpoint: Checkpoint) -> list[list[str]]:
    """The names of the tensors of each part."""
    return [[name for name in checkpoint.names if name.startswith(f"{part}.")] for part in parts(checkpoint)]


def time_of(
    checkpoint: Checkpoint, tried: Mapping[str, Sequence[Steps]], kinds: int, lots: Split, weights: int
) -> float:
    """About how many seconds a search takes."""
    n, t = (int(size) for size in getattr(lots.calibration, "shape", (0, 0)))
    chosen, certified = (int(getattr(lot, "numel", int)()) for lot in (lots.selection, lots.certification))
    made = sum(len(forms) * checkpoint.tensor(f"{name}.weight").numel() for name, forms in tried.items()) * FORM
    run = 2 * weights * (BACK / 2 * n * t + COMPARED * chosen + 3 * certified) / PRODUCTS
    timed = kinds * max(map(len, tried.values()), default=0)
    written = COMPARED * weights + timed * min(weights, ENOUGH)
    return (made + run + written * WRITTEN) / cores() + timed * EACH
