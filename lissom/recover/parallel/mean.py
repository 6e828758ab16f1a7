"""The mean of what all processes have, in two shots, so that what travels is written in a code both times.

Each process writes its numbers in n parts and sends one to each; each reads those of its part, takes their mean, writes
that anew, and sends it to all. So the bytes are those of a sum by a ring, times the code's bits over the numbers' own
(in one shot, all gathering from all, they would grow with n). What the second writing loses is added to the next mean,
where the code forgets: error feedback on both ways, as in Tang et al., DoubleSqueeze, ICML 2019, arXiv:1905.05957,
algorithm 1.

Shapes: d numbers, n processes, c numbers of a part.
"""

from collections.abc import Hashable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lissom.recover.parallel.codes import Code
from lissom.recover.parallel.wire import Wire


class Mean:
    """Means over the processes of a wire, written in a code."""

    def __init__(self, wire: Wire, code: Code, *, seed: int = 0) -> None:
        self.wire, self.code, self.seed = wire, code, seed
        self.draw: torch.Generator | None = None
        self.owed: dict[Hashable, Tensor] = {}

    def of(self, x: Float[Tensor, " d"], name: Hashable) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The mean of all processes' numbers, equal on all of them to the bit, and what writing lost of this one's own.

        What is lost here of the mean is added to the next of the same name and length.
        """
        n, d = self.wire.size(), len(x)
        c = -(-d // (n * self.code.align)) * self.code.align
        rows = pad(x.float(), (0, n * c - d)).view(n, c)
        draw = self.lots(x.device)
        written = self.code.encode(rows, draw)
        lost = rows - self.code.decode(written, c)
        mine = self.code.decode(self.wire.exchanged(written), c).mean(0, keepdim=True)
        owed = self.owed.get(name)
        if owed is not None and owed.shape == mine.shape:
            mine += owed
        again = self.code.encode(mine, draw)
        if self.code.forgets:
            self.owed[name] = finite(mine - self.code.decode(again, c))
        mean = self.code.decode(self.wire.gathered(again[0]), c)
        return mean.flatten()[:d], lost.flatten()[:d]

    def lots(self, device: torch.device) -> torch.Generator:
        """What is drawn with, by each process differently."""
        if self.draw is None:
            self.draw = torch.Generator(device).manual_seed(self.seed * self.wire.size() + self.wire.rank())
        return self.draw


def finite(x: Tensor) -> Tensor:
    """With zeros where it is not: what is no number is seen at once, and not remembered."""
    return torch.where(x.isfinite(), x, 0.0)
