"""Schedule-free: AdamW whose average, not its last step, is the model; so no rate has to go down in the end.

Defazio et al., NeurIPS 2024, arXiv:2405.15682, algorithm 1 (AdamW):

    y = (1 - β₁) z + β₁ x        g = ∂L(y)        v ← β₂ v + (1 - β₂) g²
    γ_t = γ √(1 - β₂^t) min(1, t / T_warm)        z ← z - γ_t (g / (√v + ε) + λ y)
    c = γ_t² / Σ_i γ_i²                           x ← (1 - c) x + c z

While it learns the parameters are y. What to judge and to keep is x: `eval()` puts it in place, `train()` takes it
away.
"""

from typing import Any

import torch
from torch.optim import Optimizer

from lissom.errors import RecipeError
from lissom.recover.optimizers.closure import Closure, called
from lissom.techniques.knobs import above, at_least, between, fraction


class ScheduleFree(Optimizer):
    """AdamW on z, gradients at y, the model is x."""

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: int = 0,
    ) -> None:
        above(0, lr=lr, eps=eps)
        between(1e-3, 1, beta1=betas[0])
        fraction(beta2=betas[1])
        at_least(0, weight_decay=weight_decay, warmup=warmup)
        own = {"t": 0, "weight": 0.0, "learning": True}
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup": warmup, **own}
        )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Move by the gradients, which `closure` computes if there is one; returns its loss.

        Raises:
            RecipeError: the averages are in place.
        """
        if not all(group["learning"] for group in self.param_groups):
            raise RecipeError("schedule-free: the averages are in place; call train() before a step")
        loss = called(closure)
        for group in self.param_groups:
            group["t"] += 1
            t, (beta1, beta2) = group["t"], group["betas"]
            rate = group["lr"] * (1 - beta2**t) ** 0.5 * min(1.0, t / max(1, group["warmup"]))
            group["weight"] += rate**2
            share = rate**2 / group["weight"]
            for y in (p for p in group["params"] if p.grad is not None):
                state = self.state[y]
                if not state:
                    state["z"], state["v"] = y.clone(), torch.zeros_like(y)
                z, v = state["z"], state["v"]
                v.lerp_(y.grad.square(), 1 - beta2)
                down = y.grad / (v.sqrt() + group["eps"]) + group["weight_decay"] * y
                x = (y - (1 - beta1) * z) / beta1
                z.sub_(down, alpha=rate)
                y.copy_(x.lerp_(z, share).mul_(beta1).add_(z, alpha=1 - beta1))
        return loss

    def eval(self) -> None:
        """Put the averages in place."""
        self.switch(learning=False)

    def train(self) -> None:
        """Go on learning."""
        self.switch(learning=True)

    @torch.no_grad()
    def switch(self, *, learning: bool) -> None:
        """x from y, or y from x."""
        for group in self.param_groups:
            beta1 = group["betas"][0]
            if group["learning"] == learning:
                continue
            group["learning"] = learning
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], 1 - beta1 if learning else 1 - 1 / beta1)
