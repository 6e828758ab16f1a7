"""The steps of recurrent layers in C: what is said goes through a compressed matrix, step by step.

A step of a small layer takes less time than asking for one, so that all of them are asked for at once.

Shapes: t steps, b batch, g gates, s what is said of a step.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.native import calls
from lissom.engine.kernels.panels import PanelLinear
from lissom.models.families import put
from lissom.models.recurrent import KINDS, Steps


class PanelSteps(Steps):
    """Steps whose matrix lies in panels; in PyTorch step by step where nothing was built, or sequences differ."""

    hidden: PanelLinear

    def forward(self, gates: Float[Tensor, "t b g"], *kept: Tensor) -> tuple[Tensor, ...]:
        """What is said of each step, and what is kept after the last."""
        kernels = native.kernels()
        here = kernels and len(gates) and gates.device.type == "cpu"
        return self.run(gates, kept, kernels[-1]) if here else super().forward(gates, *kept)

    def run(self, gates: Float[Tensor, "t b g"], kept: tuple[Tensor, ...], kernel: str) -> tuple[Tensor, ...]:
        """The same by one of native.kernels()."""
        first, *cell = (part.detach().float().contiguous() for part in kept)
        cell = [part.clone() for part in cell]
        rows = gates.detach().float().contiguous()
        said = calls.recur(
            self.hidden.given(), list(KINDS).index(self.kind), self.backward, rows, [first, *cell], kernel
        )
        last = said[0 if self.backward else -1]
        return tuple(part.to(gates.dtype) for part in (said, last, *cell))


def lower_steps(model: nn.Module) -> nn.Module:
    """Swap, in place, steps whose matrix lies in panels for such that run in C."""
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if type(part) is Steps and name and part.project is None and isinstance(part.hidden, PanelLinear):
            put(model, name, PanelSteps(part.kind, part.backward, part.hidden))
    return model
