"""Permute: channels change places, so that an N:M pattern of what reads them costs least.

Zhang, Bai, Lin, Zhao, Hou, Cannistraci, ICLR 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", section 4. S is the relative importance of all readers, as in `ria`:

    max over orders p of  Σ_o Σ_g  the `keep` largest of S_o,p(j),  j in group g of `of` inputs

Channels are dealt out by falling total score, then improved by linear sum assignment: taken out of its group, channel c
would add to group g, by what the kept of the others there leave to be gained,

    A_cg = Σ_o max(0, S_oc - T_og)        T_og the `keep`-th largest of the others of g in row o

One channel is taken from every group, all are assigned anew so that Σ A is largest, and so on place by place. As each
may stay where it is, what is kept never falls; where it is less than at first, the order at first is left.

The order is folded into what makes the channels, so that the model says what it said. Of attention the values change
places within their head, in all heads that share them alike. A step for the same pattern is to follow.

Shapes: c channels, o outputs, i inputs, k columns of a channel, u channels that may change places with each other,
g groups (as many channels are assigned at a time).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.coupling import Coupling, Reader
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least
from lissom.techniques.prune.ria import relative_importance
from lissom.techniques.prune.select import check

ROWS = 16  # of the scores at a time: g x g numbers for each


def permute(
    c: Coupling, x: tuple[Gram, ...], /, *, keep: int = 2, of: int = 4, power: float = 0.5, rounds: int = 4
) -> Coupling:
    """The channels in the order of which `keep` of every `of` inputs keep most; `x` has the Gram of each reader.

    `power` is that of `ria`. Readers whose groups hold more than these channels, as the k·k columns of a convolution
    do, have no say; where none has, everything stays as it is.
    """
    at_least(0, power=power, rounds=rounds)
    together = c.unit if c.rotates else c.channels
    pairs = zip(c.readers, x, strict=True)
    scores = [score for r, gram in pairs for score in scored(r, gram, c.channels, together, keep, of, power)]
    if not scores:
        return c
    parts = torch.cat(scores).split(together, 1)
    orders = [n * together + better(score, keep, of, rounds) for n, score in enumerate(parts)]
    return c.keeping(torch.cat(orders))


def scored(
    r: Reader, x: Gram, channels: int, together: int, keep: int, of: int, power: float
) -> Iterator[Float[Tensor, "o c"]]:
    """The score of the first column of every channel, of the second, ...: of those whose groups are channels in order.

    Raises:
        RecipeError: the pattern does not fit the reader.
    """
    own, inputs = r.matrix.shape[1] - r.others, r.matrix.shape[1]
    check(0.0, keep, of, inputs)
    score = relative_importance(r.matrix) * x.power.clamp(min=0) ** (power / 2)
    at = torch.arange(inputs, device=score.device) if r.at is None else r.at
    each, places = score[:, :own].unflatten(1, (channels, -1)).unbind(2), at[:own].reshape(channels, -1).T
    for one, place in zip(each, places.unflatten(1, (-1, together)), strict=True):
        if together % of == 0 and bool((place[:, 0] % of == 0).all() and (place.diff(dim=1) == 1).all()):
            yield one


def better(score: Float[Tensor, "o u"], keep: int, of: int, rounds: int) -> Int[Tensor, " u"]:
    """The order found, or the one there is if that keeps more."""
    there = torch.arange(score.shape[1], device=score.device)
    found = permutation(score, keep=keep, of=of, rounds=rounds)
    return max(there, found, key=lambda order: kept_score(score, order, keep=keep, of=of))


def permutation(score: Float[Tensor, "o i"], *, keep: int = 2, of: int = 4, rounds: int = 4) -> Int[Tensor, " i"]:
    """The order of the inputs that keeps most of `score`; `score[:, order]` is what the pattern is then applied to.

    Layers that read the same inputs are permuted together: stack their scores as rows. The inputs are permuted for free
    where the layer before can give its outputs in this order.

    Raises:
        RecipeError: the pattern does not fit.
    """
    from scipy import optimize  # here, since it is slow to import

    inputs = score.shape[1]
    check(0.0, keep, of, inputs)
    groups = dealt(score, of)
    for _ in range(rounds):
        before = groups.clone()
        for place in range(of):
            others = torch.cat((groups[:, :place], groups[:, place + 1 :]), 1)
            gain = gains(score, groups[:, place], others, keep)
            channel, group = optimize.linear_sum_assignment(gain.numpy(force=True), maximize=True)
            groups[groups.new_tensor(group), place] = groups[groups.new_tensor(channel), place]
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
    total = torch.zeros(len(channels), len(channels), dtype=torch.float64, device=score.device)
    for rows, bars in zip(score[:, channels].split(ROWS), bar.split(ROWS), strict=True):
        total += (rows[:, :, None] - bars[:, None, :]).clamp(min=0).sum(0)
    return total


def kept_score(score: Float[Tensor, "o i"], order: Int[Tensor, " i"], *, keep: int = 2, of: int = 4) -> float:
    """How much of the score an N:M pattern keeps when the inputs are in this order."""
    return float(score[:, order].reshape(len(score), -1, of).topk(keep, dim=2).values.double().sum())
