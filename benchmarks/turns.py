"""Taking turns: what several processes time a little at a time, on the same inputs, sees the same minutes."""

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

TURN_S = 0.3

Arrays = list[np.ndarray]


def turn(run: Callable[[], object]) -> float:
    """The median time in ms of one call, of as many as fit in a turn, after one that is not counted."""
    run()
    begun, times = time.perf_counter(), list[float]()
    while not times or time.perf_counter() - begun < TURN_S:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def batches(file: Path, size: int) -> Iterator[Arrays]:
    """The arrays of a file, cut into batches."""
    with np.load(file) as held:
        arrays = [held[name] for name in held.files]
    for start in range(0, len(arrays[0]) - size + 1, size):
        yield [array[start : start + size] for array in arrays]


def time_batches(once: Callable[[int, int], Sequence[float]], batches: str, new: int) -> None:
    """Print one JSON line: for each number of sequences what `once` tells, the seconds of reading their prompts and of
    writing `new` tokens more of each before all, after a call of one token that is not counted; the seconds from the
    start of this process to the first token of one sequence ("first"); and the peak of its memory in bytes."""
    once(1, 1)
    found: dict[str, object] = {"first": age()}
    for size in map(int, batches.split(",")):
        once(size, 1)
        found[str(size)] = once(size, new)
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


def age() -> float:
    """Seconds since this process began, with all that it imported."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
