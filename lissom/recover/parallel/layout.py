"""The layout: how the workers divide the work, as sizes of axes of one mesh.

    data     each has the whole model, and learns from its share of every batch (DistributedDataParallel)
    shard    each has a part of every parameter, gradient and state, and sees the whole of a block as it is run (FSDP2:
             Zhao et al., PVLDB 2023, arXiv:2304.11277)

Both: groups of `shard` workers have the model once, `data` times in all. Where training stands is written down whole,
whatever the layout: what one wrote another reads.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lissom.errors import ModelError, RecipeError, meant
from lissom.recover.checkpointing import blocks
from lissom.recover.parallel.workers import Workers

AXES = ("data", "shard")
WHOLE = ("adamw8", "muon")  # training algorithms that must see whole matrices
Layout = Mapping[str, int]


def read_layout(given: str) -> dict[str, int]:
    """A layout written as data=2,shard=4; empty is what all workers make along `data`.

    Raises:
        RecipeError: there is no such axis, or a size is none.
    """
    found: dict[str, int] = {}
    for part in filter(None, given.split(",")):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise RecipeError(f"parallel: {axis!r} is none of {', '.join(AXES)}{meant(axis, AXES)}")
        if not size.isdecimal() or not int(size):
            raise RecipeError(f"parallel: {part!r} is no size of an axis; write {axis}=2")
        found[axis] = int(size)
    return found


def check_layout(layout: Layout, team: Workers, optimizer: str, gradients: bool) -> None:
    """See that there are as many workers as the layout needs, and that all that is asked for goes with it.

    Raises:
        RecipeError: it does not.
    """
    need = 1
    for size in layout.values():
        need *= size
    if layout and need != team.count:
        shown = ",".join(f"{axis}={size}" for axis, size in layout.items())
        raise RecipeError(
            f"parallel: {shown} needs {need} workers, and there are {team.count}; start them with torchrun"
        )
    if layout.get("shard", 1) > 1 and optimizer in WHOLE:
        raise RecipeError(f"parallel: {optimizer} must see whole matrices, which shards are not; take adamw or data=")
    if layout.get("shard", 1) > 1 and gradients:
        raise RecipeError("parallel: gradients travel in few bits along data only; leave out gradients, or shard")


def parallelize(model: nn.Module, layout: Layout, team: Workers) -> None:
    """Lay a model out over the workers, in place; `data` alone leaves it whole, for DistributedDataParallel to wrap."""
    shard = layout.get("shard", 1)
    if shard == 1:
        return
    sizes = (team.count // shard, shard) if team.count > shard else (shard,)
    mesh = init_device_mesh(team.device.type, sizes, mesh_dim_names=("data", "shard")[-len(sizes) :])
    for block in sharded_apart(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # the root too: it may move before it is run again


def sharded_apart(model: nn.Module) -> list[nn.Module]:
    """The parts of which the whole is seen only while they run: the model's blocks, where it has such."""
    try:
        return blocks(model)
    except ModelError:
        return []


def is_sharded(model: nn.Module) -> bool:
    """Whether workers have parts of its parameters."""
    return isinstance(model, FSDPModule)


@torch.no_grad()
def gather(sharded: nn.Module, whole: nn.Module | None) -> None:
    """Put what a sharded model has into a whole one of the same structure; all workers must call it, some with None."""
    own = {} if whole is None else {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for name, tensor in (*sharded.named_parameters(), *sharded.named_buffers()):
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if whole is not None:
            own[name].copy_(full)
