"""The wire: a group of processes that counts the bytes that it is given to send.

Of n processes each sends, of what it hands over, to all others together: in an exchange of everybody's parts the n - 1
parts that are not its own; in a gathering what it has, n - 1 times, whether by itself or by those who pass it on; in a
sum, by a ring, 2 (n - 1) / n of it (Patarasuk, Yuan, JPDC 2009).
"""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Meter:
    """Bytes that this process has sent, and those that it would have sent in float32."""

    sent: int = 0
    plain: int = 0

    @property
    def ratio(self) -> float:
        """How many times fewer."""
        return self.plain / self.sent if self.sent else 1.0

    def __str__(self) -> str:
        return f"{self.sent / 1e6:.1f} MB sent, {self.ratio:.1f} times less than in float32"


class Wire(dist.ProcessGroup):
    """Another group, with a meter."""

    def __init__(self, group: dist.ProcessGroup, meter: Meter) -> None:
        super().__init__(group.rank(), group.size())  # type: ignore[call-arg]  # as for groups of one's own
        self.group, self.meter, self.others = group, meter, group.size() - 1

    def exchanged(self, rows: Tensor) -> Tensor:
        """Row r goes to process r; what has come, row r from process r."""
        come = rows.new_empty(rows.shape)
        self.meter.sent += rows[:1].nbytes * self.others
        self.group.alltoall_base(come, rows.contiguous(), [], []).wait()
        return come

    def gathered(self, row: Tensor) -> Tensor:
        """The rows of all processes, one behind the other."""
        come = row.new_empty((self.size(), *row.shape))
        self.meter.sent += row.nbytes * self.others
        self.group._allgather_base(come.flatten(), row.contiguous().flatten()).wait()
        return come

    def allreduce(self, tensors: Any, *options: Any) -> Any:
        """The sum of all processes' tensors, in their place; for those who use it as any other group.

        It is waited for: what PyTorch's PowerSGD does next it does in the thread that ends the sum, and waits there for
        more sums, so that with several buckets under way all of gloo's threads would wait.
        """
        self.meter.sent += summed(sum(tensor.nbytes for tensor in tensors), self.size())
        work = self.group.allreduce(tensors, *options)
        work.wait()
        return work


def summed(nbytes: int, n: int) -> int:
    """Bytes that each of n processes sends for a sum."""
    return 2 * (n - 1) * nbytes // n
