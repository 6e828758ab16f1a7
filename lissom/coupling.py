"""Channels that several layers must agree on: whoever changes them in one layer changes them in all.

Shapes: c channels, o outputs and i inputs of a layer's matrix.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reader:
    """A layer that reads the channels: i / c consecutive columns each (the k·k of a convolution), and its bias.

    The last `others` of its i columns read something else. `at` says where in the layer each column was at first: None
    for as they are here.
    """

    matrix: Float[Tensor, "o i"]
    bias: Float[Tensor, " o"] | None = None
    others: int = 0
    at: Int[Tensor, " i"] | None = None

    def only(self, kept: Int[Tensor, " k"], matrix: Float[Tensor, "o k"] | None = None) -> "Reader":
        """Some of its columns, as they are or with other values."""
        return replace(
            self,
            matrix=self.matrix[:, kept] if matrix is None else matrix,
            at=None if self.at is None else self.at[kept],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coupling:
    """What makes the channels, and what reads them.

    `makers` are matrices, or vectors as matrices of one column (a bias, a norm's weight), of which r / c consecutive
    rows make a channel. `unit` consecutive channels live and die together (those of an attention head). `rotates` says
    that the channels of a unit meet nothing on their way but sums of themselves, so that a unit may be rotated. `kind`
    says what the channels are: plain "channels", whole "heads" of attention, the "width" of a residual stream with
    norms over it, or the "order" of one whose channels can do no more than change places. `alive` says which of the
    channels at first they are: None for all.
    """

    channels: int
    makers: tuple[Float[Tensor, "_ _"], ...]
    readers: tuple[Reader, ...]
    unit: int = 1
    rotates: bool = False
    kind: str = "channels"
    alive: Int[Tensor, " c"] | None = None

    def rescaled(self, s: Float[Tensor, " c"]) -> "Coupling":
        """Channels s times smaller, read s times larger: what the readers say stays the same."""
        makers = tuple(m / wide(s, m.shape[0]).unsqueeze(1) for m in self.makers)
        readers = tuple(replace(r, matrix=r.matrix * wide(s, r.matrix.shape[1])) for r in self.readers)
        return replace(self, makers=makers, readers=readers)

    def keeping(self, keep: Int[Tensor, " k"]) -> "Coupling":
        """Some of the channels only, in this order; what reads them is as it was, without the columns of the others."""
        makers = tuple(m[places(keep, self.channels, m.shape[0])] for m in self.makers)
        readers = tuple(r.only(columns(r, keep, self.channels)) for r in self.readers)
        alive = keep if self.alive is None else self.alive[keep]
        return replace(self, channels=len(keep), makers=makers, readers=readers, alive=alive)


def places(channels: Int[Tensor, " k"], of: int, size: int) -> Int[Tensor, " n"]:
    """The rows or columns of some of the channels, of which there are `of` on an axis of a size."""
    each = size // of
    return (channels.unsqueeze(1) * each + torch.arange(each, device=channels.device)).flatten()


def columns(r: Reader, channels: Int[Tensor, " k"], of: int) -> Int[Tensor, " n"]:
    """The columns of a reader for some of the channels, and those that read something else."""
    own = r.matrix.shape[1] - r.others
    others = torch.arange(own, own + r.others, device=channels.device)
    return torch.cat([places(channels, of, own), others])


def wide(s: Float[Tensor, " c"], size: int) -> Float[Tensor, " n"]:
    """A number for each channel, repeated for each of its rows or columns."""
    return s.repeat_interleave(size // s.shape[0])
