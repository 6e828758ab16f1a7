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


@runtime_checkable
class Statistic(Protocol):
    """What a technique may ask calibration for."""

    @classmethod
    def zero(cls, inputs: int) -> Self:
        """The statistic of no data."""
        ...

    @classmethod
    def blank(cls, inputs: int) -> Self:
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
    def zero(cls, inputs: int) -> "Moments":
        """Moments of no data."""
        return cls(0, torch.zeros(inputs), torch.zeros(inputs), torch.zeros(inputs))

    @classmethod
    def blank(cls, inputs: int) -> "Moments":
        """What to assume where there is no data: features of mean 0 and size 1."""
        return cls(1, torch.zeros(inputs), torch.ones(inputs), torch.ones(inputs))

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


@dataclass(slots=True)
class Gram:
    """XᵀX and its count: how the input features go together.

    The output error of replacing W by V is tr((W-V) XᵀX (W-V)ᵀ); every data-aware technique reads it.
    """

    n: int
    xtx: Float[Tensor, "i i"]

    @classmethod
    def zero(cls, inputs: int) -> "Gram":
        """The Gram of no data."""
        return cls(0, torch.zeros(inputs, inputs))

    @classmethod
    def blank(cls, inputs: int) -> "Gram":
        """What to assume where there is no data: the identity."""
        return cls(1, torch.eye(inputs))

    def see(self, x: Float[Tensor, "n i"]) -> None:
        """Take in a batch."""
        x = x.float()
        self.n += x.shape[0]
        self.xtx.addmm_(x.T, x)

    def merge(self, other: "Gram") -> "Gram":
        """The Gram of both lots of data."""
        return Gram(self.n + other.n, self.xtx + other.xtx)

    @property
    def mean(self) -> Float[Tensor, "i i"]:
        """XᵀX / n."""
        return self.xtx / max(self.n, 1)

    @property
    def power(self) -> Float[Tensor, " i"]:
        """E[x_j²]."""
        return self.xtx.diagonal() / max(self.n, 1)
