"""What calibration remembers of a layer's input.

A statistic is a monoid: `zero`, `see` a batch, `merge` two. Merging equals having seen both, so calibration on many
machines is one all-reduce. Both kinds are updated in place by `see`, because a Gram is the largest thing in memory.

Shapes: n examples (rows), i input features.
"""

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

MANY = 256  # rows of bfloat16 from which their product is worth a detour


@runtime_checkable
class Statistic(Protocol):
    """What a technique may ask calibration for."""

    @classmethod
    def zero(cls, inputs: int, device: torch.device | None = None) -> Self:
        """The statistic of no data, where that of a device will be seen."""
        ...

    @classmethod
    def blank(cls, inputs: int, device: torch.device | None = None) -> Self:
        """What to assume where there is no data: features of unit size that have nothing to do with each other."""
        ...

    def see(self, x: Float[Tensor, "n i"]) -> None:
        """Take in a batch."""
        ...

    def merge(self, other: Self) -> Self:
        """The statistic of both lots of data."""
        ...


@dataclass(slots=True)
class Moments:
    """Count, sum, sum of squares and largest magnitude of each input feature."""

    n: int
    sum: Float[Tensor, " i"]
    square: Float[Tensor, " i"]
    largest: Float[Tensor, " i"]

    @classmethod
    def zero(cls, inputs: int, device: torch.device | None = None) -> "Moments":
        """Moments of no data."""
        return cls(0, *(torch.zeros(inputs, device=device) for _ in range(3)))

    @classmethod
    def blank(cls, inputs: int, device: torch.device | None = None) -> "Moments":
        """What to assume where there is no data: features of mean 0 and size 1."""
        return cls(1, torch.zeros(inputs, device=device), *(torch.ones(inputs, device=device) for _ in range(2)))

    def see(self, x: Float[Tensor, "n i"]) -> None:
        """Take in a batch."""
        if x.shape[0] == 0:
            return
        x = x.float()
        self.n += x.shape[0]
        self.sum += x.sum(0)
        self.square += x.square().sum(0)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both lots of data."""
        return Moments(
            self.n + other.n,
            self.sum + other.sum,
            self.square + other.square,
            torch.maximum(self.largest, other.largest),
        )

    @property
    def mean(self) -> Float[Tensor, " i"]:
        """E[x_j]."""
        return self.sum / max(self.n, 1)

    @property
    def power(self) -> Float[Tensor, " i"]:
        """E[x_j²]."""
        return self.square / max(self.n, 1)

    @property
    def norm(self) -> Float[Tensor, " i"]:
        """‖X_j‖₂, the Euclidean norm of each feature over the examples."""
        return self.square.sqrt()


def strip_of(size: int) -> int:
    """Rows of a strip of a symmetric matrix: an eighth of it, but not so few that they do not keep a processor busy."""
    return max(256, -(-size // 8))


def add_square(total: Float[Tensor, "i i"], x: Float[Tensor, "n i"]) -> None:
    """total += XᵀX, strip by strip from the diagonal on; what lies below it is copied from what lies above.

    Eight strips do 9/16 of the multiplications of the whole, and took 0.61 to 0.66 of its time.
    """
    inputs = x.shape[1]
    strip = strip_of(inputs)
    for first in range(0, inputs, strip):
        total[first : first + strip, first:].addmm_(x[:, first : first + strip].T, x[:, first:])
    mirror(total, strip)


def mirror(total: Float[Tensor, "i i"], strip: int) -> None:
    """Copy what lies above the diagonal to below it."""
    for first in range(0, len(total), strip):
        here = slice(first, first + strip)
        total[here, :first] = total[:first, here].T
        total[here, here] = total[here, here].triu() + total[here, here].triu(1).T


def finite(x: Float[Tensor, "*n"]) -> bool:
    """Whether there is no NaN and no infinity among the numbers; nothing is copied for it."""
    return x.numel() == 0 or all(bool(bound.isfinite()) for bound in x.detach().aminmax())


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively, as far as PyTorch can tell."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def add_square_near(total: Float[Tensor, "i i"], x: Float[Tensor, "n i"], typical: Float[Tensor, "i i"]) -> None:
    """total += XᵀX for an X of bfloat16, whose products come rounded to bfloat16, in half of the time or less.

    Rounded is only how far XᵀX / n is from a `typical` one, which is about as much as one lot of data differs from
    another: the error is a twentieth of that of rounding the product itself, and far below that of sampling.
    """
    n, inputs = x.shape
    strip = strip_of(inputs)
    for first in range(0, inputs, strip):
        here = slice(first, first + strip), slice(first, None)
        off = torch.addmm(typical[here], x[:, here[0]].T, x[:, here[1]], beta=-n)
        total[here].add_(off).add_(typical[here], alpha=n)
    mirror(total, strip)


@dataclass(slots=True)
class Gram:
    """XᵀX, its count and the sum of X: how the input features go together.

    The output error of replacing W by V is tr((W-V) XᵀX (W-V)ᵀ); every data-aware technique reads it. Where a layer has
    a bias, which makes good what is constant, the covariance takes the place of XᵀX / n.

    `typical` is about XᵀX / n, in bfloat16, where data of that type has been seen.
    """

    n: int
    xtx: Float[Tensor, "i i"]
    sum: Float[Tensor, " i"]
    typical: Float[Tensor, "i i"] | None = None

    @classmethod
    def zero(cls, inputs: int, device: torch.device | None = None) -> "Gram":
        """The Gram of no data."""
        return cls(0, torch.zeros(inputs, inputs, device=device), torch.zeros(inputs, device=device))

    @classmethod
    def blank(cls, inputs: int, device: torch.device | None = None) -> "Gram":
        """What to assume where there is no data: the identity."""
        return cls(1, torch.eye(inputs, device=device), torch.zeros(inputs, device=device))

    def see(self, x: Float[Tensor, "n i"]) -> None:
        """Take in a batch."""
        self.n += x.shape[0]
        self.sum += x.sum(0, dtype=torch.float32)
        if x.dtype == torch.bfloat16 and len(x) >= MANY and multiplies_bfloat16():
            self.typical = (x.T @ x).div_(len(x)) if self.typical is None else self.typical
            add_square_near(self.xtx, x, self.typical)
        else:
            add_square(self.xtx, x.float())

    def merge(self, other: "Gram") -> "Gram":
        """The Gram of both lots of data."""
        return Gram(self.n + other.n, self.xtx + other.xtx, self.sum + other.sum)

    @property
    def mean(self) -> Float[Tensor, "i i"]:
        """XᵀX / n."""
        return self.xtx / max(self.n, 1)

    @property
    def power(self) -> Float[Tensor, " i"]:
        """E[x_j²]."""
        return self.xtx.diagonal() / max(self.n, 1)

    @property
    def center(self) -> Float[Tensor, " i"]:
        """E[x_j]."""
        return self.sum / max(self.n, 1)


class Guided(Gram):
    """XᵀΛX: a Gram in which each example counts by how strongly the end loss hangs on the layer's output there.

    Kim et al., GuidedQuant, ICML 2025, arXiv:2505.07004, eq. (5), with one group of outputs: λ_n ∝ mean over the
    outputs of (∂ℓ/∂y_n)², 1 on the average.
    """

    def see(self, x: Float[Tensor, "n i"], weight: Float[Tensor, " n"] | None = None) -> None:
        """Take in a batch; without weights all examples count alike."""
        super().see(x if weight is None else x * weight.sqrt().unsqueeze(1))

    @classmethod
    def zero(cls, inputs: int, device: torch.device | None = None) -> "Guided":
        """The Gram of no data."""
        return cls(0, torch.zeros(inputs, inputs, device=device), torch.zeros(inputs, device=device))

    @classmethod
    def blank(cls, inputs: int, device: torch.device | None = None) -> "Guided":
        """What to assume where there is no data: the identity."""
        return cls(1, torch.eye(inputs, device=device), torch.zeros(inputs, device=device))

    def merge(self, other: "Gram") -> "Guided":
        """The Gram of both lots of data."""
        return Guided(self.n + other.n, self.xtx + other.xtx, self.sum + other.sum)


@dataclass(slots=True)
class Fisher:
    """GᵀG of the gradients of the end loss at a layer's outputs, and their count: which errors of it go together.

    It is a statistic of the outputs: its features are the rows of the layer's matrix.
    """

    n: int
    ggt: Float[Tensor, "o o"]

    @classmethod
    def zero(cls, outputs: int, device: torch.device | None = None) -> "Fisher":
        """The statistic of no data."""
        return cls(0, torch.zeros(outputs, outputs, device=device))

    @classmethod
    def blank(cls, outputs: int, device: torch.device | None = None) -> "Fisher":
        """What to assume where there is no data: all outputs matter alike and have nothing to do with each other."""
        return cls(1, torch.eye(outputs, device=device))

    def see(self, g: Float[Tensor, "n o"]) -> None:
        """Take in the gradients of a batch."""
        g = g.float()
        self.n += g.shape[0]
        add_square(self.ggt, g)

    def merge(self, other: "Fisher") -> "Fisher":
        """The statistic of both lots of data."""
        return Fisher(self.n + other.n, self.ggt + other.ggt)

    @property
    def mean(self) -> Float[Tensor, "o o"]:
        """GᵀG / n."""
        return self.ggt / max(self.n, 1)

    @property
    def power(self) -> Float[Tensor, " o"]:
        """E[g_j²]."""
        return self.ggt.diagonal() / max(self.n, 1)
