"""A model laid out over workers: what each has of it, and how what they have is put together again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from lissom.compress.layers import evaluating
from lissom.errors import ModelError
from lissom.hardware.machine import memory_bytes
from lissom.recover.checkpointing import blocks
from lissom.recover.feed import Lot
from lissom.recover.lessons import Lesson
from lissom.recover.parallel.cut import cut, measured
from lissom.recover.parallel.layout import Layout, sizes_of
from lissom.recover.parallel.pieces import Piece, Pieces, alike, assembled, exchanged, united
from lissom.recover.parallel.pipeline import Pipeline, parts_of, places
from lissom.recover.parallel.stages import chain_of
from lissom.recover.parallel.tensor import cut_model
from lissom.recover.parallel.workers import ALONE, Kept, Workers, local
from lissom.recover.training import Training


@dataclass(slots=True, kw_only=True)
class Laid:
    """What this worker has of a model.

    `pieces` says which part of a tensor is here where it is not the whole, and `absent` which parameters are not here.
    The gradients of `shared` ones are on each worker of a group its part of a sum. `everyone` has the pieces of all
    workers. Those of one replica have the model together.
    """

    model: nn.Module
    team: Workers = ALONE
    mesh: DeviceMesh | None = None
    pieces: Pieces = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    shared: Mapping[str, list[dist.ProcessGroup]] = field(default_factory=dict)
    copies: Mapping[str, int] = field(default_factory=dict)
    everyone: Sequence[Pieces] = ()
    pipeline: Pipeline | None = None

    def size(self, axis: str) -> int:
        """How many workers there are along an axis."""
        return 1 if self.mesh is None else self.mesh[axis].size()

    def rank(self, axis: str) -> int:
        """Which of them this one is."""
        return 0 if self.mesh is None else self.mesh[axis].get_local_rank()

    @property
    def replicas(self) -> int:
        """How many there are, each of which learns from its share of every batch."""
        return self.size("data") * self.size("shard")

    @property
    def replica(self) -> int:
        """The one that this worker belongs to."""
        return self.rank("data") * self.size("shard") + self.rank("shard")

    @property
    def divided(self) -> bool:
        """Whether a replica is several workers'."""
        return self.size("pipeline") * self.size("tensor") > 1

    @property
    def sharded(self) -> bool:
        """Whether parameters are DTensors of FSDP."""
        return self.size("shard") > 1

    def part(self) -> None:
        """Let go of all that speaks to other workers, while they are still there."""
        self.mesh, self.pipeline, self.shared = None, None, {}

    def share(self, lot: Lot) -> Lot:
        """This worker's share of a batch."""
        return lot.share(self.replica, self.replicas)

    def parts(self) -> list[nn.Module]:
        """What of the model is here."""
        return [self.model] if self.pipeline is None else list(self.pipeline.bare.values())

    def spread(self, *, unused: bool) -> list[DistributedDataParallel]:
        """Wrap what is here for the workers along `data`; what is run from now on is that."""
        if self.mesh is None or self.size("data") == 1 or self.sharded:
            return []
        group = self.mesh["data"].get_group()
        wrapped = [
            DistributedDataParallel(part, process_group=group, find_unused_parameters=unused) for part in self.parts()
        ]
        if self.pipeline is not None:
            self.pipeline.stages = dict(zip(self.pipeline.bare, wrapped, strict=True))
            self.pipeline.known.clear()  # schedules that run them as they were
        return wrapped

    def placed(self, name: str, value: Any, p: Tensor) -> Any:
        """What belongs here of what is held of a parameter: of a tensor that is as the whole one is, its part."""
        if not isinstance(value, Tensor):
            return value
        piece = self.pieces.get(name)
        own = piece.of(value) if piece is not None and tuple(value.shape) == piece.shape else value
        return alike(own, p) if own.shape == p.shape else own

    def sum(self, named: Mapping[str, Parameter]) -> None:
        """Sum the gradients of what several workers have a part of the sum of."""
        for name, groups in self.shared.items():
            if name not in named:
                continue
            p = named[name]
            for group in groups:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad, group=group)

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of all gradients, those on other workers of this replica among them."""
        squares = [whole(g.square().sum()) / self.copies.get(name, 1) for name, g in gradients.items()]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self.team.device)
        for axis in ("tensor", "pipeline"):
            if self.mesh is not None and self.size(axis) > 1:
                dist.all_reduce(total, group=self.mesh[axis].get_group())
        return total.sqrt()

    def assembled(self, state: Any, tensors: dict[str, Tensor]) -> Kept:
        """What all workers have packed, as one alone has it; all must call it."""
        if not self.divided:
            return state, tensors
        told = self.team.gathered(None if self.replica else (state, tensors))
        parts = [(kept, own) for kept, own in zip(told, self.everyone, strict=True) if kept is not None]
        tensors = assembled([kept[1] for kept, _ in parts], [own for _, own in parts])
        return united([kept[0] for kept, _ in parts]), tensors


def lay(model: nn.Module, layout: Layout, team: Workers, *, training: Training, lesson: Lesson, lot: Lot) -> Laid:
    """Lay a model out over the workers, in place; `lot` is a batch such as all learn from.

    Raises:
        ModelError, RecipeError, DataError: it cannot be laid out so.
    """
    if team.count == 1:
        return Laid(model=model)
    # 1. who is where
    sizes = sizes_of(layout, team)
    mesh = init_device_mesh(team.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    found = Laid(model=model, team=team, mesh=mesh)
    names = {id(p): name for name, p in model.named_parameters()}
    shared: dict[str, list[dist.ProcessGroup]] = {}
    # 2. each block's heads and neurons
    if found.size("tensor") > 1:
        parted = cut_model(model, mesh["tensor"])
        found.pieces, found.absent = parted.pieces, frozenset(parted.absent)
        shared = {name: [mesh["tensor"].get_group()] for name in sorted(parted.shared)}
        names = {id(p): name for name, p in model.named_parameters()}
    # 3. the stages, as even as they were measured to be
    if found.size("pipeline") > 1:
        stages = staged(found, training, lesson, found.share(lot))
        for name, groups in across(found, stages, names).items():
            shared.setdefault(name, []).extend(groups)
        found.absent |= leave(found)
    # 4. parts of all parameters that are here
    if found.sharded:
        for part in found.parts():
            shard(part, mesh["data", "shard"] if found.size("data") > 1 else mesh["shard"])
    # 5. what the others have
    found.shared = shared
    found.everyone, found.copies = told(found)
    return found


def staged(found: Laid, training: Training, lesson: Lesson, share: Lot) -> list[nn.Module]:
    """Cut the model into stages, and put this worker's into a pipeline; all of them, in their order."""
    assert found.mesh is not None
    mesh = found.mesh["pipeline"]
    where = places(training.stages, mesh.size())
    parts = parts_of(share, training.accumulate, len(where))
    with evaluating(found.model), training.products(found.team.device):  # as it learns, and without a trace of it
        chain = chain_of(found.model, parts[0].batch)
        costs = measured(chain, chain.inputs(parts[0].batch), lambda said: lesson.far(said, parts[0]))
    ends = cut(costs, len(where), room(found.team), len(parts))
    ends = [int(found.team.agreed(end)) for end in ends]  # by what the first one has measured
    stages = [chain.stage(a, b) for a, b in pairwise(ends)]
    own = {number: stage for number, stage in enumerate(stages) if where[number] == mesh.get_local_rank()}
    found.pipeline = Pipeline(chain, own, mesh, training.stages)
    return stages


def room(team: Workers) -> float:
    """The bytes that each worker of this machine can have."""
    if team.device.type == "cuda":
        return float(torch.cuda.get_device_properties(team.device).total_memory)
    return memory_bytes() / local()


def across(found: Laid, stages: Sequence[nn.Module], names: Mapping[int, str]) -> dict[str, list[dist.ProcessGroup]]:
    """Of parameters that are in stages of several workers, as of tied layers, the group of these workers."""
    assert found.mesh is not None
    assert found.pipeline is not None
    holders: dict[str, set[int]] = {}
    for stage, place in zip(stages, found.pipeline.where, strict=True):
        for p in stage.parameters():
            holders.setdefault(names[id(p)], set()).add(place)
    several = {name: sorted(own) for name, own in holders.items() if len(own) > 1}
    lines = found.mesh.mesh.flatten(1).T.tolist()  # the workers along `pipeline`, for each place on the other axes
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for own in sorted({tuple(own) for own in several.values()}):
        for line in lines:
            group = dist.new_group([line[place] for place in own])
            if found.team.rank in [line[place] for place in own]:
                groups[own] = group
    return {name: [groups[tuple(own)]] for name, own in sorted(several.items()) if tuple(own) in groups}


def leave(found: Laid) -> frozenset[str]:
    """Give back the memory of all parameters that no stage here has; their names."""
    here = {id(p) for part in found.parts() for p in part.parameters()}
    away = {name: p for name, p in found.model.named_parameters() if id(p) not in here}
    for p in away.values():
        p.requires_grad_(False)
        p.data = p.data.new_empty(0)
    return frozenset(away)


def shard(part: nn.Module, mesh: DeviceMesh) -> None:
    """Let workers keep a part of each parameter; a model's blocks are seen whole one by one."""
    for block in sharded_apart(part):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(part, mesh=mesh, reshard_after_forward=True)  # the root too: it may move before it is run again


def sharded_apart(model: nn.Module) -> list[nn.Module]:
    """The parts of which the whole is seen only while they run: the model's blocks, where it has such."""
    try:
        return blocks(model)
    except ModelError:
        return []


def told(found: Laid) -> tuple[list[dict[str, Piece]], dict[str, int]]:
    """The pieces of all workers, and how many of a replica have each parameter of this one's that is whole."""
    here = [name for name, _ in found.model.named_parameters() if name not in found.absent]
    several = exchanged(found.pieces, here, found.replica, found.team)
    mates = [set(names) for _, names, replica in several if replica == found.replica]
    copies = {name: sum(name in names for names in mates) for name in here if name not in found.pieces}
    return [pieces for pieces, _, _ in several], copies


def whole(x: Tensor) -> Tensor:
    """A tensor, of all workers that have parts of it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


@torch.no_grad()
def gather(laid: Laid, fresh: nn.Module | None) -> None:
    """Put what workers have into a whole model of the same structure; all must call it, some with None."""
    tensors = {name: whole(tensor).detach() for name, tensor in held(laid)}
    _, found = laid.assembled(None, tensors)
    if fresh is None:
        return
    # what is tied has several names
    own: dict[str, Tensor] = dict(fresh.named_parameters(remove_duplicate=False))
    own |= dict(fresh.named_buffers(remove_duplicate=False))
    for name, tensor in found.items():
        own[name].copy_(tensor)


def held(laid: Laid) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that are here, by name."""
    modules = {id(module) for part in laid.parts() for module in part.modules()}
    for prefix, module in laid.model.named_modules():
        if id(module) in modules or laid.pipeline is None:
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                yield f"{prefix}.{name}".strip("."), tensor
