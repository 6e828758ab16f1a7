"""The plan: every split foreseen, those that do not fit left out, the rest ranked."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lissom.errors import RecipeError, meant
from lissom.plan import compression, recovery, serving
from lissom.plan.compression import Compression
from lissom.plan.device import CPU, Device, Link, device_named, read_link, share
from lissom.plan.forecast import Forecast
from lissom.plan.measured import SECONDS, Measured, measure
from lissom.plan.pieces import Pieces, Rated
from lissom.plan.reading import read_shapes
from lissom.plan.recovery import Recovery
from lissom.plan.serving import Serving
from lissom.plan.shapes import Shapes
from lissom.plan.split import Cluster, Split, divisors, misfit, splits
from lissom.progress import Progress, Tell, quiet
from lissom.recover.parallel.layout import WHOLE
from lissom.recover.training import PLAIN

PURPOSES = ("compress", "recover", "serve")
NODE = 8  # devices of a node, where there are several and it is not said
NEW = 256  # tokens made for each prompt
FULL = "more memory than a device has"
WAYS: Mapping[str, str] = {  # to need less, by what takes the most
    "original": "original=split, or remembered",
    "activations": "checkpointing, a smaller batch, or shorter windows",
    "logits": "a smaller batch, or shorter windows",
    "hidden states": "a smaller batch, or shorter windows",
    "keys and values": "a smaller batch, or shorter prompts",
}
Job = Compression | Recovery | Serving
NAMES: Mapping[type[Job], str] = dict(zip((Compression, Recovery, Serving), PURPOSES, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was found.

    Args:
        job: what is to be done: compression, recovery or serving.
        cluster: on what.
        ranked: the splits that fit, the best first.
        left_out: how many do not fit, by the reason.
        assumed: what the figures rest on, in words.
    """

    job: Job
    cluster: Cluster
    ranked: tuple[Forecast, ...]
    left_out: Mapping[str, int]
    assumed: tuple[str, ...]

    @property
    def best(self) -> Forecast:
        """The first."""
        return self.ranked[0]

    def told(self) -> tuple[str, ...]:
        """The best and its bottleneck, and what was left out, in words."""
        best = self.best
        share_of = best.shares[best.bottleneck]
        peak = best.roofline / best.seconds
        lines = [
            f"best: {best.split}; its bottleneck is {best.bottleneck}, {share_of:.0%} of a step; {peak:.0%} of the peak"
        ]
        if self.left_out:
            reasons = "; ".join(f"{count:,}: {reason}" for reason, count in self.left_out.items())
            lines.append(f"left out: {reasons}")
        return tuple(lines)

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """As JSON holds it, with so many of the best splits."""
        job = asdict(self.job)
        shapes = job.pop("shapes")
        return {
            "for": NAMES[type(self.job)],
            "job": job,
            "model": {**shapes, "weights": self.job.shapes.weights, "bytes": self.job.shapes.nbytes},
            "devices": self.cluster.count,
            "device": self.cluster.device.name,
            "node": self.cluster.node,
            "splits": [one.as_dict() for one in self.ranked[:top]],
            "fit": len(self.ranked),
            "left_out": dict(self.left_out),
            "rests_on": list(self.assumed),
        }


def plan_devices(
    model: str | Path | Shapes,
    *,
    devices: int = 1,
    device: str | Device = CPU,
    link: str | None = None,
    node: int | None = None,
    purpose: str = "recover",
    batch: int | None = None,
    length: int = 512,
    new: int = NEW,
    bits: float | None = None,
    efficiency: float | None = None,
    train: str = "weights",
    optimizer: str = "adamw",
    gradients: str = "float32",
    checkpointing: bool = False,
    original: str = "whole",
    seconds: float = SECONDS,
    progress: Tell = quiet,
) -> Plan:
    """Foresee every way to divide devices among the work on a language model, and rank those that fit.

    Args:
        model: a folder with a config.json (weights are not needed), a hub name, or shapes.
        devices: how many; of this machine's processor, how many workers share its cores.
        device: a name of `DEVICES`, or `cpu` for this machine's processor, which is timed now; or one's own.
        link: what a device can send to other nodes, such as 50GB/s; needed where there are several nodes.
        node: devices of a node; by default 8 where there is a link, else all are in one.
        purpose: compress, recover or serve.
        batch: windows of a step, or of all calibration, or sequences at once, of all devices together; by default 16,
            or as many as there are devices.
        length: tokens of a window, or of a prompt; `new` are made for each that is served.
        bits: of a weight in the blocks, instead of what the folder's files have; where recovery is timed, of the
            integers that learn.
        efficiency: the share of its peak that products get, instead of what is assumed.
        train, optimizer, gradients, checkpointing, original: of recovery, as `Recovery` has them.
        seconds: to time the pieces of this machine's processor for, about.
        progress: told of what is timed.

    Raises:
        ModelError, RecipeError: with what is wrong and what to do; also where no split fits.
    """
    of_cpu = device == CPU
    check(purpose, devices, of_cpu, (link, node, efficiency), model)
    said = (train, optimizer, gradients, checkpointing, original)
    if purpose != "recover" and said != ("weights", "adamw", "float32", False, "whole"):
        raise RecipeError(
            f"for: {purpose} moves nothing; train, optimizer, gradients, checkpointing and original are of recover"
        )
    if purpose != "serve" and new != NEW:
        raise RecipeError(f"new: {new} tokens are made by serve alone; with {purpose} leave it out")
    if not of_cpu and seconds != SECONDS:
        raise RecipeError(f"seconds: {seconds:g} are to time this machine's processor; leave them out for {device}")
    shapes = model if isinstance(model, Shapes) else read_shapes(model, bits)
    batch = max(16, devices) if batch is None else batch
    job: Job
    if purpose == "recover":
        job = Recovery(
            shapes=shapes,
            batch=batch,
            length=length,
            train=train,
            optimizer=optimizer,
            gradients=gradients,
            checkpointing=checkpointing,
            original=original,
        )
    elif purpose == "serve":
        job = Serving(shapes=shapes, batch=batch, length=length, new=new)
    else:
        job = Compression(shapes=shapes, batch=batch, length=length)
    if of_cpu:
        assert not isinstance(model, Shapes)
        progress(Progress(stage="latency", text=f"the pieces, by {devices} workers at once"))
        found, measured = measured_for(model, job, devices, bits, seconds)
        return chosen(job, Cluster(device=found, count=devices, node=devices, outside=found.inside), measured)
    known = device if isinstance(device, Device) else device_named(str(device))
    known = known if efficiency is None else replace(known, efficiency=share(efficiency))
    return chosen(job, cluster_of(known, devices, link, node))


def check(purpose: str, devices: int, of_cpu: bool, published: tuple[object, ...], model: str | Path | Shapes) -> None:
    """See that what is asked for goes together.

    Raises:
        RecipeError: it does not.
    """
    if purpose not in PURPOSES:
        raise RecipeError(f"for: {purpose!r} is none of {', '.join(PURPOSES)}{meant(purpose, PURPOSES)}")
    if devices < 1:
        raise RecipeError(f"devices: {devices}; give at least one")
    if of_cpu and any(given is not None for given in published):
        raise RecipeError("device: this machine is one node and is timed; leave link, node and efficiency out")
    if of_cpu and isinstance(model, Shapes):
        raise RecipeError("device: this machine is timed with a folder's config; give that, or another device")


def measured_for(
    model: str | Path, job: Job, devices: int, bits: float | None, seconds: float
) -> tuple[Device, Measured]:
    """This machine, timed with what the job does."""
    given = (
        job if isinstance(job, Recovery) else Recovery(shapes=job.shapes, batch=job.batch, length=max(job.length, 2))
    )
    return measure(
        model,
        job.shapes,
        count=devices,
        batch=given.batch,
        length=given.length,
        train=given.train,
        optimizer=given.optimizer,
        gradients=given.gradients,
        bits=bits if isinstance(job, Recovery) else None,  # of the others it is what is read that is so wide
        seconds=seconds,
    )


def cluster_of(device: Device, count: int, link: str | None, node: int | None) -> Cluster:
    """Devices in nodes.

    Raises:
        RecipeError: there are several nodes, and no link between them.
    """
    size = min(node or (NODE if link else count), count) if node is None else node
    if link is None and size < count:
        raise RecipeError(
            f"link: {count} devices are {count / size:g} nodes of {size}; say what a device can send, 50GB/s"
        )
    outside = device.inside if link is None else read_link(link)
    return Cluster(device=device, count=count, node=size, outside=outside)


def chosen(job: Job, cluster: Cluster, measured: Measured | None = None) -> Plan:
    """Every split foreseen, and ranked.

    Raises:
        RecipeError: none fits; it says what is least, and what takes the most of that.
    """
    left_out: Counter[str] = Counter()
    fits, full = list[Forecast](), list[Forecast]()
    for split in splits(cluster.count):
        wrong = unfit(job, split)
        if wrong:
            left_out[wrong] += 1
            continue
        found = [foreseen(job, each, cluster, measured) for each in in_parts(job, split)]
        able = [one for one in found if one.nbytes <= cluster.device.usable]
        if able:
            fits.append(min(able, key=rank))
        else:
            full.append(min(found, key=lambda one: one.nbytes))
            left_out[FULL] += 1
    if not fits:
        raise RecipeError(why_none(full, left_out, cluster))
    ranked = tuple(sorted(fits, key=rank))
    return Plan(job=job, cluster=cluster, ranked=ranked, left_out=left_out, assumed=rests_on(job, cluster, measured))


def unfit(job: Job, split: Split) -> str:
    """Why a job cannot be split like that; empty where it can."""
    if isinstance(job, Compression) and (split.shard, split.tensor, split.pipeline) != (1, 1, 1):
        return "calibration is along data only"
    if isinstance(job, Serving) and split.shard > 1:
        return "shards would be gathered for each token"
    divided = split.shard * split.tensor * split.pipeline > 1
    if isinstance(job, Recovery) and divided and job.optimizer in WHOLE:
        return f"{job.optimizer} must see whole matrices, and all of them"
    if isinstance(job, Recovery) and split.tensor > job.shapes.kv_heads:
        return f"tensor is more than {job.shapes.kv_heads} heads of keys and values, which stay whole while learning"
    if isinstance(job, Recovery) and split.shard > 1 and job.gradients != PLAIN:
        return "gradients travel in few bits along data only"
    return misfit(split, job.shapes, job.batch)


def in_parts(job: Job, split: Split) -> list[Split]:
    """A split, with each number of parts that a replica's batch can be run in."""
    if not isinstance(job, Recovery):
        return [split]
    return [replace(split, parts=parts) for parts in divisors(job.batch // split.replicas)]


def foreseen(job: Job, split: Split, cluster: Cluster, measured: Measured | None = None) -> Forecast:
    """What is foreseen of a split; by the pieces that were measured, where they were, else by the device's rates."""
    if isinstance(job, Compression):
        return compression.foresee(job, split, cluster)
    if isinstance(job, Serving):
        return serving.foresee(job, split, cluster)
    rated = Rated(device=cluster.device, shapes=job.shapes, length=job.length, moving=job.moving)
    pieces: Pieces = rated if measured is None else measured
    return recovery.foresee(job, split, cluster, pieces)


def rank(found: Forecast) -> tuple[float, float]:
    """What is to be small: the seconds, of serving those of whole requests; of those alike, the memory."""
    return found.notes.get("request_s", found.seconds), found.nbytes


def why_none(full: list[Forecast], left_out: Mapping[str, int], cluster: Cluster) -> str:
    """What a user can do where nothing fits."""
    if not full:
        reasons = "; ".join(left_out)
        return f"plan: {cluster.count} devices cannot be divided like this: {reasons}; choose another batch or number"
    least = min(full, key=lambda one: one.nbytes)
    name, most = max(least.memory.items(), key=lambda one: one[1])
    ways = WAYS.get(name, "more devices, or such with more memory")
    return (
        f"plan: no split fits into {cluster.device.usable / 1e9:.0f} GB of a device; {least.split} takes the least, "
        f"{least.nbytes / 1e9:.0f} GB, of which {most / 1e9:.0f} GB are for {name}; take {ways}"
    )


def rests_on(job: Job, cluster: Cluster, measured: Measured | None) -> tuple[str, ...]:
    """What the figures rest on."""
    device, link = cluster.device, cluster.device.inside
    share_of = f"products get {device.efficiency:.0%} of {device.flops / 1e12:.4g} TFLOPS"
    free = f"{device.free:.0%} of the memory stays free"
    if measured is not None:
        shared = "" if measured.slower == 1 else f", each of {1 / measured.slower:.3g} of a core"
        return (
            f"measured: {measured.workers} workers at once with one thread{shared}; {share_of}; memory is read at "
            f"{device.read / 1e9:.3g} GB/s; a link sends {link_text(link)}",
            f"assumed: {free}; nothing is sent while computing",
        )
    return (
        f"published: {device.name}, {device.memory / 1e9:.0f} GB; a link inside of a node sends {link_text(link)}",
        f"assumed: {share_of}, passes over memory {device.reading:.0%} of {device.read / 1e12:.3g} TB/s; {free}; what "
        "shard and data send is hidden behind computing where that is longer",
    )


def link_text(link: Link) -> str:
    """A link in words."""
    return f"{link.bytes_per_s / 1e9:.3g} GB/s after {1e6 * link.latency_s:.3g} µs"
