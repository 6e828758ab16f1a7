"""What is foreseen of one split: how long a step takes and what of, the memory of a device, and what it sends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lissom.plan.device import Device
from lissom.plan.split import Split

COMPUTE, MEMORY, LINK, IDLE = "compute", "memory bandwidth", "synchronisation", "idle in the pipeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a device, by what bounds them: its products, or its memory."""

    compute: float = 0.0
    memory: float = 0.0

    @property
    def seconds(self) -> float:
        """Both."""
        return self.compute + self.memory

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(compute=self.compute + other.compute, memory=self.memory + other.memory)

    def __mul__(self, times: float) -> "Cost":
        return Cost(compute=self.compute * times, memory=self.memory * times)


NOTHING = Cost()


def work(device: Device, flops: float, nbytes: float) -> Cost:
    """So many operations on so many bytes: what takes longer of both hides the other.

    Williams, Waterman, Patterson, Roofline, CACM 2009, with the shares of both peaks that programs get.
    """
    compute = flops / (device.flops * device.efficiency)
    memory = nbytes / (device.read * device.reading)
    return Cost(compute=compute) if compute >= memory else Cost(memory=memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is foreseen of a split.

    Args:
        split: of which.
        cost: of a step, what the busiest device computes.
        sync: seconds that devices wait for what others send, by the axis; what is hidden behind computing is not there.
        idle: seconds that the busiest stage of a pipeline waits for its first and last part.
        memory: bytes of the fullest device, by what they hold.
        traffic: bytes that a device sends in a step, by the axis.
        tokens: of a step, learned from, looked at or made.
        roofline: seconds that the same takes at least, all devices at the peak of their products and of their memory.
        notes: other figures, by name.
    """

    split: Split
    cost: Cost
    sync: Mapping[str, float] = field(default_factory=dict)
    idle: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)
    traffic: Mapping[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    roofline: float = 0.0
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.cost.seconds + sum(self.sync.values()) + self.idle

    @property
    def tokens_per_s(self) -> float:
        """Of all devices together."""
        return self.tokens / self.seconds

    @property
    def nbytes(self) -> float:
        """Of the fullest device."""
        return sum(self.memory.values())

    @property
    def sent(self) -> float:
        """By each device in a step."""
        return sum(self.traffic.values())

    @property
    def shares(self) -> dict[str, float]:
        """What the step's seconds are of."""
        parts = {COMPUTE: self.cost.compute, MEMORY: self.cost.memory, LINK: sum(self.sync.values()), IDLE: self.idle}
        return {name: seconds / self.seconds for name, seconds in parts.items()}

    @property
    def bottleneck(self) -> str:
        """What most of a step's seconds are of."""
        return max(self.shares.items(), key=lambda one: one[1])[0]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        axes = {axis: getattr(self.split, axis) for axis in ("data", "shard", "tensor", "pipeline", "parts")}
        return {
            "split": axes,
            "seconds": self.seconds,
            "compute_s": self.cost.compute,
            "memory_s": self.cost.memory,
            "sync_s": dict(self.sync),
            "idle_s": self.idle,
            "roofline_s": self.roofline,
            "tokens_per_s": self.tokens_per_s,
            "memory_bytes": dict(self.memory),
            "traffic_bytes": dict(self.traffic),
            "bottleneck": self.bottleneck,
            **self.notes,
        }
