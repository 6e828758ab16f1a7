"""AdamW with moments of 8 bits: a quarter of the memory that they take in float32.

Dettmers, Lewis, Shleifer, Zettlemoyer, ICLR 2022, arXiv:2110.02861, section 2: each block of a moment has a scale, its
largest magnitude, and each number in it is the nearest of 256, which lie by powers of ten, and evenly between these
(dynamic tree quantization; Dettmers, ICLR 2016, arXiv:1511.04561). The step is AdamW's (Loshchilov, Hutter, ICLR 2019,
arXiv:1711.05101, algorithm 2). What has few numbers stays in float32.

Shapes: p numbers, b blocks.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import Optimizer

from lissom.recover.optimizers.closure import Closure, called
from lissom.techniques.knobs import above, at_least, fraction

BLOCK, FEW = 256, 4096  # numbers that share a scale; fewer than which stay as they are
POWERS = 7  # of ten


class AdamW8(Optimizer):
    """AdamW, its moments in 8 bits."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        above(0, lr=lr, eps=eps)
        fraction(beta1=betas[0], beta2=betas[1])
        at_least(0, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Move by the gradients, which `closure` computes if there is one; returns its loss."""
        loss = called(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, group)
        return loss

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        """One parameter."""
        state, (beta1, beta2) = self.state[p], group["betas"]
        t = state["t"] = state.get("t", 0) + 1
        m = self.read(state, "m", p, signed=True).lerp_(g.float(), 1 - beta1)
        v = self.read(state, "v", p, signed=False).lerp_(g.float().square(), 1 - beta2)
        root = (v / (1 - beta2**t)).sqrt_().add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_((m / root).to(p.dtype), alpha=group["lr"] / (1 - beta1**t))
        for name, moment in (("m", m), ("v", v)):
            held = (moment,) if p.numel() < FEW else written(moment.flatten(), signed=name == "m")
            state[name] = [*held]

    def read(self, state: dict[str, Any], name: str, p: Tensor, *, signed: bool) -> Tensor:
        """A moment as it is remembered."""
        if name not in state:
            return torch.zeros_like(p, dtype=torch.float32)
        if p.numel() < FEW:
            return state[name][0]  # type: ignore[no-any-return]
        codes, scale = state[name]
        return read(codes, scale, p.numel(), signed=signed).view_as(p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`; codes stay codes, which PyTorch would make numbers of the parameters' type."""
        super().load_state_dict(state_dict)
        held = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for name, p in zip(names, held, strict=True):
            for moment in ("m", "v") if name in state_dict["state"] else ():
                self.state[p][moment] = [part.to(p.device) for part in state_dict["state"][name][moment]]


@cache
def levels(signed: bool) -> tuple[float, ...]:
    """The 256 numbers, from -1 or 0 to 1: between two powers of ten twice as many as between the two below."""
    found = [0.0, 1.0]
    for power in range(POWERS):
        count = 2 ** (power + (0 if signed else 1))
        middles = [0.1 + 0.9 * (k + 0.5) / count for k in range(count)]
        found += [10.0 ** (power - POWERS + 1) * middle for middle in middles]
    return tuple(sorted(found + [-value for value in found if 0 < value < 1] if signed else found))


def written(x: Float[Tensor, " p"], *, signed: bool) -> tuple[UInt8[Tensor, "b k"], Float[Tensor, " b"]]:
    """The nearest of the 256 numbers, and each block's scale."""
    blocks = pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    table = torch.tensor(levels(signed), device=x.device)
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(blocks / scale.clamp(min=torch.finfo(x.dtype).tiny).unsqueeze(1), between)
    return codes.to(torch.uint8), scale


def read(codes: UInt8[Tensor, "b k"], scale: Float[Tensor, " b"], p: int, *, signed: bool) -> Float[Tensor, " p"]:
    """The inverse of `written`, as far as there is one."""
    table = torch.tensor(levels(signed), device=codes.device)
    return (table[codes.int()] * scale.unsqueeze(1)).flatten()[:p]
