"""Costs: what a layer in a form would take on a target that is not here.

    cuda, tpu    the roofline of each call (`hardware/roofline.py`): its operations, and the bytes of its weight as the
                 target holds it, of what goes in and of what comes out
    tpu          where its compiler is here, the same of what that makes of each product, compiled ahead of time for one
                 chip (`export/tpu/alone.py`)
    fpga         cycles, and the share of the chip, counted of the layer's own circuit (`export/fpga/alone.py`)

A form that a target only runs by turning it into another is refused there: what was certified would not be what runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
from torch import nn

from lissom.errors import DataError
from lissom.export.fpga import alone
from lissom.export.fpga import project as fpga
from lissom.export.fpga.circuit import DENSE
from lissom.export.tpu import alone as tpu_alone
from lissom.export.tpu import folder as tpu
from lissom.formats import Dense, LowRank, Sum, Turned, Weight
from lissom.hardware import Target
from lissom.hardware.roofline import seconds
from lissom.hardware.sheets import SHEETS, Sheet
from lissom.hardware.ways import way_of
from lissom.models import weight_of
from lissom.search.latency import Parts
from lissom.search.loads import Load, Use

AREA, LATENCY = "area", "latency"
FLOATS = {2: "bf16", 4: "fp32"}  # the type of a number of so many bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A matrix as a target holds it: its bytes, the type in which is multiplied, and whether it is made anew."""

    shape: tuple[int, int]
    nbytes: float
    products: str
    decoded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer in a form: its weight, or None of the original, whose numbers have `width` bytes; and its load.

    `examples` are those of the batch that is timed.
    """

    layer: nn.Module
    weight: Weight | None
    width: int
    load: Load
    examples: int = 1


Cost = Callable[[Layer], Parts]  # raises DataError where a form is refused


def costs_of(target: Target) -> Cost:
    """What layers take on a target that is not here."""
    if target.kind == "fpga":
        return partial(circuit, alone.PARTS[target.device])
    sheet = SHEETS[target.device if target.kind == "cuda" else f"tpu-{target.device}"]
    if target.compiled:
        return partial(compiled, target.device, sheet)
    return partial(roofline, target.kind, sheet)


def bits_of(target: Target, given: Layer) -> float:
    """The bits of a weight that are costed: as the target holds it, which may be more or fewer than are stored.

    Raises:
        DataError: the form becomes another there.
    """
    if target.kind == "fpga":
        return DENSE if given.weight is None else given.weight.bits_per_weight
    o, i = weight_of(given.layer).shape
    return 8 * sum(one.nbytes for one in pieces(target.kind, given)) / (o * i)


def circuit(part: alone.Part, given: Layer) -> Parts:
    """Milliseconds and the share of the chip; an example at a time.

    Raises:
        DataError: the form becomes another there.
    """
    if given.weight is not None and fpga.holds(given.weight, given.layer) is None:
        refuse("fpga", given.weight)
    rows = max((use.rows for uses in given.load.values() for use in uses), default=0)
    found = alone.taken(given.weight, given.layer, max(1, round(rows / given.examples)))
    return {LATENCY: 1e-6 * found.cycles * alone.CLOCK_NS, AREA: part.share(found)}


def roofline(kind: str, sheet: Sheet, given: Layer) -> Parts:
    """Milliseconds by the part of what is timed.

    Raises:
        DataError: the form becomes another there.
    """
    held = list(pieces(kind, given))
    return {
        part: 1000 * sum(use.calls * once(sheet, one, use, given.width) for use in uses for one in held)
        for part, uses in given.load.items()
    }


def compiled(device: str, sheet: Sheet, given: Layer) -> Parts:
    """The same of what a TPU's compiler makes of the products; what is looked up is not compiled.

    Raises:
        DataError: the form becomes another there.
        ModelError: a product cannot be compiled.
    """
    held, dtype = list(pieces("tpu", given)), {2: torch.bfloat16, 4: torch.float32}[given.width]
    dense = Dense(values=torch.zeros(weight_of(given.layer).shape, dtype=dtype))
    weights = [dense] if given.weight is None else apart(given.weight)
    known: dict[int, float] = {}

    def product(rows: int) -> float:
        works = [tpu_alone.work_of(weight, rows, device, dtype) for weight in weights]
        return sum(
            seconds(sheet, one.products, work.operations, work.nbytes) for one, work in zip(held, works, strict=True)
        )

    def of_use(use: Use) -> float:
        if use.looks_up:
            return sum(once(sheet, one, use, given.width) for one in held)
        rows = max(1, round(use.rows))
        if rows not in known:
            known[rows] = product(rows)
        return known[rows]

    return {part: 1000 * sum(use.calls * of_use(use) for use in uses) for part, uses in given.load.items()}


def once(sheet: Sheet, held: Held, use: Use, width: int) -> float:
    """Seconds of one call."""
    o, i = held.shape
    if use.looks_up:
        return seconds(sheet, held.products, 0, use.rows * (held.nbytes / o + i * width))
    made = 2 * o * i * width if held.decoded else 0  # written, and read again
    nbytes = held.nbytes + made + use.rows * (o + i) * width
    return seconds(sheet, held.products, 2 * use.rows * o * i, nbytes)


def pieces(kind: str, given: Layer) -> Iterator[Held]:
    """The matrices that a layer multiplies with, as a target holds them.

    Raises:
        DataError: one would become another form there.
    """
    floats = FLOATS[given.width]
    shape = weight_of(given.layer).shape
    if given.weight is None:
        yield Held(shape=shape, nbytes=shape[0] * shape[1] * given.width, products=floats)
        return
    for weight in apart(given.weight):
        way = way_of(kind, weight.spec())
        nbytes = float(weight.nbytes)
        if way.becomes:
            refuse(kind, weight)
        if kind == "tpu" and not isinstance(weight, Dense):
            nbytes = stored(weight, given)
        yield Held(shape=weight.shape, nbytes=nbytes, products=way.products or floats, decoded=way.decoded)


def stored(weight: Weight, given: Layer) -> float:
    """The bytes of a weight on a TPU, where it is integers of 4 or 8 bits, or floats of the model's width.

    Raises:
        DataError: it has no such form.
    """
    form = tpu.holds(weight, given.layer)
    if form is None:
        refuse("tpu", weight)
    o, i = weight.shape
    return o * i * min(form.bits / 8, given.width)


def apart(weight: Weight) -> list[Weight]:
    """The matrices of a weight that is made of several."""
    if isinstance(weight, LowRank):
        return [*apart(weight.a), *apart(weight.b)]
    if isinstance(weight, Sum):
        return [*apart(weight.base), *apart(weight.correction)]
    return apart(weight.base) if isinstance(weight, Turned) else [weight]


def refuse(kind: str, weight: Weight) -> NoReturn:
    """Say that a form does not run somewhere as it is.

    Raises:
        DataError: always.
    """
    way = way_of(kind, weight.spec())
    told = way.becomes or "8 bits with a scale for each row"
    raise DataError(f"{weight.spec()['format']} would become {told}")
