"""What the pieces of a step of recovery cost one device: by its rates, or as they were measured (`measured.py`).

A step is put together of these, and nothing else, by `recovery.py`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lissom.plan.collectives import gather_s, sum_s
from lissom.plan.device import Device, Link
from lissom.plan.forecast import Cost, work
from lissom.plan.shapes import Shapes

# Passes over float32 numbers, eight bytes each, counted in the code. Of each weight on a grid, forwards and backwards:
# divided, rounded, shifted, clamped, shifted back and multiplied (`TrainableAffine.forward`).
GRID_PASSES = 6
# Bytes of each number that moves: place 24, pull 12, cutting the norm 12, and AdamW 72 (`moving.py`, torch's AdamW).
MOVES = 120
CAST = 6  # bytes of each weight, to become 16 bits for a product


@runtime_checkable
class Pieces(Protocol):
    """Of windows of one length; `tensor` devices share each matrix, `windows` may be a fraction of one."""

    def forward(self, windows: float, tensor: int) -> Cost:
        """One block of what learns, with making its matrices from their format."""

    def backward(self, windows: float, tensor: int) -> Cost:
        """The way back through it."""

    def original(self, windows: float, tensor: int) -> Cost:
        """One block of the original, forwards."""

    def ends(self, windows: float, tensor: int) -> Cost:
        """Embedding, head and loss of both, and the way back."""

    def moves(self, blocks: float, shard: int) -> Cost:
        """Taking the step with what moves of so many blocks, in so many shards."""

    def share(self, numbers: float, n: int, link: Link, bits: float) -> float:
        """Seconds for the mean over n devices of so many gradients, written in so many bits."""

    def shard(self, numbers: float, n: int, link: Link, moving: float) -> float:
        """Seconds to gather so many parameters twice, and to scatter the sum of as many gradients as move of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """By the rates of a device.

    Args:
        device, shapes: of what.
        length: tokens of a window.
        moving: numbers of a block that move.
    """

    device: Device
    shapes: Shapes
    length: int
    moving: float

    def forward(self, windows: float, tensor: int) -> Cost:
        weights = self.shapes.block_weights / tensor
        made = work(self.device, 0, (8 * GRID_PASSES + CAST) * weights)
        return made + self.block(windows, tensor)

    def backward(self, windows: float, tensor: int) -> Cost:
        weights = self.shapes.block_weights / tensor
        made = work(self.device, 0, (8 * GRID_PASSES + CAST) * weights)
        return made + self.block(windows, tensor) * 2

    def original(self, windows: float, tensor: int) -> Cost:
        return self.block(windows, tensor)

    def block(self, windows: float, tensor: int) -> Cost:
        """A block forwards: its products, and the passes over what it keeps, written and read."""
        tokens = windows * self.length
        nbytes = self.shapes.touched_weights(tokens) * self.device.width / tensor
        products = work(self.device, tokens * self.shapes.block_flops(self.length) / tensor, nbytes)
        return products + work(self.device, 0, 2 * tokens * self.shapes.kept_bytes(self.device.width, tensor))

    def ends(self, windows: float, tensor: int) -> Cost:
        tokens, device = windows * self.length, self.device
        nbytes = self.shapes.vocabulary * self.shapes.hidden * device.width / tensor
        head = work(device, tokens * self.shapes.head_flops / tensor, nbytes)
        logits = work(device, 0, 8 * LOGIT_PASSES * tokens * self.shapes.vocabulary / tensor)
        return head * 3 + logits  # of both forwards, and of what learns to its input: heads do not move

    def moves(self, blocks: float, shard: int) -> Cost:
        """A step."""
        return work(self.device, 0, MOVES * self.moving * blocks / shard)

    def share(self, numbers: float, n: int, link: Link, bits: float) -> float:
        """A mean of gradients."""
        written = 0.0 if bits == 32 else work(self.device, 0, 4 * CODE_PASSES * numbers).seconds
        return sum_s(numbers * bits / 8, n, link) + (written if n > 1 else 0.0)

    def shard(self, numbers: float, n: int, link: Link, moving: float) -> float:
        return 2 * gather_s(4 * numbers, n, link) + gather_s(4 * moving, n, link)


LOGIT_PASSES = 10  # over the logits of both models: to float32, their logarithms, the divergence, and the way back
CODE_PASSES = 8  # over gradients that are written in few bits and read, twice each
