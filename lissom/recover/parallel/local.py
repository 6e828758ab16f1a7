"""Local steps: each process learns by itself for a while, then all meet, and what they tell each other is in few bits.

Douillard et al., DiLoCo, 2023, arXiv:2311.08105, algorithm 1, over n processes and `every` H steps of each:

    Δ = mean over processes of (θ_met - θ)        θ_met ← Nesterov's step from θ_met along Δ        θ ← θ_met

with Δ written in a code in two shots (`mean.py`), as Douillard et al., 2025, arXiv:2501.18512, section 2.3, do in 4
bits; what a code forgets of a process's own is added to its next one.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lissom.errors import ModelError
from lissom.recover.parallel.gradients import code_of
from lissom.recover.parallel.mean import Mean, finite
from lissom.recover.parallel.wire import Meter, Wire, summed
from lissom.techniques.knobs import above, at_least, fraction


class LocalSteps:
    """The meetings of one model's processes. Each calls `step` after every step of its own optimizer.

    Args:
        model: with the same parameters on all processes; those of the first are taken.
        processes: the group of them; by default all.
        every: steps between two meetings.
        kind: what travels: as for `compress_gradients`, but for powersgd; None for float32.
        lr, momentum: of the meetings.
        knobs: of the kind.

    Raises:
        ModelError: no parameter is to move.
        RecipeError: the kind or a knob does not exist, or has an impossible value.
    """

    def __init__(
        self,
        model: nn.Module,
        processes: dist.ProcessGroup | None = None,
        *,
        every: int = 50,
        kind: str | None = "int4",
        lr: float = 0.7,
        momentum: float = 0.9,
        **knobs: Any,
    ) -> None:
        at_least(1, every=every)
        above(0, lr=lr)
        fraction(momentum=momentum)
        self.moving = [p for p in model.parameters() if p.requires_grad]
        if not self.moving:
            raise ModelError(f"local steps: no parameter of {type(model).__name__} requires a gradient")
        self.meter, self.every, self.apart = Meter(), every, 0
        self.wire = Wire(processes or dist.group.WORLD, self.meter)  # type: ignore[arg-type]  # there is one once it is asked
        self.mean = None if kind is None else Mean(self.wire, code_of(kind, knobs))
        self.met = nn.Parameter(self.first(parameters_to_vector(self.moving).detach()))
        self.owed: Tensor | None = None
        self.optimizer = torch.optim.SGD([self.met], lr=lr, momentum=momentum, nesterov=momentum > 0)
        self.put()

    def first(self, x: Tensor) -> Tensor:
        """What the first process has; in a sum, since that is what every group can."""
        held = x.clone() if self.wire.rank() == 0 else torch.zeros_like(x)
        self.wire.group.allreduce([held]).wait()
        return held

    @torch.no_grad()
    def put(self) -> None:
        """The model where all have met."""
        for p, part in zip(self.moving, self.met.split([p.numel() for p in self.moving]), strict=True):
            p.copy_(part.view_as(p))

    def step(self) -> bool:
        """Count a step, and meet where it is time; returns whether all have met."""
        self.apart += 1
        self.meter.plain += summed(4 * len(self.met), self.wire.size())  # of gradients, at every step
        if self.apart == self.every:
            self.meet()
        return not self.apart

    def meet(self) -> None:
        """Meet now, unless nobody has moved since they have met."""
        if not self.apart:
            return
        with torch.no_grad():
            self.met.grad = self.moved(self.met - parameters_to_vector(self.moving))
        self.optimizer.step()
        self.put()
        self.apart = 0

    def state(self) -> dict[str, Any]:
        """Where all have met last, and which way they went; what a code still owes is not kept."""
        held = self.optimizer.state[self.met]
        return {"met": self.met.detach(), "speed": held.get("momentum_buffer")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand there again."""
        with torch.no_grad():
            self.met.copy_(state["met"])
        if state["speed"] is not None:
            self.optimizer.state[self.met]["momentum_buffer"] = state["speed"].to(self.met.device)

    def moved(self, own: Tensor) -> Tensor:
        """The mean over all processes of how far each has come."""
        if self.mean is None:
            self.wire.allreduce([own])
            return own / self.wire.size()
        mean, lost = self.mean.of(own if self.owed is None else own + self.owed, "met")
        self.owed = finite(lost) if self.mean.code.forgets else None
        return mean.to(own.dtype)
