"""The machine: what it is, what it could do, and how long something takes on it."""

from lissom.hardware.bench import Speed, bench_module
from lissom.hardware.limits import Limits, limits
from lissom.hardware.machine import Machine, available_bytes, describe
from lissom.hardware.measure import interleave, peak_memory, rounds_ms
from lissom.hardware.target import MEASURED, Target, check_target, target_named, targets, targets_named

__all__ = [
    "MEASURED",
    "Limits",
    "Machine",
    "Speed",
    "Target",
    "available_bytes",
    "bench_module",
    "check_target",
    "describe",
    "interleave",
    "limits",
    "peak_memory",
    "rounds_ms",
    "target_named",
    "targets",
    "targets_named",
]
