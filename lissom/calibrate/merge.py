"""Calibration on several processes: each sees its share of the data, and their statistics become those of all of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lissom.calibrate.observe import Collected, looks_up
from lissom.models import weight_of
from lissom.statistics import Fisher, Moments, Statistic

LARGEST = {(Moments, "largest")}  # of which the largest counts; all others are sums
NOT_MERGED = {"typical"}  # a help of each process by itself


def merge_layers(
    collected: dict[str, Collected],
    layers: Mapping[str, nn.Module],
    kinds: Mapping[str, set[type[Statistic]]],
    group: dist.ProcessGroup,
) -> None:
    """Let what each process has collected of these kinds be, in place and on every one, what all the data would give.

    What some processes gave nothing to (an expert of which only others had a token) they take over from those.
    """
    names = [name for name, own in kinds.items() if own and name in layers and not looks_up(layers[name])]
    some = torch.tensor([float(name in collected) for name in names])
    none = 1 - some
    reduce_all([some], group, dist.ReduceOp.MAX)
    reduce_all([none], group, dist.ReduceOp.MAX)
    if (some * none).any():  # then layers that share one statistic here may share none there
        for name in (name for name, seen in zip(names, some, strict=True) if seen):
            collected[name] = copy.deepcopy(collected[name]) if name in collected else empty(layers[name], kinds[name])
    merge_all((one for name in names if name in collected for one in collected[name].values()), group)


def empty(layer: nn.Module, kinds: set[type[Statistic]]) -> Collected:
    """Statistics of a layer that was given nothing."""
    weight = weight_of(layer)
    return {
        kind: kind.zero(weight.shape[1], weight.device) for kind in sorted(kinds - {Fisher}, key=lambda k: k.__name__)
    }


@torch.no_grad()
def merge_all(statistics: Iterable[Statistic], group: dist.ProcessGroup) -> None:
    """Let each statistic be, in place and on every process, what one would have that had seen the data of all.

    All processes give as many, of the same kinds, in the same order. One statistic after the other is summed over the
    processes, so that no more than one is held twice; the sums differ from those of one process as sums in another
    order do.
    """
    for statistic in {id(one): one for one in statistics}.values():
        merge(statistic, group)


def merge(statistic: Statistic, group: dist.ProcessGroup) -> None:
    """One statistic; of what is largest the largest, of all else the sum."""
    values = {field.name: getattr(statistic, field.name) for field in fields(statistic)}  # type: ignore[arg-type]
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and name not in NOT_MERGED}
    largest = {name for name in tensors if (type(statistic), name) in LARGEST}
    reduce_all([own for name, own in tensors.items() if name not in largest], group, dist.ReduceOp.SUM)
    reduce_all([tensors[name] for name in largest], group, dist.ReduceOp.MAX)
    number = torch.tensor(float(values["n"]), dtype=torch.float64)
    reduce_all([number], group, dist.ReduceOp.SUM)
    statistic.n = int(number)  # type: ignore[attr-defined]  # all of them count what they have seen


def union(found: set[str], names: Sequence[str], group: dist.ProcessGroup) -> set[str]:
    """What any process has found, of names that all have."""
    flags = torch.tensor([float(name in found) for name in names])
    reduce_all([flags], group, dist.ReduceOp.MAX)
    return {name for name, flag in zip(names, flags, strict=True) if flag}


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
