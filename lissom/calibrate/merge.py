"""Calibration on several processes: each sees its share of the data, and their statistics become those of all of it."""

from collections.abc import Iterable
from dataclasses import fields

import torch
import torch.distributed as dist
from torch import Tensor

from lissom.statistics import Moments, Statistic

LARGEST = {(Moments, "largest")}  # of which the largest counts; all others are sums
NOT_MERGED = {"typical"}  # a help of each process by itself


@torch.no_grad()
def merge_all(statistics: Iterable[Statistic], group: dist.ProcessGroup) -> None:
    """Let each statistic be, in place and on every process, what one would have that had seen the data of all.

    All processes give as many, of the same kinds, in the same order. It is one sum over the processes of all that is
    added up, and one maximum of the rest; the sums differ from those of one process as sums in another order do.
    """
    sums, most = list[Tensor](), list[Tensor]()
    counted = list[tuple[Statistic, Tensor]]()
    for statistic in {id(one): one for one in statistics}.values():
        for field in fields(statistic):  # type: ignore[arg-type]  # all of them are dataclasses
            value = getattr(statistic, field.name)
            if field.name in NOT_MERGED:
                continue
            if isinstance(value, Tensor):
                (most if (type(statistic), field.name) in LARGEST else sums).append(value)
            else:
                counted.append((statistic, torch.tensor(float(value), dtype=torch.float64)))
    reduce_all(sums, group, dist.ReduceOp.SUM)
    reduce_all(most, group, dist.ReduceOp.MAX)
    numbers = [number for _, number in counted]
    reduce_all(numbers, group, dist.ReduceOp.SUM)
    for statistic, number in counted:
        statistic.n = int(number)  # type: ignore[attr-defined]  # the one number that they have


def reduce_all(tensors: list[Tensor], group: dist.ProcessGroup, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduce tensors of one type over all processes, in place and as one."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(operation)
    group.allreduce([flat], options).wait()
    for tensor, found in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(found.view(tensor.shape))
