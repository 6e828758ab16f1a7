"""Channel permutation: which inputs to put into one N:M group, so that the pattern costs least.

Zhang, Bai, Lin, Zhao, Hou, Cannistraci, ICLR 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", section 4: channels are dealt out by falling total score, then improved by linear sum assignment.

Taken out of its group, channel c would add to group g, by what the kept of the others there leave to be gained,

    A_cg = Σ_o max(0, S_oc - T_og)        T_og the `keep`-th largest of the others of g in row o

One channel is taken from every group, all are assigned anew so that Σ A is largest, and so on place by place. As each
may stay where it is, what is kept never falls.

Shapes: o outputs, i inputs, g groups (as many channels are assigned at a time).
"""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lissom.errors import RecipeError

ROWS = 16  # of the scores at a time: g x g numbers for each


def permutation(score: Float[Tensor, "o i"], *, keep: int = 2, of: int = 4, rounds: int = 4) -> Int[Tensor, " i"]:
    """The order of the inputs that keeps most of `score`; `score[:, order]` is what the pattern is then applied to.

    Layers that read the same inputs are permuted together: stack their scores as rows. The inputs are permuted for free
    where the layer before can give its outputs in this order.

    Raises:
        RecipeError: the pattern does not fit.
    """
    inputs = score.shape[1]
    if not 0 < keep < of or inputs % of:
        raise RecipeError(f"keep={keep}, of={of} is no pattern for {inputs} inputs; try keep=2, of=4")
    groups = dealt(score, of)
    for _ in range(rounds):
        before = groups.clone()
        for place in range(of):
            others = torch.cat((groups[:, :place], groups[:, place + 1 :]), 1)
            gain = gains(score, groups[:, place], others, keep)
            channel, group = linear_sum_assignment(gain.numpy(force=True), maximize=True)
            groups[torch.as_tensor(group), place] = groups[torch.as_tensor(channel), place]
        if torch.equal(groups, before):
            break
    return groups.flatten()


def dealt(score: Float[Tensor, "o i"], of: int) -> Int[Tensor, "g m"]:
    """The channels by falling total, dealt out to the groups in turn, so that the large ones are spread."""
    return score.sum(0).argsort(descending=True, stable=True).reshape(of, -1).T.contiguous()


def gains(
    score: Float[Tensor, "o i"], channels: Int[Tensor, " g"], others: Int[Tensor, "g n"], keep: int
) -> Float[Tensor, "g g"]:
    """A: what each channel would add to each group."""
    bar = score[:, others].topk(keep, dim=2).values[..., -1]
    total = torch.zeros(len(channels), len(channels), dtype=torch.float64)
    for rows, bars in zip(score[:, channels].split(ROWS), bar.split(ROWS), strict=True):
        total += (rows[:, :, None] - bars[:, None, :]).clamp(min=0).sum(0)
    return total


def kept_score(score: Float[Tensor, "o i"], order: Int[Tensor, " i"], *, keep: int = 2, of: int = 4) -> float:
    """How much of the score an N:M pattern keeps when the inputs are in this order."""
    return float(score[:, order].reshape(len(score), -1, of).topk(keep, dim=2).values.double().sum())
