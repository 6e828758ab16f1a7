"""Where to cut a chain, so that its slowest stage is as fast as can be and every stage fits.

The smallest time t is sought by bisection for which the chain can be cut into stages that take no longer, each of which
fits; of all such cuts dynamic programming finds the one that hands on the fewest bytes: with B(j, k) those of the best
cut of the first j units into k stages,

    B(j, k) = min B(i, k - 1) + b_j        over i < j where units i + 1 to j take at most t, and fit as stage k

Shapes: n units, k stages.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lissom.errors import ModelError
from lissom.recover.parallel.stages import Chain

TRIES = 3  # of which the fastest counts: all else is what other programs take
ROUND = 1e-9  # what sums of times may differ by
COPIES = 7  # a parameter, where it began, its unit, φ, φ's gradient and two moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a unit costs: the time of a part of a batch there and back, and bytes.

    `kept` are those that stay of such a part until it comes back, `held` those of what moves, and `handed` go on.
    """

    seconds: float
    kept: int = 0
    held: int = 0
    handed: int = 0


def measured(chain: Chain, given: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> list[Cost]:
    """The cost of each unit of a chain, for a part of a batch; the last one's with the loss of what the model says."""
    found = []
    for number in range(chain.count):
        stage = chain.stage(number, number + 1)
        ends = number + 1 == chain.count
        tries = [tried(stage, given, loss if ends else None) for _ in range(TRIES)]
        made = tries[-1][0]
        found.append(min((cost for _, cost in tries), key=lambda cost: cost.seconds))
        given = made
    return found


def tried(
    stage: nn.Module, given: Sequence[Tensor], loss: Callable[[Tensor], Tensor] | None
) -> tuple[list[Tensor], Cost]:
    """What a stage makes, and what it has cost."""
    own = {p.data_ptr() for p in stage.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.nbytes
        return x

    entered = [x.detach().requires_grad_(x.is_floating_point()) for x in given]
    begun = time.perf_counter()
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
        made = stage(*entered)
        several = list(made) if isinstance(made, tuple) else [made]
        ends = several if loss is None else [loss(several[0].float())]
    moving = [x for x in ends if x.requires_grad]
    if moving:
        torch.autograd.backward(moving, [torch.ones_like(x) for x in moving])
    seconds = time.perf_counter() - begun
    for p in stage.parameters():
        p.grad = None
    held = sum(p.nbytes * (COPIES if p.requires_grad else 1) for p in stage.parameters())
    handed = sum(x.nbytes for x in several)
    cost = Cost(seconds=seconds, kept=sum(kept.values()), held=held, handed=handed)
    return [x.detach() for x in several], cost


def cut(costs: Sequence[Cost], stages: int, room: float = float("inf"), parts: int = 1) -> list[int]:
    """The places where to cut so many units into stages, first and last end among them.

    Args:
        costs: of the units.
        stages: how many.
        room: bytes that a stage may take.
        parts: of a batch, as many of which wait in a stage as there are stages from it on, at most.

    Raises:
        ModelError: there are fewer units than stages, or no cut fits.
    """
    n = len(costs)
    if n < stages:
        raise ModelError(f"pipeline: there are {n} places to end a stage, too few for {stages}; take fewer stages")
    times = [0.0, *accumulate(unit.seconds for unit in costs)]
    limits = sorted({times[b] - times[a] for a, b in combinations(range(n + 1), 2)})
    if fewest(costs, stages, limits[-1], room, parts) is None:
        raise ModelError(
            f"pipeline: no cut into {stages} stages fits into {room / 1e9:.2f} GB each; take more stages, or smaller "
            "parts of a batch (accumulate)"
        )
    least = bisect_left(limits, True, key=lambda limit: fewest(costs, stages, limit, room, parts) is not None)
    found = fewest(costs, stages, limits[least], room, parts)
    assert found is not None
    return list(found)


def fewest(costs: Sequence[Cost], stages: int, limit: float, room: float, parts: int) -> tuple[int, ...] | None:
    """The places of the cut that hands on the fewest bytes where no stage takes longer; None where there is no cut."""
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for k in range(stages):
        waiting = min(parts, stages - k)
        now: dict[int, tuple[int, tuple[int, ...]]] = {}
        for i, (handed, ends) in best.items():
            seconds, nbytes = 0.0, 0
            for j in range(i + 1, len(costs) + 1):
                unit = costs[j - 1]
                seconds, nbytes = seconds + unit.seconds, nbytes + unit.held + waiting * unit.kept
                if nbytes > room or seconds > limit * (1 + ROUND):
                    break
                found = handed + unit.handed, (*ends, j)
                now[j] = min(now.get(j, found), found)
        best = now
    return best[len(costs)][1] if len(costs) in best else None
