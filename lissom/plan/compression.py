"""Compression, foreseen: the data once forwards to be seen, the sums of what was seen, and the sweep over the columns.

Calibration is data parallel: each device looks at its share of the windows, a block at a time, and the Grams XᵀX of the
inputs of its layers are summed over all (`calibrate/merge.py`). Then each device does the same sweep, for all get the
same model: that part does not become shorter (Amdahl). Of a layer of o outputs and i inputs, for t tokens:

    seeing      2 t o i  to go through it, and as much again compressed;  2 t i²  for the Gram
    sweep       i³ to invert it by Cholesky's decomposition, o i² for GPTQ's error feedback (arXiv:2210.17323)
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lissom.errors import RecipeError
from lissom.plan.collectives import sum_s, summed_bytes
from lissom.plan.forecast import NOTHING, Cost, Forecast, work
from lissom.plan.shapes import Shapes
from lissom.plan.split import Cluster, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What is compressed, by how many windows of how many tokens."""

    shapes: Shapes
    batch: int
    length: int

    def __post_init__(self) -> None:
        if min(self.batch, self.length) < 1:
            raise RecipeError(f"plan: batch {self.batch} of length {self.length}; give at least one of both")


def inputs(shapes: Shapes) -> Iterator[tuple[int, float, float]]:
    """Those that layers of a block share: features, outputs of all that read them, and how many there are of a kind."""
    h, dense = shapes.hidden, (shapes.blocks - shapes.sparse) / shapes.blocks
    mixed = shapes.heads * shapes.head_dim
    yield h, mixed + 2 * shapes.kv_heads * shapes.head_dim, 1.0
    yield mixed, h, 1.0
    if dense:
        yield h, 2 * shapes.inner, dense
        yield shapes.inner, h, dense
    if shapes.sparse:
        experts = shapes.experts * (1 - dense)
        yield h, 2 * shapes.expert_inner, experts
        yield shapes.expert_inner, h, experts


def foresee(job: Compression, split: Split, cluster: Cluster) -> Forecast:
    """All of it, block after block."""
    shapes, device = job.shapes, cluster.device
    tokens = job.batch * job.length / split.data
    passing = work(device, tokens * shapes.block_flops(job.length), shapes.block_weights * device.width) * 2
    seen, swept, grams = NOTHING, NOTHING, 0.0
    for i, o, count in inputs(shapes):
        share = 1.0 if count <= 1 else shapes.chosen / shapes.experts  # of the tokens that come to an expert
        seen += work(device, 2 * tokens * share * i * i, 4 * i * i) * count
        swept += work(device, i**3 + o * i * i, 4 * (i * i + 2 * o * i)) * count
        grams += 4.0 * i * i * count
    sync = sum_s(grams, split.data, cluster.link(split, "data")) * shapes.blocks
    cost: Cost = (passing + seen + swept) * shapes.blocks
    hidden = 2 * tokens * shapes.hidden * device.width
    return Forecast(
        split=split,
        cost=cost,
        sync={"data": sync} if split.data > 1 else {},
        traffic={"data": summed_bytes(grams, split.data) * shapes.blocks} if split.data > 1 else {},
        memory={
            "a block": 2 * 4 * shapes.block_weights,
            "Grams": 2 * grams,
            "hidden states": hidden,
            "activations": 2 * job.length * shapes.kept_bytes(device.width),
        },
        tokens=job.batch * job.length,
        roofline=2
        * shapes.blocks
        * job.batch
        * job.length
        * shapes.block_flops(job.length)
        / (device.flops * split.devices),
    )
