"""What a device does, and what a link between devices carries: published rates, or those of this machine.

Published are peaks, of matrix products in 16 bits without sparsity. What a program gets of them is an assumption, which
the output states and the user may replace: in Narayanan et al. 2021 (arXiv:2104.04473, table 1) training gets 43 % to
52 % of it, and less in most hands.

    h100      NVIDIA H100 SXM: data sheet (989.4 TFLOPS without sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s)
    h200      NVIDIA H200 SXM: data sheet (as h100; 141 GB, 4.8 TB/s)
    b200      NVIDIA B200: DGX B200 data sheet, an eighth of each (36 PFLOPS sparse FP16 / 2 / 8, 1,440 GB, 64 TB/s,
              NVLink 14.4 TB/s)
    a100      NVIDIA A100 80 GB SXM: data sheet (312 TFLOPS, 2,039 GB/s, NVLink 600 GB/s)
    mi300x    AMD Instinct MI300X: data sheet (1,307.4 TFLOPS, 192 GB, 5.3 TB/s, seven links of 128 GB/s)
    tpu-v5e   docs.cloud.google.com/tpu/docs/v5e (197 TFLOPS, 16 GB, 819 GB/s, ICI 400 GB/s, both directions)
    tpu-v5p   docs.cloud.google.com/tpu/docs/v5p-training (459 TFLOPS, 95 GB, 2,765 GB/s, ICI 1,200 GB/s)
    tpu-v6e   docs.cloud.google.com/tpu/docs/v6e (918 TFLOPS, 32 GB, 1,638 GB/s, ICI 800 GB/s)

Links are published as the sum of both directions; here stands one direction, half of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lissom.errors import RecipeError, meant

G, T = 10**9, 10**12
RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(B|b|bit)(?:/s|ps)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a device can send to another, in bytes a second in one direction, and how long the first of them takes."""

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device; of a processor, the share of its cores that one worker has.

    Args:
        name: as it is asked for.
        flops: multiplications and additions a second, at most.
        read: bytes of its memory a second, at most.
        memory: bytes that it has.
        inside: its link to the others of its node.
        efficiency: the share of `flops` that matrix products get.
        reading: the share of `read` that passes over memory get.
        width: bytes of a number in matrix products.
        overlaps: whether it computes while it sends; a processor that does both cannot.
        free: the share of its memory that is left for what is not foreseen: the runtime, and fragments.
    """

    name: str
    flops: float
    read: float
    memory: float
    inside: Link
    efficiency: float = 0.4
    reading: float = 0.7
    width: int = 2
    overlaps: bool = True
    free: float = 0.1

    @property
    def usable(self) -> float:
        """Bytes that may be filled."""
        return self.memory * (1 - self.free)


LATENCY = 5e-6  # of a message inside a node, assumed; between nodes it is twice that


def published(name: str, tflops: float, gbytes: float, read_gbytes: float, both_ways_gbytes: float) -> Device:
    """A device by the figures of its data sheet."""
    inside = Link(bytes_per_s=both_ways_gbytes / 2 * G, latency_s=LATENCY)
    return Device(name=name, flops=tflops * T, memory=gbytes * G, read=read_gbytes * G, inside=inside)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        published("h100", 989.4, 80, 3350, 900),
        published("h200", 989.4, 141, 4800, 900),
        published("b200", 2250, 180, 8000, 1800),
        published("a100", 312, 80, 2039, 600),
        published("mi300x", 1307.4, 192, 5300, 896),
        published("tpu-v5e", 197, 16, 819, 400),
        published("tpu-v5p", 459, 95, 2765, 1200),
        published("tpu-v6e", 918, 32, 1638, 800),
    )
}
CPU = "cpu"  # this machine's, which is measured


def device_named(name: str, efficiency: float | None = None) -> Device:
    """A device of the table; `efficiency` replaces the share of its peak that is assumed.

    Raises:
        RecipeError: there is none of the name, or the share is none.
    """
    if name not in DEVICES:
        known = (CPU, *DEVICES)
        raise RecipeError(f"device: {name!r} is none of {', '.join(known)}{meant(name, known)}")
    return DEVICES[name] if efficiency is None else replace(DEVICES[name], efficiency=share(efficiency))


def share(efficiency: float) -> float:
    """The share of a peak.

    Raises:
        RecipeError: it is not between 0 and 1.
    """
    if not 0 < efficiency <= 1:
        raise RecipeError(f"efficiency: {efficiency} is no share of a device's peak; give one above 0, at most 1")
    return efficiency


def read_link(text: str) -> Link:
    """A link between nodes, written as what each device can send in one direction: 50GB/s, or in bits 400Gb/s.

    Raises:
        RecipeError: it is none, or has no unit.
    """
    found = RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise RecipeError(f"link: {text!r} is no rate; write what a device can send with its unit, 50GB/s or 400Gb/s")
    number, unit, kind = found.groups()
    rate = float(number) * 1000.0 ** (" kMGT".index(unit) if unit else 0) / (1 if kind == "B" else 8)
    return Link(bytes_per_s=rate, latency_s=2 * LATENCY)
