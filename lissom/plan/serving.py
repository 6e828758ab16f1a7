"""Serving, foreseen: reading the prompts, and then a token for each of them at every step.

Pope et al. 2022, arXiv:2211.05102, section 2: a step takes the longer of its products, and of reading every weight and
all keys and values once; each block's two outputs are summed over `tensor` (section 3.2.1). Over `pipeline` the
sequences go in as many groups as there are stages, so that each stage reads its weights for each group.
"""

from dataclasses import dataclass, replace

from lissom.errors import RecipeError
from lissom.plan.collectives import send_s, sum_s, summed_bytes
from lissom.plan.device import Link
from lissom.plan.forecast import Forecast, work
from lissom.plan.shapes import Shapes
from lissom.plan.split import Cluster, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is served.

    Args:
        shapes: the model, whose weights are stored in so many bits.
        batch: sequences at once, of all replicas together.
        length: tokens of a prompt.
        new: tokens to make for each.
        cache: bytes of a key's or a value's number.
    """

    shapes: Shapes
    batch: int
    length: int
    new: int = 256
    cache: int = 2

    def __post_init__(self) -> None:
        if min(self.batch, self.length, self.new) < 1:
            raise RecipeError(
                f"plan: batch {self.batch}, length {self.length}, new {self.new}; give at least one of each"
            )


def foresee(job: Serving, split: Split, cluster: Cluster) -> Forecast:
    """A step that makes a token for each sequence, halfway through; reading the prompts is in the notes."""
    context = job.length + job.new / 2
    step = passed(job, split, cluster, tokens=1, context=context)
    prompt = passed(job, split, cluster, tokens=job.length, context=job.length)
    request = prompt.seconds + job.new * step.seconds
    notes = {"prompt_s": prompt.seconds, "request_s": request, "request_tokens_per_s": job.batch * job.new / request}
    return replace(step, memory=memory(job, split, cluster.device.width), notes=notes)


def passed(job: Serving, split: Split, cluster: Cluster, *, tokens: int, context: float) -> Forecast:
    """So many tokens of every sequence, that each look at a context, once through the model."""
    shapes, device = job.shapes, cluster.device
    groups = split.pipeline
    sequences = max(job.batch / split.data / groups, 1.0)
    each, blocks = sequences * tokens, -(-shapes.blocks // split.pipeline)
    link = cluster.link(split, "tensor")
    read = shapes.touched_weights(each) * shapes.bits / 8 / split.tensor
    read += sequences * context * shapes.cache_bytes(job.cache) / shapes.blocks / keys(split, shapes)
    block = work(device, each * shapes.block_flops(context) / split.tensor, read)
    head = shapes.vocabulary * shapes.hidden / split.tensor
    ends = work(device, 2 * sequences * head, head * shapes.end_bits / 8)  # of the last token only
    stage = block * blocks + ends * (blocks / shapes.blocks if split.pipeline == 1 else 1)
    output = each * shapes.hidden * device.width
    sums, sent = sums_of(blocks, output, split, link), send_s(output, cluster.link(split, "pipeline"))
    sync = {"tensor": groups * sums} if split.tensor > 1 else {}
    sync |= {"pipeline": groups * sent} if split.pipeline > 1 else {}
    traffic = {"tensor": groups * 2 * blocks * summed_bytes(output, split.tensor)} if split.tensor > 1 else {}
    traffic |= {"pipeline": groups * output} if split.pipeline > 1 else {}
    return Forecast(
        split=replace(split, parts=groups),
        cost=stage * groups,
        sync=sync,
        traffic=traffic,
        tokens=job.batch * tokens,
        roofline=roofline(job, split, cluster, tokens, context),
    )


def sums_of(blocks: int, output: float, split: Split, link: Link) -> float:
    """Seconds for the two sums of each of so many blocks."""
    return 2 * blocks * sum_s(output, split.tensor, link)


def keys(split: Split, shapes: Shapes) -> int:
    """Among how many devices keys and values are divided: not more than they have heads."""
    return min(split.tensor, shapes.kv_heads)


def roofline(job: Serving, split: Split, cluster: Cluster, tokens: int, context: float) -> float:
    """The seconds that a pass takes at least: its products at the peak, and reading all of a replica's weights once."""
    device, shapes = cluster.device, job.shapes
    flops = job.batch * tokens * shapes.blocks * shapes.block_flops(context) / (device.flops * split.devices)
    each = job.batch / split.data
    weights = shapes.blocks * shapes.touched_weights(each * tokens) * shapes.bits / 8
    read = (weights + each * context * shapes.cache_bytes(job.cache)) / (split.tensor * split.pipeline)
    return max(flops, read / device.read)


def memory(job: Serving, split: Split, width: int) -> dict[str, float]:
    """Bytes of the fullest device, by what they hold."""
    shapes, share = job.shapes, -(-job.shapes.blocks // split.pipeline) / job.shapes.blocks
    sequences = job.batch / split.data
    blocks = shapes.blocks * shapes.block_weights * shapes.bits / 8
    ends = shapes.end_weights * shapes.end_bits / 8 / (1 if split.pipeline == 1 else 2 - shapes.tied)
    cached = sequences * (job.length + job.new) * shapes.cache_bytes(job.cache) / keys(split, shapes)
    tokens = max(sequences / split.pipeline, 1.0) * job.length
    widest = 3 * shapes.hidden + (2 * max(shapes.widths) + 2 * shapes.heads * shapes.head_dim) / split.tensor
    return {
        "weights": blocks * share / split.tensor + ends / split.tensor,
        "keys and values": cached * share,
        "activations": width * tokens * widest,
        "logits": 4 * sequences * shapes.vocabulary / split.tensor,
    }
