"""A step of recovery, foreseen: what learns forwards and backwards, the original forwards, the means, and the step.

    seconds = (m + p - 1) (stage of one part)  +  sync  +  moves

with m parts and p stages in 1F1B order, of which p - 1 are idle: a share (p - 1) / m of the others (Narayanan et al.
2021, arXiv:2104.04473, section 2.2). Sync, by axis:

    tensor     two sums forwards and two backwards of each block's outputs (Shoeybi et al. 2019, arXiv:1909.08053,
               section 3), and two forwards of the original where that is divided too; the ends are not divided
    pipeline   a stage's outputs forwards and their gradients backwards
    shard      of each part, parameters gathered twice and gradients scattered once: 1.5 times what `data` sends
               (Rajbhandari et al. 2019, arXiv:1910.02054, section 7.2)
    data       one mean of the gradients, in `bits` of 32

A device that overlaps hides what `shard` sends behind computing, and of `data` what the way back is long enough for.
Latent weights, what moves them, their gradients and the optimizer's state are float32, as in `recover/moving.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lissom.errors import RecipeError
from lissom.plan.collectives import gather_s, gathered_bytes, send_s, sum_s, summed_bytes
from lissom.plan.forecast import NOTHING, Cost, Forecast
from lissom.plan.pieces import Pieces
from lissom.plan.shapes import GRID, Shapes
from lissom.plan.split import Cluster, Split
from lissom.techniques.knobs import one_of

STATES: Mapping[str, int] = {  # bytes of each number that moves
    "sgd": 0,
    "momentum": 4,
    "nesterov": 4,
    "adagrad": 4,
    "rmsprop": 4,
    "adam": 8,
    "adamw": 8,
    "adamw8": 2,
    "lion": 4,
    "muon": 4,
    "schedulefree": 8,
    "sam": 8,
}
MOVED = (
    20  # bytes of each number that moves, beside its parameter: φ, where it began, its unit, its gradient, the best φ
)
LOGIT = 28  # bytes of each logit: both models' as float32, their logarithms, and two gradients
TRAIN = ("weights", "scales")
ORIGINALS = ("whole", "split", "remembered")
BITS: Mapping[str, float] = {  # of each gradient on the way: that of its code, and of scales in groups of 128
    "float32": 32,
    "int8": 8.25,
    "int4": 4.25,
    "ternary": 2.25,
    "sign": 1.25,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What is recovered, and how.

    Args:
        shapes: the model.
        batch: windows of a step, of all replicas together.
        length: tokens of a window.
        train: weights, or scales: what moves.
        optimizer: one of `STATES`.
        gradients: what they travel in along `data`, one of `BITS`.
        checkpointing: whether activations inside of blocks are computed again.
        original: whole on each device, as `lissom recover` has it; split like what learns; or remembered (top_k).
    """

    shapes: Shapes
    batch: int
    length: int
    train: str = "weights"
    optimizer: str = "adamw"
    gradients: str = "float32"
    checkpointing: bool = False
    original: str = "whole"
    group: int = 64

    def __post_init__(self) -> None:
        one_of(TRAIN, train=self.train)
        one_of(tuple(STATES), optimizer=self.optimizer)
        one_of(tuple(BITS), gradients=self.gradients)
        one_of(ORIGINALS, original=self.original)
        if self.batch < 1 or self.length < 2:
            raise RecipeError(f"plan: batch {self.batch} of {self.length} tokens; give 1 and 2 of them at least")

    @property
    def moving(self) -> float:
        """Numbers of a block that move: latent weights and a scale for each group, or the scales."""
        scales = self.shapes.block_weights / self.group
        return scales + (self.shapes.block_weights if self.train == "weights" else 0)

    @property
    def held(self) -> float:
        """Parameters of a block, in float32, whether they move or not."""
        return self.shapes.block_weights * (1 + 1 / self.group)


def foresee(job: Recovery, split: Split, cluster: Cluster, pieces: Pieces) -> Forecast:
    """A step, divided like that."""
    windows = job.batch / split.replicas / split.parts
    forwards, backwards = ways(job, windows, split.tensor, pieces)
    ends = pieces.ends(windows, 1)
    block = forwards + backwards + originals(job, windows, split, pieces)
    if job.original == "whole":  # the last stage runs all of it
        ends += original(job, windows, 1, pieces) * job.shapes.blocks
    first, last = stages(job.shapes.blocks, split.pipeline, block.seconds, ends.seconds)
    early, late = block * first, block * last + ends
    stage, most = max(early, late, key=lambda one: one.seconds), max(first, last)
    sync, traffic = told(job, split, cluster, pieces, windows, most)
    moves = pieces.moves(most / split.tensor, split.shard)
    cost = stage * split.parts + moves
    behind = {"shard": stage.seconds * split.parts, "data": backwards.seconds * most}
    hidden = hide(sync, behind if cluster.device.overlaps else {}, most)
    each = stage.seconds + (hidden.get("tensor", 0) + hidden.get("pipeline", 0)) / split.parts
    flops = job.batch * job.length * least_flops(job)
    return Forecast(
        split=split,
        cost=cost,
        sync=hidden,
        idle=(split.pipeline - 1) * each,
        memory=memory(job, split, windows, cluster.device.width, most),
        traffic=traffic,
        tokens=job.batch * job.length,
        roofline=flops / (cluster.device.flops * split.devices),
    )


def stages(blocks: int, pipeline: int, block: float, ends: float) -> tuple[int, int]:
    """How many blocks the first stage has, and the last, which has the ends too, so that the slower is soonest done.

    `block` and `ends` are seconds. What the stages before the last have differs by one block at most.
    """
    if pipeline == 1:
        return blocks, blocks
    ways = [(-(-(blocks - last) // (pipeline - 1)), last) for last in range(blocks // pipeline + 1)]
    return min(ways, key=lambda way: (max(way[0] * block, way[1] * block + ends), -way[1]))


def ways(job: Recovery, windows: float, tensor: int, pieces: Pieces) -> tuple[Cost, Cost]:
    """A block of what learns, forwards, and backwards with what is computed again."""
    forward = pieces.forward(windows, tensor)
    return forward, pieces.backward(windows, tensor) + (forward if job.checkpointing else NOTHING)


def original(job: Recovery, windows: float, tensor: int, pieces: Pieces) -> Cost:
    """A block of the original, where it runs."""
    return NOTHING if job.original == "remembered" else pieces.original(windows, tensor)


def originals(job: Recovery, windows: float, split: Split, pieces: Pieces) -> Cost:
    """A block of the original, where it is divided as what learns is."""
    return original(job, windows, split.tensor, pieces) if job.original == "split" else NOTHING


def least_flops(job: Recovery) -> float:
    """Operations for each token: forwards and backwards of what learns, forwards of the original."""
    forward = job.shapes.model_flops(job.length)
    back = 2 * job.shapes.blocks * job.shapes.block_flops(job.length) + job.shapes.head_flops  # the head does not move
    return forward + back + (0 if job.original == "remembered" else forward)


def told(
    job: Recovery, split: Split, cluster: Cluster, pieces: Pieces, windows: float, blocks: int
) -> tuple[dict[str, float], dict[str, float]]:
    """What is sent in a step by a device with so many blocks: seconds and bytes, by axis."""
    sync, traffic = {}, {}
    output = windows * job.length * job.shapes.hidden * cluster.device.width
    own, both = blocks / split.tensor, job.original == "split"
    if split.tensor > 1:
        sums = split.parts * blocks * (4 + 2 * both + 2 * job.checkpointing)
        sync["tensor"] = sums * sum_s(output, split.tensor, cluster.link(split, "tensor"))
        traffic["tensor"] = sums * summed_bytes(output, split.tensor)
    if split.pipeline > 1:
        sends = split.parts * (2 + both)
        sync["pipeline"] = sends * send_s(output, cluster.link(split, "pipeline"))
        traffic["pipeline"] = sends * output
    if split.shard > 1:
        moving, held = job.moving * own, job.held * own
        ends = job.shapes.end_weights if split.pipeline == 1 else job.shapes.end_weights / 2
        link = cluster.link(split, "shard")
        parts = split.parts * blocks
        sync["shard"] = parts * pieces.shard(held / blocks, split.shard, link, moving / blocks)
        sync["shard"] += split.parts * pieces.shard(ends, split.shard, link, 0)
        traffic["shard"] = split.parts * gathered_bytes(4 * (2 * (held + ends) + moving), split.shard)
        if both:
            weights = (blocks * job.shapes.block_weights / split.tensor + ends) * job.shapes.original_bits / 8
            sync["shard"] += split.parts * gather_s(weights, split.shard, link)
            traffic["shard"] += split.parts * gathered_bytes(weights, split.shard)
    if split.data > 1:
        numbers, bits = job.moving * own / split.shard, BITS[job.gradients]
        sync["data"] = pieces.share(numbers, split.data, cluster.link(split, "data"), bits)
        traffic["data"] = summed_bytes(numbers * bits / 8, split.data)
    return sync, traffic


def hide(sync: Mapping[str, float], behind: Mapping[str, float], blocks: int) -> dict[str, float]:
    """What is waited for, of what is sent while as many seconds are computed: never less than one block's part."""
    return {axis: max(s - behind.get(axis, 0.0), s / blocks if axis in behind else s) for axis, s in sync.items()}


def memory(job: Recovery, split: Split, windows: float, width: int, most: int) -> dict[str, float]:
    """Bytes of the fullest device, which has the most blocks, by what they hold."""
    shapes = job.shapes
    weights = most * shapes.block_weights / split.tensor
    ends = shapes.end_weights / (1 if split.pipeline == 1 else 2 - shapes.tied)
    moving, held = (most * each / split.tensor for each in (job.moving, job.held))
    flying = min(split.pipeline, split.parts)  # parts on their way: 1F1B has no more
    tokens = windows * job.length
    found = {
        "parameters": 4 * (held + ends) / split.shard,
        "moving": (MOVED + STATES[job.optimizer]) * moving / split.shard,
        "made from the format": (GRID + width) * weights * (1 / most if job.checkpointing else flying),
        "activations": flying
        * tokens
        * most
        * (4 * shapes.hidden if job.checkpointing else shapes.kept_bytes(width, split.tensor)),
        "logits": (LOGIT + width) * tokens * shapes.vocabulary,
    }
    if job.checkpointing:
        found["activations"] += tokens * shapes.kept_bytes(width, split.tensor)
    if split.shard > 1:
        found["gathered"] = 4 * (2 * held / most + ends)
    elif split.data > 1:
        found["buckets"] = 4 * moving
    whole = shapes.weights * shapes.original_bits / 8
    parts = {"whole": whole, "split": whole / (split.tensor * split.pipeline * split.shard), "remembered": 0.0}
    found["original"] = parts[job.original]
    return found
