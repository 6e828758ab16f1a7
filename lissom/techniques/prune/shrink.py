"""Channels that are taken away for good, and what reads them made to do without them.

For a layer Y = X Wᵀ + b that reads the channels, the best it can do without the columns P, keeping K, is least squares,
in closed form from the Gram; with a bias, which takes up what was constant, C is the covariance of X and otherwise
XᵀX / n:

    W' = W C_:K (C_KK)⁻¹        b' = b + W μ - W' μ_K        E‖Y - Y'‖² = Σ tr( W_:p ((C⁻¹)_pp)⁻¹ W_:pᵀ )

the sum over the units p of P in the order of their going, W and C⁻¹ as those before have left them (Kurtić, Frantar,
Alistarh, ZipLM, NeurIPS 2023, arXiv:2302.04089, eq. (3) to (5)): greedily, the unit that costs least goes first, and
the cost of the others is then known again. Over several readers costs are added, each as a part of the variance of
what its reader says.

Shapes: c channels, o outputs and i inputs of a reader, k columns of a channel, p columns that go.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.coupling import Coupling, Reader, columns, places
from lissom.statistics import Gram
from lissom.techniques.knobs import above, at_least, fraction

ROUNDS = 64  # in which all channels would go: of up to 64 channels one goes at a time, of more a few


def shrink(
    c: Coupling, grams: Sequence[Gram], *, sparsity: float, multiple: int, damp: float, repair: bool
) -> Coupling:
    """The fraction `sparsity` of the channels removed, so that a multiple of `multiple` is left."""
    fraction(sparsity=sparsity)
    at_least(1, multiple=multiple)
    above(0, damp=damp)
    going = int(sparsity * c.channels + 1e-6)  # 0.7 of ten are seven, whatever floats make of it
    left = -(-(c.channels - going) // multiple) * multiple
    if left >= c.channels:
        return c
    keep = remaining(c, grams, c.channels - left, damp)
    short = c.keeping(keep)
    if not repair:
        return short
    fitted = [repaired(r, x, columns(r, keep, c.channels), damp) for r, x in zip(c.readers, grams, strict=True)]
    return replace(short, readers=tuple(fitted))


def spread(r: Reader, x: Gram, damp: float) -> Float[Tensor, "i i"]:
    """C, damped: the covariance where there is a bias, otherwise XᵀX / n.

    Where there is nothing to C but what rounding has left, it is damped by as much as that may be.
    """
    c = x.mean.double()
    if r.bias is not None:
        c = c - torch.outer(x.center.double(), x.center.double())
    single, mean = torch.finfo(torch.float32), c.diagonal().mean()
    rounding = single.eps * x.power.double().sum()
    strength = torch.where(mean > rounding, damp * mean, rounding).clamp(min=single.tiny)
    return c + torch.eye(len(c), dtype=c.dtype, device=c.device) * strength


def repaired(r: Reader, x: Gram, kept: Int[Tensor, " k"], damp: float) -> Reader:
    """The reader of the kept columns that says most nearly what it said."""
    w, c = r.matrix.double(), spread(r, x, damp)
    fitted = torch.linalg.solve(c[kept][:, kept], c[kept] @ w.T).T
    short = r.only(kept, fitted.float())
    if r.bias is None:
        return short
    center = x.center.double()
    bias = r.bias.double() + w @ center - fitted @ center[kept]
    return replace(short, bias=bias.float())


@dataclass(slots=True)
class Standing:
    """A reader as the removals so far have left it: W, scaled so that its output has variance 1, and C⁻¹."""

    w: Float[Tensor, "o i"]
    inverse: Float[Tensor, "i i"]
    own: int  # columns that read the channels

    @classmethod
    def of(cls, readers: Sequence[Reader], x: Gram, damp: float) -> "Standing":
        """Nothing removed yet, of readers of one and the same input: one, with the outputs of all."""
        first, c = readers[0], spread(readers[0], x, damp)
        ws = [r.matrix.double() for r in readers]
        sizes = [((w @ c) * w).sum().sqrt().clamp(min=torch.finfo(torch.float32).tiny) for w in ws]
        scaled = torch.cat([w / size for w, size in zip(ws, sizes, strict=True)])
        return cls(scaled, torch.linalg.inv(c), first.matrix.shape[1] - first.others)

    def costs(self, channels: int) -> Float[Tensor, " c"]:
        """tr(W_:p ((C⁻¹)_pp)⁻¹ W_:pᵀ) for each channel; of no meaning for those that are gone."""
        k = self.own // channels
        if k == 1:
            pivots = self.inverse.diagonal()[: self.own]
            return self.w[:, : self.own].square().sum(0) / pivots.where(pivots > 0, 1.0)
        w = self.w[:, : self.own].unflatten(1, (channels, k))
        blocks = self.inverse[: self.own, : self.own].unflatten(0, (channels, k)).unflatten(2, (channels, k))
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        gone = blocks.diagonal(dim1=1, dim2=2).sum(1) <= 0
        blocks = torch.where(gone[:, None, None], torch.eye(k, dtype=blocks.dtype, device=gone.device), blocks)
        squares = torch.einsum("ock,ocl->ckl", w, w)
        found: Tensor = torch.linalg.solve(blocks, squares).diagonal(dim1=1, dim2=2).sum(1)
        return found

    def part(self, channels: Int[Tensor, " n"], of: int) -> "Standing":
        """Some of the channels, seen by themselves: enough to know what they cost as others of them go."""
        at = places(channels, of, self.own)
        return Standing(self.w[:, at], self.inverse[at][:, at], len(at))

    def remove(self, gone: Int[Tensor, " n"], of: int) -> None:
        """Take channels away; the other columns make good what they can."""
        at = places(gone, of, self.own)
        pull = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])
        self.w -= self.w[:, at] @ pull
        self.inverse -= self.inverse[:, at] @ pull
        self.w[:, at], self.inverse[at], self.inverse[:, at] = 0, 0, 0


def remaining(c: Coupling, grams: Sequence[Gram], count: int, damp: float) -> Int[Tensor, " k"]:
    """The channels that are left when the `count` cheapest have gone, one after the other."""
    alive = torch.ones(c.channels, dtype=torch.bool, device=c.readers[0].matrix.device)
    for gone, _ in removals(c, grams, count, damp):
        alive[gone] = False
    return alive.nonzero().flatten()


def losses(c: Coupling, grams: Sequence[Gram], *, damp: float = 0.001) -> Float[Tensor, " c"]:
    """What the readers lose when 0, 1, 2, ... channels go: parts of the variance of what each says, summed."""
    paid = [costs for _, costs in removals(c, grams, c.channels - 1, damp)]
    none = torch.zeros(1, dtype=torch.float64, device=c.readers[0].matrix.device)
    return torch.cat([none, *paid]).cumsum(0)


def removals(
    c: Coupling, grams: Sequence[Gram], count: int, damp: float
) -> Iterator[tuple[Int[Tensor, " g"], Float[Tensor, " g"]]]:
    """The `count` cheapest channels, one after the other or, where there are many, some at a time; what each costs."""
    standing = [Standing.of(readers, x, damp) for readers, x in together(c.readers, grams)]
    alive = torch.ones(c.channels, dtype=torch.bool, device=c.readers[0].matrix.device)
    while count:
        costs = cost(standing, c.channels).masked_fill(~alive, torch.inf)
        step = min(count, -(-c.channels // ROUNDS))
        gone, paid = among(standing, costs.argsort()[: min(4 * step, int(alive.sum()))], c.channels, step)
        for s in standing:
            s.remove(gone, c.channels)
        alive[gone] = False
        count -= step
        yield gone, paid


def together(readers: Sequence[Reader], grams: Sequence[Gram]) -> list[tuple[list[Reader], Gram]]:
    """The readers of one and the same Gram, where all of them have a bias or none has one."""
    same: dict[tuple[int, bool, int], tuple[list[Reader], Gram]] = {}
    for r, x in zip(readers, grams, strict=True):
        same.setdefault((id(x), r.bias is None, r.others), ([], x))[0].append(r)
    return list(same.values())


def cost(standing: Sequence[Standing], channels: int) -> Float[Tensor, " c"]:
    """What each channel costs all readers."""
    return torch.stack([s.costs(channels) for s in standing]).sum(0)


def among(
    standing: Sequence[Standing], candidates: Int[Tensor, " n"], of: int, count: int
) -> tuple[Int[Tensor, " g"], Float[Tensor, " g"]]:
    """The `count` of a few candidates that cost least, one after the other: of two alike, only one goes."""
    here, parts = candidates.device, [s.part(candidates, of) for s in standing]
    gone: list[int] = []
    paid: list[float] = []
    for _ in range(count):
        costs = cost(parts, len(candidates))
        costs[gone] = torch.inf
        gone.append(int(costs.argmin()))
        paid.append(float(costs.min()))
        for s in parts:
            s.remove(torch.tensor(gone[-1:], device=here), len(candidates))
    return candidates[torch.tensor(gone, device=here)], torch.tensor(paid, dtype=torch.float64, device=here)
