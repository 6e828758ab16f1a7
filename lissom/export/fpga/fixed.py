"""A network in fixed point: what the hardware computes, defined in whole numbers, and how it is found from real data.

A number is code · 2^-point. Of a layer with weights c · s (a scale s for each output) it is exact up to the first
rounding:

    a = Σ c x        k = a rounded to `sums`        y = k f + b        z = y, or max(y, 0), rounded to `out`

f and b are s and the bias on a grid, b on that of the product. Rounding is to the nearest, halves to even, and what is
too large becomes the largest. A mean of windows is a convolution of ones. With 13 bits for k and 12 for f every step
fits in the 24 bits of a float32, so that the same network runs exactly there too, as long as a does.

Shapes: n examples; o outputs, i inputs; c channels, h rows, w columns of a map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Codes = np.ndarray  # whole numbers, int64
SUMS, FACTORS = 13, 12  # bits of sums and of factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A type of numbers: bits, how many of them stand behind the point, and whether they have a sign."""

    bits: int
    point: int
    signed: bool = True

    @classmethod
    def around(cls, largest: float, bits: int, signed: bool) -> "Fixed":
        """The finest type of so many bits in which a number and its negative, or with no sign it alone, fit."""
        room = bits - signed
        point = room - math.ceil(math.log2(largest)) if largest > 0 else room
        return cls(bits=bits, point=point - (round(largest * 2.0**point) >= 2**room), signed=signed)

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest code."""
        return int(2 ** (self.bits - self.signed) - 1)

    @property
    def step(self) -> float:
        """What code 1 stands for."""
        return 2.0**-self.point

    def codes(self, numbers: np.ndarray) -> Codes:
        """Numbers as codes of the type."""
        found: Codes = np.rint(numbers.astype(np.float64) / self.step)
        return np.asarray(np.clip(found, self.low, self.high), np.int64)

    def moved(self, codes: Codes, point: int) -> Codes:
        """Codes that have their point elsewhere as codes of the type."""
        return np.asarray(np.clip(shifted(codes, point - self.point), self.low, self.high))

    def __str__(self) -> str:
        """As C++ has it."""
        return f"ap_{'' if self.signed else 'u'}fixed<{self.bits},{self.bits - self.point}>"


def shifted(codes: Codes, places: int) -> Codes:
    """Codes over 2^places, to the nearest whole number, halves to the even one."""
    if places <= 0:
        return codes << -places
    down, half = codes >> places, 1 << (places - 1)
    rest = codes - (down << places)
    return np.asarray(down + ((rest > half) | ((rest == half) & (down % 2 == 1))))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """A linear layer, of codes (o, i), or a convolution, of codes (o, c, h, w); `bias` is on the product's grid."""

    name: str
    codes: Codes
    sums: Fixed
    factor: Codes
    factor_type: Fixed
    bias: Codes
    rectified: bool
    out: Fixed
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def point(self) -> int:
        """Where the product has its point."""
        return self.sums.point + self.factor_type.point

    def run(self, x: Codes, point: int) -> Codes:
        """What the layer makes of codes."""
        kept = self.sums.moved(summed(x, self.codes, self.stride, self.padding), point)
        return self.out.moved(self.scaled(kept), self.point)

    def scaled(self, kept: Codes) -> Codes:
        """The product before it is rounded."""
        wide = (-1, *[1] * (kept.ndim - 2))
        y = kept * self.factor.reshape(wide) + self.bias.reshape(wide)
        return np.asarray(np.maximum(y, 0) if self.rectified else y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest of each window of a map."""

    name: str
    size: tuple[int, int]
    stride: tuple[int, int]
    out: Fixed

    def run(self, x: Codes, point: int) -> Codes:
        """What it makes of codes."""
        return np.asarray(windows(x, self.size, self.stride).max((-2, -1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A map as a row of numbers, channel by channel."""

    name: str
    out: Fixed

    def run(self, x: Codes, point: int) -> Codes:
        """What it makes of codes."""
        return x.reshape(len(x), -1)


Stage = Product | Largest | Flat


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """What is done to an input, stage by stage; `shape` is that of an example."""

    shape: tuple[int, ...]
    entry: Fixed
    stages: Sequence[Stage]

    @property
    def out(self) -> Fixed:
        """The type of what comes out."""
        return self.stages[-1].out if self.stages else self.entry

    def codes(self, numbers: np.ndarray) -> Codes:
        """The codes that come out."""
        x, kind = self.entry.codes(numbers), self.entry
        for stage in self.stages:
            x, kind = stage.run(x, kind.point), stage.out
        return x

    def run(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers that come out."""
        return self.codes(numbers) * self.out.step

    def maps(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The shape of an example before and after each stage."""
        found, x = list[tuple[tuple[int, ...], tuple[int, ...]]](), np.zeros((1, *self.shape), np.int64)
        for stage in self.stages:
            before, x = x.shape[1:], stage.run(x, 0)
            found.append((before, x.shape[1:]))
        return found


def windows(x: Codes, size: tuple[int, int], stride: tuple[int, int]) -> Codes:
    """The windows of maps (n, c, h, w): two dims more at the end."""
    found = np.lib.stride_tricks.sliding_window_view(x, size, (-2, -1))
    return found[:, :, :: stride[0], :: stride[1]]


def summed(x: Codes, codes: Codes, stride: tuple[int, int], padding: tuple[int, int]) -> Codes:
    """Σ c x of a linear layer, or a convolution."""
    if codes.ndim == 2:
        return np.asarray(x @ codes.T)
    (down, across), size = padding, (codes.shape[2], codes.shape[3])
    framed = np.pad(x, ((0, 0), (0, 0), (down, down), (across, across)))
    return np.tensordot(windows(framed, size, stride), codes, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def fitted(
    name: str,
    codes: Codes,
    scale: np.ndarray,
    bias: np.ndarray,
    *,
    rectified: bool,
    bits: int,
    seen: Codes,
    kind: Fixed,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Product:
    """A layer whose types are as fine as what is seen allows; `kind` is the type of the codes that come in."""
    a = summed(seen, codes, stride, padding)
    sums = Fixed.around(float(np.abs(a).max()) * kind.step, SUMS, signed=True)
    sums = sums if sums.point < kind.point else Fixed(bits=SUMS, point=kind.point)
    factor = Fixed.around(float(np.abs(scale).max()), FACTORS, signed=True)
    offset = np.rint(bias * 2.0 ** (sums.point + factor.point)).astype(np.int64)
    found = Product(
        name=name,
        codes=codes,
        sums=sums,
        factor=factor.codes(scale),
        factor_type=factor,
        bias=offset,
        rectified=rectified,
        out=Fixed(bits=bits, point=0),
        stride=stride,
        padding=padding,
    )
    y = found.scaled(sums.moved(a, kind.point))
    out = Fixed.around(float(np.abs(y).max()) * 2.0**-found.point, bits, signed=not rectified)
    return replace(found, out=out)
