"""The splits: every way to divide a number of devices over the axes, and which link each axis then uses.

    data       replicas, each with its share of every batch
    shard      as data, but each has a part of every parameter, gradient and state (FSDP2; ZeRO 3)
    tensor     each has a part of every matrix (Megatron)
    pipeline   each has some of the blocks

Axes are laid out from the inside of a node outwards: tensor, shard, data, pipeline, for that is the order of how much
they have to tell (Narayanan et al. 2021, arXiv:2104.04473, section 3: tensor inside of a node, pipeline between).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from lissom.errors import RecipeError
from lissom.plan.device import Device, Link
from lissom.plan.shapes import Shapes

AXES = ("data", "shard", "tensor", "pipeline")
INWARDS = ("tensor", "shard", "data", "pipeline")  # from the inside of a node outwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The sizes of the axes, and how many parts (microbatches) the batch of each replica is run in."""

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    parts: int = 1

    @property
    def devices(self) -> int:
        """How many it takes."""
        return prod(getattr(self, axis) for axis in AXES)

    @property
    def replicas(self) -> int:
        """Among how many the examples of a batch are shared."""
        return self.data * self.shard

    def __str__(self) -> str:
        sizes = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return ",".join(sizes) or "data=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices of one kind, so many in a node; `outside` is what each can send to other nodes."""

    device: Device
    count: int
    node: int
    outside: Link

    def __post_init__(self) -> None:
        if self.count < 1 or self.node < 1:
            raise RecipeError(f"devices: {self.count}, {self.node} in a node; give at least one of both")
        if self.count % self.node and self.count > self.node:
            raise RecipeError(
                f"node: {self.node} devices in a node do not divide {self.count}; give a divisor, or "
                f"{-(-self.count // self.node) * self.node} devices"
            )

    def link(self, split: Split, axis: str) -> Link:
        """The slowest link of an axis: that inside of a node as long as the axis and all within it fit in one."""
        reach = prod(getattr(split, name) for name in INWARDS[: INWARDS.index(axis) + 1])
        return self.device.inside if reach <= self.node and self.node % reach == 0 else self.outside


def divisors(n: int) -> list[int]:
    """All of them, the smallest first."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def splits(count: int) -> Iterator[Split]:
    """Every way to divide so many devices over the four axes."""
    for tensor in divisors(count):
        for pipeline in divisors(count // tensor):
            replicas = count // tensor // pipeline
            for shard in divisors(replicas):
                yield Split(data=replicas // shard, shard=shard, tensor=tensor, pipeline=pipeline)


def misfit(split: Split, shapes: Shapes, batch: int) -> str:
    """Why a model of these shapes, and a batch of so many examples, cannot be split like that; empty where it can."""
    if split.pipeline > shapes.blocks:
        return f"pipeline is more than {shapes.blocks} blocks"
    if any(size % split.tensor for size in (shapes.heads, *shapes.widths)):
        return f"tensor does not divide {shapes.heads} heads and {' and '.join(map(str, shapes.widths))} neurons"
    if split.tensor > shapes.kv_heads and split.tensor % shapes.kv_heads:
        return f"tensor does not share {shapes.kv_heads} heads of keys and values"
    if batch % split.replicas:
        return f"data times shard does not divide a batch of {batch}"
    return ""
