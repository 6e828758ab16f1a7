"""Together: several optimizers, each for parameters of its own, that behave as one."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lissom.recover.optimizers.closure import Closure, called


class Together(Optimizer):
    """Their groups are its groups, so that a schedule of rates reaches all of them."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.gather()

    def gather(self) -> None:
        """Take the parts' groups for its own."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Closure | None = None) -> Any:
        """Move by the gradients, which `closure` computes if there is one; returns its loss."""
        loss = called(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for part, own in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(own)
        self.gather()
