"""SAM: go down from the worst place near by, so that what is found is flat; flat minima generalise better.

Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, arXiv:2010.01412, eq. (2) and algorithm 1, for p = 2:

    ε = ρ g / ‖g‖₂        θ ← step of the optimizer beneath at θ, by the gradient at θ + ε

It computes every gradient twice.
"""

from typing import Any

import torch
from torch.optim import Optimizer

from lissom.errors import RecipeError
from lissom.recover.optimizers.closure import Closure, called
from lissom.techniques.knobs import above


class Sam(Optimizer):
    """Another optimizer, given the gradients at the worst place within `rho`."""

    def __init__(self, base: Optimizer, rho: float = 0.05) -> None:
        above(0, rho=rho)
        self.base, self.rho = base, rho
        super().__init__(base.param_groups, {})
        self.param_groups = base.param_groups  # the very same, so that a schedule of rates reaches it
        self.state = base.state

    def step(self, closure: Closure | None = None) -> Any:
        """Move; `closure` computes the gradients anew, and is called twice. Returns the loss at the first place.

        Raises:
            RecipeError: there is no closure.
        """
        if closure is None:
            raise RecipeError("sam computes gradients twice; give step a function that does it, step(closure)")
        loss = called(closure)
        moved = self.climb()
        called(closure)
        with torch.no_grad():
            for p, before in moved:
                p.copy_(before)
        self.base.step()
        return loss

    @torch.no_grad()
    def climb(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Move all parameters together to where the loss is largest near by; returns them as they were."""
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not held:
            return []
        norm = torch.stack([p.grad.norm() for p in held if p.grad is not None]).norm()
        moved = [(p, p.clone()) for p in held]
        for p in held:
            assert p.grad is not None
            p.add_(p.grad * (self.rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)))
        return moved

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer beneath."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state
