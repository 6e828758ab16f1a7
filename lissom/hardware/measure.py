"""How long something takes, and how much memory: the one way in which lissom measures time."""

import resource
import sys
import time
from collections.abc import Callable, Mapping

from lissom.estimate import Estimate, median_estimate
from lissom.hardware.target import finish


def rounds_ms(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2, target: str = "cpu"
) -> dict[str, list[float]]:
    """The milliseconds of each function in each round, all functions taking turns.

    A machine gets slower and faster by the minute; what runs in turns gets slower and faster together, so that their
    ratio within a round is true also where their times are not.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warmup, rounds):
        for name, function in functions.items():
            spent = once_ms(function, target)
            if number >= 0:
                times[name].append(spent)
    return times


def interleave(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2, target: str = "cpu"
) -> dict[str, Estimate]:
    """The median milliseconds of each function, measured in turns."""
    times = rounds_ms(functions, rounds=rounds, warmup=warmup, target=target)
    return {name: median_estimate(spent, unit="ms") for name, spent in times.items()}


def once_ms(function: Callable[[], object], target: str = "cpu") -> float:
    """The milliseconds of one call, all its work done."""
    finish(target)
    start = time.perf_counter()
    function()
    finish(target)
    return 1000 * (time.perf_counter() - start)


def peak_memory() -> int:
    """The most bytes that this process has held in memory since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in kibibytes
