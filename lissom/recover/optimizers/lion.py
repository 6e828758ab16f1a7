"""Lion: every parameter moves by the same amount, only the direction is learned.

Chen et al., NeurIPS 2023, arXiv:2302.06675, algorithm 2:

    c = β₁ m + (1 - β₁) g        θ ← θ - η (sign(c) + λ θ)        m ← β₂ m + (1 - β₂) g

One moment where Adam has two; rates three to ten times smaller than Adam's, and decay as many times larger.
"""

from typing import Any

import torch
from torch.optim import Optimizer

from lissom.recover.optimizers.closure import Closure, called
from lissom.techniques.knobs import above, at_least, fraction


class Lion(Optimizer):
    """Sign of an interpolated momentum."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        above(0, lr=lr)
        fraction(beta1=betas[0], beta2=betas[1])
        at_least(0, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Move by the gradients, which `closure` computes if there is one; returns its loss."""
        loss = called(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(m.lerp(p.grad, 1 - first).sign_(), alpha=-group["lr"])
                m.lerp_(p.grad, 1 - second)
        return loss
