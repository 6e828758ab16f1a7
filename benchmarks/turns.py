"""Taking turns: what several processes time a little at a time, on the same inputs, sees the same minutes."""

import statistics
import time
from collections.abc import Callable, Iterator
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
