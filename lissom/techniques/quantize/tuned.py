"""Tuned: what a weight is rounded to, and where it is clipped, learned on the output of its block.

Cheng et al., SignRound / AutoRound, Findings of EMNLP 2024, arXiv:2309.05516, eq. (3)-(6): rounding offsets and
clipping ranges move by the sign of the gradient of the block's output error, with a step that falls linearly to zero:

    min over V, s of  ‖ block(Q(W; V, s)) x̂ - block(W) x ‖²        θ_t+1 = θ_t - η (1 - t/T) u sign(∂L/∂θ)

where x̂ is what the compressed blocks before it make, x what the original ones make, and u the distance between two
points of the parameter's grid. Here every format is tuned, by whatever it can move: codes and scales of integers,
codebooks, factors; it starts from what the technique before it chose, with the latent weights as close to the original
ones as the chosen codes allow, and the start is kept if the end is not better.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.errors import DataError, RecipeError
from lissom.formats import Trainable
from lissom.techniques.knobs import above, at_least, one_of, seed_of

Lots = Sequence[tuple[Callable[[], Tensor], Tensor]]  # how to run the module on a lot of data, and what it should say


def divergence(said: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted ‖ said) of logits in the last dim, the mean over predictions, in nats.

    Raises:
        RecipeError: there is one number for each example.
    """
    if said.dim() < 2:
        raise RecipeError("loss='kl' is between predictions, and a number for each example is none; take loss='mse'")
    before, after = (logits.log_softmax(-1).flatten(0, -2) for logits in (wanted, said))
    return F.kl_div(after, before, log_target=True, reduction="batchmean")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "kl": divergence}


def tuned(
    module: nn.Module, lots: Lots, /, *, iterations: int = 100, lr: float = 0.002, seed: int = 0, loss: str = "mse"
) -> None:
    """Move the trainable weights of `module` that want gradients, a lot of data at each of `iterations` steps."""
    one_of(LOSSES, loss=loss)
    at_least(1, iterations=iterations)
    above(0, lr=lr)
    parts = (part for part in module.modules() if isinstance(part, Trainable))
    units = {p: unit for part in parts for p, unit in part.units().items() if p.requires_grad}
    if not units or not lots:
        return
    before = {p: p.detach().clone() for p in units}
    start = begun(mean_loss(lots, LOSSES[loss]))
    generator = torch.Generator().manual_seed(seed_of(seed))
    passes = range(-(-iterations // len(lots)))
    order = torch.cat([torch.randperm(len(lots), generator=generator, device="cpu") for _ in passes])
    for t, place in enumerate(order[:iterations].tolist()):
        run, wanted = lots[place]
        gradients = torch.autograd.grad(LOSSES[loss](run(), wanted), list(units), allow_unused=True)
        with torch.no_grad():
            for (p, unit), gradient in zip(units.items(), gradients, strict=True):
                if gradient is not None:
                    p.sub_(unit * gradient.sign(), alpha=lr * (1 - t / iterations))
    if not mean_loss(lots, LOSSES[loss]) < start:
        with torch.no_grad():
            for p, value in before.items():
                p.copy_(value)


def begun(loss: float) -> float:
    """The loss before anything has moved.

    Raises:
        DataError: it is no finite number, from which nothing can be learned.
    """
    if not math.isfinite(loss):
        raise DataError(
            f"data: the loss on it is {loss} before anything is learned; leave out the examples of which the model "
            "makes no finite numbers, or give a model that is sound"
        )
    return loss


@torch.no_grad()
def mean_loss(lots: Lots, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The loss over all data."""
    return sum(float(loss(run(), wanted)) for run, wanted in lots) / len(lots)
