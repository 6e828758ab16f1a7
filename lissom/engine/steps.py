"""The steps of a program for images of one size: which maps there are, where they lie, and what becomes of each.

Shapes: n images, c channels, h high, w wide; o outputs.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lissom.engine.kernels import native
from lissom.engine.kernels.conv import rows_of
from lissom.engine.kernels.native import structs
from lissom.engine.maps import GATES, NONE, Add, Conv, Gate, Join, Operation, Pick, Pool, Same, Scale, Widen
from lissom.engine.patches import FLOAT, VECTOR, Inputs, Packed, fit, packed, rescaled
from lissom.errors import LissomError

OVER = 64  # bytes that may be read beyond what is seen
POSITIVE = GATES["relu"], GATES["relu6"]  # activations that leave nothing below zero
FEW = 4  # blocks of a map, below which threads share its channels out


class Deed(IntEnum):
    """What a step does, as images.h counts it."""

    ENTER, CONVOLVE, POOL, POINT, COPY, LEAVE = range(6)


@dataclass(slots=True, kw_only=True, eq=False)
class Map:
    """Images between two steps, and where they lie in a room."""

    channels: int
    high: int
    wide: int
    positive: bool = False  # nothing in it is below zero
    splits: int = 1
    at: int = 0

    @property
    def lanes(self) -> int:
        """Channels, with those that fill vectors up."""
        return -(-self.channels // VECTOR) * VECTOR

    @property
    def most(self) -> int:
        """Where the magnitudes begin."""
        return self.at + self.high * self.wide * self.lanes

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.most + self.high * self.splits * VECTOR

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        return self.channels, self.high, self.wide

    def given(self) -> structs.CMap:
        """As the library is given it."""
        return structs.CMap(self.at, self.most, self.high, self.wide, self.lanes, self.splits)


@dataclass(slots=True, kw_only=True, eq=False)
class Chain:
    """What follows a node in the same step, up to `last`."""

    last: str
    scales: list[Scale] = field(default_factory=list)
    before: int = NONE
    other: Map | None = None
    after: int = NONE


class Plan:
    """A program for images of one size (c, h, w): what the known nodes of a graph do; some of them are read outside.

    Raises:
        ModelError: the nodes do not fit such images, or the library does not run a weight.
    """

    def __init__(
        self,
        known: Mapping[str, tuple[Operation, list[str]]],
        entry: str,
        outputs: Sequence[str],
        size: tuple[int, ...],
        packed: dict[str, Packed],
    ) -> None:
        self._known, self._outputs, self._packed = known, outputs, packed
        self._readers: dict[str, list[str]] = {node: [] for node in (entry, *known)}
        for node, (_, sources) in known.items():
            for source in dict.fromkeys(sources):
                self._readers[source].append(node)
        self._making: set[str] = set()
        self._steps: list[tuple[structs.CStep, Map | None, Map, Map | None]] = []
        self._held: list[object] = []
        self._seen = 0
        channels, high, wide = size
        first = Map(channels=channels, high=high, wide=wide)
        self._maps = {entry: first}
        self._step(Deed.ENTER, None, first, channels=channels)
        for node in known:
            self._value(node)
        self._left = [self._maps[node] for node in outputs]
        self._flat = [getattr(known[node][0], "flat", False) for node in outputs]
        for at, left in enumerate(self._left):
            self._step(Deed.LEAVE, left, left, channels=left.channels, output=at)
        self._room = self._settle()
        self._all = (structs.CStep * len(self._steps))(*(step for step, *_ in self._steps))

    @property
    def bytes(self) -> int:
        """What a thread needs."""
        return self._room * FLOAT + self._seen

    def run(self, x: Float[Tensor, "n c h w"], room: Tensor, kernel: str, threads: int) -> tuple[Tensor, ...]:
        """Images through all steps; channels lie in the outputs as they do in the input.

        Raises:
            LissomError: there is too little memory for it.
        """
        opened = native.library()
        assert opened is not None
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        made = [torch.empty(len(x), *left.shape, memory_format=order) for left in self._left]
        outside = [structs.COutside(each.data_ptr(), *each.stride()) for each in (x, *made)]
        given = (structs.COutside * len(made))(*outside[1:])
        if opened.lissom_images(
            self._all,
            len(self._all),
            *(room.data_ptr(), self._room, room.data_ptr() + threads * self._room * FLOAT, self._seen),
            *(ctypes.addressof(outside[0]), given, len(x), native.KERNELS.index(kernel), threads),
        ):
            raise LissomError(f"engine: no memory for {len(x)} images; use smaller batches")
        return tuple(each.flatten(1) if flat else each for each, flat in zip(made, self._flat, strict=True))

    def _value(self, node: str) -> Map | None:
        """The map of a node; None for one that is inside of a step."""
        if node not in self._maps and node not in self._making:
            self._making.add(node)
            operation, sources = self._known[node]
            given = [made for made in map(self._value, sources) if made is not None]
            if len(given) < len(sources):  # the step that makes one of them has taken this node along
                return self._maps.get(node)
            chain = self._chain(node, operation, given)
            self._maps[chain.last] = self._make(node, operation, given, chain)
        return self._maps.get(node)

    def _chain(self, node: str, operation: Operation, given: Sequence[Map]) -> Chain:
        """What can be done to a map as it is written: what the node does to one that is there, and what follows."""
        chain = Chain(last=node)
        if isinstance(operation, Join | Pick | Widen | Same):
            return chain
        if not isinstance(operation, Conv | Pool):
            self._goes_on(chain, operation, given[-1])
        while len(self._readers[chain.last]) == 1 and chain.last not in self._outputs:
            (user,) = self._readers[chain.last]
            following, sources = self._known[user]
            others = [source for source in sources if source is not chain.last]
            other = None if not others or self._waits(others[0]) else self._value(others[0])
            if (isinstance(following, Scale) and isinstance(operation, Pool)) or not self._goes_on(
                chain, following, other
            ):
                break
            self._making.add(user)
            chain.last = user
        return chain

    def _goes_on(self, chain: Chain, operation: Operation, other: Map | None) -> bool:
        """Take an operation into a chain; whether it can be."""
        early = chain.before == NONE and chain.other is None
        if isinstance(operation, Scale) and early:
            chain.scales.append(operation)
        elif isinstance(operation, Gate) and early:
            chain.before = operation.shape
        elif isinstance(operation, Gate) and chain.other is not None and chain.after == NONE:
            chain.after = operation.shape
        elif isinstance(operation, Add) and chain.other is None and other is not None:
            chain.other = other
        else:
            return isinstance(operation, Same)
        return True

    def _waits(self, node: str) -> bool:
        """Whether a node needs what is only being made."""
        if node in self._maps:
            return False
        return node in self._making or any(self._waits(source) for source in self._known[node][1])

    def _make(self, node: str, operation: Operation, given: Sequence[Map], chain: Chain) -> Map:
        source = given[0]
        if isinstance(operation, Same):
            return source
        if isinstance(operation, Conv):
            return self._convolve(node, operation, source, chain)
        if isinstance(operation, Pool):
            return self._pool(operation, source, chain)
        if isinstance(operation, Pick):
            high, wide = (-(-size // step) for size, step in zip(source.shape[1:], operation.step, strict=True))
            return self._copy(source, Map(channels=source.channels, high=high, wide=wide), stride=operation.step)
        if isinstance(operation, Widen):
            channels = operation.before + source.channels + operation.behind
            to = Map(channels=channels, high=source.high, wide=source.wide)
            return self._copy(source, to, channel=operation.before)
        if isinstance(operation, Join):
            return self._join(given)
        return self._point(source, chain)

    def _copy(
        self, source: Map, to: Map, *, channel: int = 0, stride: tuple[int, int] = (1, 1), first: bool = True
    ) -> Map:
        to.positive = source.positive and (first or to.positive)
        return self._step(Deed.COPY, source, to, channel=channel, channels=source.channels, stride=stride, whole=first)

    def _join(self, given: Sequence[Map]) -> Map:
        to = Map(channels=sum(each.channels for each in given), high=given[0].high, wide=given[0].wide)
        channel = 0
        for each in given:
            fit(each.shape[1:] == to.shape[1:], f"maps of {each.shape[1:]} and {to.shape[1:]} cannot be joined")
            self._copy(each, to, channel=channel, first=not channel)
            channel += each.channels
        return to

    def _point(self, source: Map, chain: Chain) -> Map:
        """Norms, activations and a sum that no step before could take along."""
        to = Map(channels=source.channels, high=source.high, wide=source.wide)
        fields: dict[str, Any] = {}
        if chain.scales:
            unit, bias = rescaled(torch.ones(to.channels), torch.zeros(to.channels), chain.scales)
            fields = {"unit": self._numbers(unit), "bias": self._numbers(bias)}
        return self._step(Deed.POINT, source, to, chain, **fields)

    def _pool(self, pool: Pool, source: Map, chain: Chain) -> Map:
        sizes = source.shape[1:]
        if pool.parts is None:
            fit(
                all(2 * pad <= size for pad, size in zip(pool.pad, pool.size, strict=True)),
                "pools are padded by more than half",
            )
            pads = [(pad, pad) for pad in pool.pad]
        high, wide = pool.parts or self._windows(sizes, pads, pool.size, pool.stride)
        to = Map(channels=source.channels, high=high, wide=wide)
        fields = {"mean": pool.mean, "adaptive": pool.parts is not None, "inside": pool.inside}
        self._step(Deed.POOL, source, to, chain, **fields, stride=pool.stride, pad=pool.pad, reach=pool.size)
        to.positive |= source.positive and chain.before == NONE and chain.other is None
        return to

    def _windows(
        self, sizes: tuple[int, ...], pads: Sequence[tuple[int, int]], reach: Sequence[int], stride: tuple[int, int]
    ) -> tuple[int, int]:
        """How many fit, down and to the right."""
        room = [size + sum(pad) - span for size, pad, span in zip(sizes, pads, reach, strict=True)]
        fit(min(room) >= 0, f"maps of {sizes} are smaller than windows of {tuple(reach)}")
        return room[0] // stride[0] + 1, room[1] // stride[1] + 1

    def _convolve(self, node: str, conv: Conv, source: Map, chain: Chain) -> Map:
        if node not in self._packed:
            self._packed[node] = packed(conv, chain.scales)
        made = self._packed[node]
        channels = made.channels * made.groups
        fit(source.channels == channels, f"a convolution of {channels} channels is given {source.channels}")
        reach = tuple(d * (k - 1) + 1 for k, d in zip(made.size, conv.dilation, strict=True))
        high, wide = self._windows(source.shape[1:], conv.pads, reach, conv.stride)
        to = Map(channels=len(made.unit), high=high, wide=wide)
        if -(-high // rows_of(wide)) < FEW and made.groups == 1 and made.inputs != Inputs.DEEP:
            to.splits = next(parts for parts in (4, 2, 1) if to.lanes % (2 * VECTOR * parts) == 0 or parts == 1)
        columns, pixel = (wide - 1) * conv.stride[1] + reach[1], source.lanes * (1 if made.sums is not None else FLOAT)
        rows = (rows_of(wide) - 1) * conv.stride[0] + reach[0]
        self._seen = max(self._seen, -(-(rows * columns * pixel + OVER) // OVER) * OVER)
        stretches = made.stretches(source.lanes, columns, conv.dilation)
        listed = (structs.CStretch * len(stretches))(*(structs.CStretch(*stretch) for stretch in stretches))
        self._held.append(listed)
        return self._step(
            Deed.CONVOLVE,
            source,
            to,
            chain,
            inputs=made.inputs,
            levels=made.levels,
            **unsigned(made, source.positive),
            whole=made.whole,
            stride=conv.stride,
            pad=tuple(pad for pad, _ in conv.pads),
            reach=reach,
            groups=made.groups if made.inputs != Inputs.DEEP else 1,
            group=made.channels * pixel // source.lanes if made.inputs != Inputs.DEEP else 0,
            parts=made.parts,
            runs=len(stretches) // made.parts,
            entries=made.parts * made.entries * math.prod(made.size),
            stretches=ctypes.addressof(listed),
            weights=made.weights.data_ptr(),
            sums=None if made.sums is None else made.sums.data_ptr(),
            scale=None if made.scale is None else made.scale.data_ptr(),
            unit=self._numbers(made.unit),
            bias=self._numbers(made.bias),
        )

    def _step(self, deed: Deed, source: Map | None, to: Map, chain: Chain | None = None, **fields: Any) -> Map:
        step = structs.CStep(deed=deed, rows=rows_of(to.wide), before=NONE, after=NONE, **fields)
        other = None
        if chain is not None:
            step.before, step.after, other = chain.before, chain.after, chain.other
            to.positive = (chain.before if other is None else chain.after) in POSITIVE
            fit(
                other is None or other.shape == to.shape,
                f"maps of {to.shape} and {other and other.shape} cannot be added",
            )
        self._steps.append((step, source, to, other))
        return to

    def _settle(self) -> int:
        """Give each map its place, where none is that is still read; returns the floats of a room."""
        spans: dict[Map, list[int]] = {}
        for at, (_, *maps) in enumerate(self._steps):
            for each in maps:
                if each is not None:
                    spans.setdefault(each, []).append(at)
        placed: list[Map] = []
        for each, span in spans.items():
            beside = [other for other in placed if spans[other][0] <= span[-1] and span[0] <= spans[other][-1]]
            size = each.end - each.at
            starts = [0, *(-(-other.end // VECTOR) * VECTOR for other in beside)]
            each.at = min(at for at in starts if all(at + size <= other.at or other.end <= at for other in beside))
            placed.append(each)
        for step, source, to, other in self._steps:
            step.to = to.given()
            step.from_ = structs.CMap() if source is None else source.given()
            step.other = -1 if other is None else other.at
        return -(-max(each.end for each in placed) // VECTOR) * VECTOR

    def _numbers(self, values: Float[Tensor, " o"]) -> int:
        """Where they are, filled up to whole vectors."""
        filled = F.pad(values.float(), (0, -len(values) % VECTOR)).contiguous()
        self._held.append(filled)
        return filled.data_ptr()


def unsigned(made: Packed, positive: bool) -> dict[str, int]:
    """What makes integers unsigned, and how many sums of two of their products with weights then fit in 16 bits."""
    offset = 0 if positive else 128
    most = 2 * (made.levels + offset) * made.largest
    return {"offset": offset, "pairs": (2**15 - 1) // most if most else 0}
