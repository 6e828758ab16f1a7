"""Schedules: how the rate changes while a model learns, by name.

    constant    1
    linear      1 - s
    cosine      (1 + cos π s) / 2                        Loshchilov, Hutter, ICLR 2017, arXiv:1608.03983, eq. (5)
    wsd         1, and down a line in the last fifth     warmup, stable, decay: Hu et al., 2024, arXiv:2404.06395

s is the share of the steps that are done after warming up, in which the rate rises from 0; `floor` is where it ends, as
a share of the rate.
"""

import math
from collections.abc import Callable, Mapping

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lissom.errors import RecipeError, meant
from lissom.techniques.knobs import at_least, between

LAST = 0.2  # of the steps, in which the rate of wsd goes down
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda s: 1.0,
    "linear": lambda s: 1 - s,
    "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    "wsd": lambda s: min(1.0, (1 - s) / LAST),
}


def rate(name: str, t: int, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The factor of the rate at step t, which counts from 0.

    Raises:
        RecipeError: there is no such schedule, or the numbers do not go together.
    """
    if name not in SCHEDULES:
        raise RecipeError(f"schedule: {name!r} is none of {', '.join(SCHEDULES)}{meant(name, SCHEDULES)}")
    at_least(1, steps=steps)
    between(0, steps, warmup=warmup)
    between(0, 1, floor=floor)
    if t < warmup:
        return (t + 1) / warmup
    share = min(1.0, (t - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * SCHEDULES[name](share)


def scheduled(
    optimizer: Optimizer, name: str = "cosine", *, steps: int, warmup: int = 0, floor: float = 0.0
) -> LambdaLR:
    """The rates of an optimizer by a schedule, whose `step` is called after each of its steps.

    Raises:
        RecipeError: as `rate`.
    """
    rate(name, 0, steps, warmup, floor)
    return LambdaLR(optimizer, lambda t: rate(name, t, steps, warmup, floor))
