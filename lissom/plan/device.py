"""What a device does, and what a link between devices carries: published rates, or those of this machine.

Published are peaks, of matrix products in 16 bits without sparsity. What a program gets of them is an assumption, which
the output states and the user may replace: in Narayanan et al. 2021 (arXiv:2104.04473, table 1) training gets 43 % to
52 % of it, and less in most hands.

The rates and the memory are those of `hardware/sheets.py`. Links, by the same data sheets: h100 and h200 NVLink 900
GB/s; b200 NVLink 14.4 TB/s / 8; a100 NVLink 600 GB/s; mi300x seven links of 128 GB/s; TPUs ICI 400 (v5e), 1,200 (v5p)
and 800 GB/s (v6e).

Links are published as the sum of both directions; here stands one direction, half of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lissom.errors import RecipeError, meant
from lissom.hardware.sheets import EFFICIENCY, READING, SHEETS, G

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
    efficiency: float = EFFICIENCY
    reading: float = READING
    width: int = 2
    overlaps: bool = True
    free: float = 0.1

    @property
    def usable(self) -> float:
        """Bytes that may be filled."""
        return self.memory * (1 - self.free)


LATENCY = 5e-6  # of a message inside a node, assumed; between nodes it is twice that


def published(name: str, both_ways_gbytes: float) -> Device:
    """A device by the figures of its data sheet."""
    sheet, inside = SHEETS[name], Link(bytes_per_s=both_ways_gbytes / 2 * G, latency_s=LATENCY)
    return Device(name=name, flops=sheet.rates["bf16"], memory=sheet.memory, read=sheet.read, inside=inside)


LINKS: Mapping[str, float] = {
    "h100": 900,
    "h200": 900,
    "b200": 1800,
    "a100": 600,
    "mi300x": 896,
    "tpu-v5e": 400,
    "tpu-v5p": 1200,
    "tpu-v6e": 800,
}
DEVICES: Mapping[str, Device] = {name: published(name, both_ways) for name, both_ways in LINKS.items()}
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
