"""The pieces of a step as this machine runs them: timed by processes of their own, as many as share its cores.

What is timed are pieces alone (`worker.py`), never a step: a block that learns, forwards and backwards; making its
matrices from their format; a block of the original; embedding, head and loss; taking a step; a sum over the processes
at two sizes, which gives the link; what DistributedDataParallel and FSDP2 add, for the parameters of one block and two.

More workers than cores are devices of cores / workers each: what is timed with a worker on each core takes so many
times longer.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lissom.artifact.manifest import MANIFEST
from lissom.errors import ModelError, RecipeError
from lissom.files import read_json
from lissom.hardware.machine import cores, memory_bytes
from lissom.models.checkpoint import find, read_config, skeleton
from lissom.plan.device import CPU, Device, Link
from lissom.plan.forecast import Cost
from lissom.plan.shapes import Shapes

SECONDS = 8.0  # for all pieces in turns
MOST = 4096  # tokens of a piece; beyond them its time is taken to grow as it did before
BLOCKS = 2  # that are run one after the other, so that caches do not hold what they would not in a whole model
WORKED = " worked"  # the end of the name of what a process has worked, of a piece that waits for others
BITS = 4  # of the format that is timed where the model is not compressed
FEWEST, WIDEST = 2, 8  # bits of such formats
Line = tuple[tuple[float, float], ...]  # points (x, seconds), joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of the pieces for windows of one length, while so many `workers` run at once; `Pieces`.

    Args:
        there, back, other, outside: a block that learns both ways, one of the original, and the ends, by windows.
        made: matrices of a block from their format, forwards and backwards, which are passes over memory.
        taken, taken_sharded: a step with what moves of a block, whole, and of one in `workers` shards.
        summed: over all workers, by bytes.
        mean, gather, scatter: over all workers, by numbers.
        workers: how many ran; `slower`: how many times longer it takes where more of them share the cores.
    """

    there: Line
    back: Line
    other: Line
    outside: Line
    made: tuple[float, float]
    taken: float
    taken_sharded: float
    summed: Line
    mean: Line
    gather: Line
    scatter: Line
    workers: int
    slower: float

    @classmethod
    def of(cls, told: Mapping[str, float], workers: int, slower: float, own: str = "") -> "Measured":
        """From what the workers have told; with `WORKED` for `own`, of what waits for others how long it worked."""
        return cls(
            there=line(told, "student", " forward"),
            back=line(told, "student", " backward"),
            other=line(told, "original"),
            outside=line(told, "ends"),
            made=(told["made forward"], told["made backward"]),
            taken=told["moves"],
            taken_sharded=told.get("moves sharded", told["moves"]),
            summed=line(told, "sum", own),
            mean=line(told, "mean", own),
            gather=line(told, "gather", own),
            scatter=line(told, "scatter", own),
            workers=workers,
            slower=slower,
        )

    def block(self, times: Line, windows: float, tensor: int, made: float = 0.0) -> Cost:
        """A block: making its matrices is memory's part, the rest is that of products."""
        seconds, made = (spent * self.slower / tensor for spent in (at(times, windows), made))
        memory = min(made, seconds)
        return Cost(compute=seconds - memory, memory=memory)

    def forward(self, windows: float, tensor: int) -> Cost:
        """As `Pieces` says, and so for all that follow."""
        return self.block(self.there, windows, tensor, self.made[0])

    def backward(self, windows: float, tensor: int) -> Cost:
        """The way back."""
        return self.block(self.back, windows, tensor, self.made[1])

    def original(self, windows: float, tensor: int) -> Cost:
        """A block of the original."""
        return self.block(self.other, windows, tensor)

    def ends(self, windows: float, tensor: int) -> Cost:
        """Embedding, head and loss."""
        return self.block(self.outside, windows, tensor)

    def moves(self, blocks: float, shard: int) -> Cost:
        """Taking a step."""
        if shard == 1:
            return Cost(memory=self.taken * blocks * self.slower)
        fixed = max(
            self.taken_sharded - self.taken / self.workers, 0.0
        )  # of what knows its shards, whatever their size
        return Cost(memory=(fixed + self.taken / shard) * blocks * self.slower)

    def share(self, numbers: float, n: int, link: Link, bits: float) -> float:
        """A mean of gradients."""
        return at(self.mean, numbers) * self.ring(n) * self.slower

    def shard(self, numbers: float, n: int, link: Link, moving: float) -> float:
        """Gathering twice, and scattering a sum."""
        gathered = at(self.gather, numbers)
        scattered = at(self.scatter, numbers) - gathered if moving else 0.0
        return (gathered + max(scattered, 0.0)) * self.ring(n) * self.slower

    def ring(self, n: int) -> float:
        """How many times as many bytes a device sends among n as among those that were timed."""
        return ((n - 1) / n) / ((self.workers - 1) / self.workers)

    @property
    def link(self) -> Link:
        """That between workers, from sums of two sizes."""
        if len(self.summed) < 2:
            return Link(bytes_per_s=float("inf"))
        (a, first), (b, second) = self.summed
        n, each = self.workers, max(second - first, 1e-9) / (b - a)
        latency = max(first - a * each, 0.0) / (2 * (n - 1))
        rate = 2 * (n - 1) / n / each
        return Link(bytes_per_s=rate / self.slower, latency_s=latency * self.slower)


def line(told: Mapping[str, float], name: str, own: str = "") -> Line:
    """The points of a piece that was timed for several sizes."""
    names = [one for one in told if one.startswith(f"{name} ") and one.endswith(own)]
    sizes = {one.removeprefix(f"{name} ").removesuffix(own): told[one] for one in names}
    return tuple(sorted((float(size), spent) for size, spent in sizes.items() if size.isdecimal()))


def at(points: Line, x: float) -> float:
    """Seconds at x: between two points those between theirs, elsewhere as it goes on from the nearest two."""
    if len(points) == 1:
        return points[0][1] * x / points[0][0]
    place = next((n for n in range(1, len(points) - 1) if x <= points[n][0]), len(points) - 1)
    (a, first), (b, second) = points[place - 1 : place + 1]
    return max(first + (second - first) * (x - a) / (b - a), 0.0)


def measure(
    model: str | Path,
    shapes: Shapes,
    *,
    count: int,
    batch: int,
    length: int,
    train: str = "weights",
    optimizer: str = "adamw",
    gradients: str = "float32",
    bits: float | None = None,
    seconds: float = SECONDS,
) -> tuple[Device, Measured]:
    """Time the pieces of recovering a model on this machine's processor.

    Args:
        model: its folder; of one that lissom wrote the formats are its own, else numbers of `bits` (4, if they are not
            said) in groups of 64.
        shapes: its shapes.
        count: workers that will share the cores.
        batch, length: windows of a step, at most, and tokens of a window.
        train, optimizer, gradients: as for `Recovery`.
        seconds: how long to time, about.

    Returns:
        A worker as a device, with what of the peak of its products a block gets; and the pieces.

    Raises:
        ModelError: the processes that time could not.
        RecipeError: the bits cannot be timed.
    """
    folder = Path(model) if (Path(model) / "config.json").is_file() else find(model)
    asked = asked_of(folder, shapes, batch, length, train, optimizer, gradients, bits, seconds)
    told = timed(folder, asked, min(count, cores()))
    found = Measured.of(told["pieces"], told["workers"], count / told["workers"])
    return device_of(told, found, shapes, length, count), found


def asked_of(
    folder: Path,
    shapes: Shapes,
    batch: int,
    length: int,
    train: str = "weights",
    optimizer: str = "adamw",
    gradients: str = "float32",
    bits: float | None = None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """What the workers are asked, as JSON holds it."""
    return {
        "artifact": str(folder) if (folder / MANIFEST).is_file() else None,
        "bits": width_of(folder, bits),
        "windows": [2**n for n in range(batch.bit_length()) if n == 0 or 2**n * length <= MOST],
        "length": length,
        "vocabulary": shapes.vocabulary,
        "train": train,
        "optimizer": optimizer,
        "gradients": gradients,
        "seconds": seconds,
    }


def width_of(folder: Path, bits: float | None) -> int:
    """The bits of the numbers that learn, where the folder does not say their formats.

    Raises:
        RecipeError: it does, or nothing of so many bits learns.
    """
    if bits is None:
        return BITS
    if (folder / MANIFEST).is_file():
        raise RecipeError(f"bits: {folder} says its own formats, and those are timed; leave bits out")
    if bits < FEWEST or round(bits) > WIDEST:
        raise RecipeError(
            f"bits: {bits:g} cannot be timed on this machine: integers of {FEWEST} to {WIDEST} bits learn; give one "
            "of those, or the folder of a model that is compressed otherwise"
        )
    return round(bits)


def device_of(told: Mapping[str, Any], found: Measured, shapes: Shapes, length: int, count: int) -> Device:
    """One of so many workers as a device: its peak is what a large product got, its efficiency what a block did."""
    pieces = told["pieces"]
    flops, most = 1 / pieces["product per flop"], found.other[-1][0]
    got = most * length * shapes.block_flops(length) / at(found.other, most)
    return Device(
        name=CPU,
        flops=flops / found.slower,
        read=1 / pieces["read per byte"] / found.slower,
        memory=memory_bytes() / count,
        inside=found.link,
        efficiency=min(got / flops, 1.0),
        reading=1.0,
        width=2 if told["bf16"] else 4,
        overlaps=False,
    )


def timed(folder: Path, asked: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What so many processes tell that time at once, each with one thread.

    Raises:
        ModelError: they could not.
    """
    with tempfile.TemporaryDirectory(prefix="lissom-") as scratch:
        place = Path(scratch)
        write_small(folder, place)
        (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        alone = [sys.executable, "-m"]
        several = [*alone, "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        start = alone if count == 1 else several
        words = [*start, "lissom.plan.worker", scratch, str(place / "asked.json"), str(place / "told.json")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode:
            lines = [one for one in ran.stderr.splitlines() if "Error" in one] or ran.stderr.splitlines()[-1:]
            raise ModelError(f"{folder} cannot be timed on this machine: {' '.join(lines[:1]).strip()}")
        return read_json(place / "told.json")


def write_small(folder: Path, place: Path) -> None:
    """A checkpoint of two blocks of a model's shapes, of random numbers in 16 bits."""
    config = read_config(folder, compressed=True)
    told = {**config.to_dict(), "num_hidden_layers": BLOCKS, "dtype": "bfloat16"}
    told.pop("quantization_config", None)
    for name in ("layer_types", "no_rope_layers"):
        told |= {name: told[name][:BLOCKS]} if told.get(name) else {}
    told |= {"mlp_only_layers": [], "decoder_sparse_step": 1} if "decoder_sparse_step" in told else {}
    (place / "config.json").write_text(json.dumps(told), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    model = skeleton(read_config(place))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.02 + (len(shape) == 1)).bfloat16()
        for name, shape in shapes.items()
    }
    save_file(tensors, place / "model.safetensors")
