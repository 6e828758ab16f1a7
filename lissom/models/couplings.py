"""Couplings by name: which rows of which parameters make the channels, and which columns of which layers read them.

Those of any module are found in its traced graph; those of language models are declared. A unit is what lives and dies
together: a channel with all its pixels where it was flattened, a head of attention with the queries that share its keys
and values, a group of a grouped convolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.models.families import Family, fused_sizes
from lissom.models.trace import Trace, traced


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """A dim of a parameter or buffer, and which unit each place on it belongs to; -1 for none of this coupling's.

    Places and units are numbered on the CPU, wherever the model is.
    """

    tensor: str
    dim: int
    units: Int[Tensor, " n"]

    def places(self, unit: Int[Tensor, " u"]) -> Int[Tensor, " p"]:
        """The places of some units, unit by unit."""
        order = torch.argsort(self.units, stable=True)
        known = self.units[order]
        unit = unit.contiguous()
        first, last = torch.searchsorted(known, unit), torch.searchsorted(known, unit, right=True)
        return torch.cat([order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)])

    def rest(self) -> Int[Tensor, " p"]:
        """The places of no unit."""
        return (self.units < 0).nonzero().flatten()

    def kept(self, alive: Int[Tensor, " u"]) -> Int[Tensor, " p"]:
        """The places that stay when only some units stay, in this order: each unit's go where another's were."""
        moved = torch.arange(len(self.units), device="cpu")
        moved[self.places(alive.sort().values)] = self.places(alive)
        return moved[torch.cat([self.places(alive), self.rest()]).sort().values]

    @property
    def layer(self) -> str:
        """The module that has the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reads:
    """A layer that reads the units: the columns of its weight, and what can take up a constant.

    That is its `bias`, or the running `mean` of the batch norm behind it; `norm` is the weight of the norm before it
    which divides by the size of all channels. Names of tensors, empty where there is none.
    """

    weight: Axis
    bias: str = ""
    mean: str = ""
    norm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joint:
    """A coupling by name: `units` that are alike, each of which can be taken away or change places with another.

    `kind` is as a `Coupling` has it. Of the "values" of attention so many as `unit` says are a head: they can only
    change places with each other.
    """

    units: int
    makers: tuple[Axis, ...]
    readers: tuple[Reads, ...]
    kind: str = "channels"
    unit: int = 1

    def without(self, done: "Joint", alive: Int[Tensor, " u"]) -> "Joint":
        """This coupling after only some units of `done`, perhaps itself, have stayed, in this order."""
        kept = {(a.tensor, a.dim): a.kept(alive) for a in (*done.makers, *(r.weight for r in done.readers))}

        def left(axis: Axis) -> Int[Tensor, " n"]:
            places = kept.get((axis.tensor, axis.dim))
            return axis.units if places is None else axis.units[places]

        own = left(self.makers[0]).unique()
        stay = alive if self is done else own[own >= 0]  # values go with their head
        numbers = torch.full((self.units + 1,), -1, device="cpu")  # the last is for places of no unit
        numbers[stay] = torch.arange(len(stay), device="cpu")
        makers = tuple(replace(axis, units=numbers[left(axis)]) for axis in self.makers)
        readers = tuple(replace(r, weight=replace(r.weight, units=numbers[left(r.weight)])) for r in self.readers)
        return replace(self, units=len(stay), makers=makers, readers=readers)

    @property
    def made_by(self) -> tuple[str, ...]:
        """The modules that lose outputs."""
        return tuple(dict.fromkeys(axis.layer for axis in self.makers))

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules that make the units, and those that read them."""
        return tuple(dict.fromkeys(axis.layer for axis in (*self.makers, *(r.weight for r in self.readers))))

    def inside(self, part: str) -> "Joint":
        """The same coupling of a part, by its full names."""

        def full(name: str) -> str:
            return f"{part}.{name}" if name and part else name

        makers = tuple(replace(axis, tensor=full(axis.tensor)) for axis in self.makers)
        readers = tuple(
            replace(r, weight=replace(r.weight, tensor=full(r.weight.tensor)), bias=full(r.bias), mean=full(r.mean))
            for r in self.readers
        )
        return replace(self, makers=makers, readers=readers)


def traced_joints(model: nn.Module, batch: Any) -> list[Joint]:
    """The couplings of any module, in the order in which they are read.

    Raises:
        ModelError: it cannot be traced.
    """
    trace = traced(model, batch)
    attended = {trace.joined.root(label) for labels in trace.attended for label in labels.unique().tolist()}
    places: dict[int, dict[tuple[str, int], int]] = {}
    for axis, labels in trace.axes.items():
        for label in labels.tolist():
            root = trace.joined.root(label)
            if root:
                found = places.setdefault(root, {})
                found[axis] = found.get(axis, 0) + 1
    alike: dict[Any, list[int]] = {}
    for root, found in places.items():
        alike.setdefault((tuple(found.items()), root in attended), []).append(root)
    joints = [joint(trace, [axis for axis, _ in kind], roots, heads) for (kind, heads), roots in alike.items()]
    return [found for found in joints if found.units > 1 and found.makers and found.readers]


def joint(trace: Trace, axes: Sequence[tuple[str, int]], roots: Sequence[int], heads: bool) -> Joint:
    """The coupling of units that have equally many places on each of these axes."""
    numbers = {root: number for number, root in enumerate(roots)}
    makers, readers = [], []
    for name, dim in axes:
        units = [numbers.get(trace.joined.root(label), -1) for label in trace.axes[name, dim].tolist()]
        axis = Axis(tensor=name, dim=dim, units=torch.tensor(units, device="cpu"))
        if dim == 1 and name in trace.columns:
            readers.append(Reads(weight=axis, bias=trace.columns[name], mean=trace.shifts[name]))
        else:
            makers.append(axis)
    kind = "heads" if heads else "channels"
    return Joint(units=len(roots), makers=tuple(makers), readers=tuple(readers), kind=kind)


def declared_joints(block: nn.Module, family: Family) -> list[Joint]:
    """The couplings inside a block of a language model: its heads, query heads with their group's, and its neurons.

    Of each head also the values that attention sums, which its query heads read in one and the same order. Heads that
    one layer makes all stay: transformers tells its parts apart by a number that is the same in every block.
    """
    tensors = dict(block.named_parameters())
    head: int = block.get_submodule(family.attention).head_dim  # type: ignore[assignment]
    threes, twos = 3 // len(family.heads), 2 // len(family.neurons)
    whole = [(family.heads, family.mixes, 1, head, 1, "heads")] if threes == 1 else []
    kinds = (
        *whole,
        (family.heads[-1:], family.mixes, threes, 1, head, "values"),
        *((neurons, sums, twos, 1, 1, "channels") for neurons, sums in family.feeds(block)),
    )
    return [
        declared_joint(tensors, *kind)
        for kind in kinds
        if tensors.keys() >= {f"{name}.weight" for name in (*kind[0], kind[1])}  # not compressed already
    ]


def declared_joint(
    tensors: Mapping[str, Tensor], makers: Sequence[str], reader: str, fused: int, each: int, unit: int, kind: str
) -> Joint:
    """A coupling of units of `each` rows of makers that are `fused` of so many layers."""
    inputs = tensors[f"{reader}.weight"].shape[1]
    sizes = {name: fused_sizes(tensors[f"{name}.weight"].shape[0], inputs, fused) for name in makers}
    units = min(min(own) for own in sizes.values()) // each
    axes = [
        Axis(tensor=f"{name}.{own}", dim=0, units=numbered_parts(units, parts, unit, kind == "values"))
        for name, parts in sizes.items()
        for own in ("weight", "bias")
        if f"{name}.{own}" in tensors
    ]
    columns = Axis(tensor=f"{reader}.weight", dim=1, units=numbered(units, inputs, unit))
    reads = Reads(weight=columns, bias=f"{reader}.bias" if f"{reader}.bias" in tensors else "")
    return Joint(units=units, makers=tuple(axes), readers=(reads,), kind=kind, unit=unit)


def numbered(units: int, size: int, unit: int) -> Int[Tensor, " n"]:
    """Units of equally many places: `unit` of them one after the other, the same again and again, then the next."""
    return torch.arange(units, device="cpu").reshape(-1, 1, unit).expand(-1, size // units, -1).flatten()


def numbered_parts(units: int, sizes: Sequence[int], unit: int, last: bool) -> Int[Tensor, " n"]:
    """The units of a layer that is fused of parts of these sizes; with `last`, of its last part alone."""
    parts = [numbered(units, size, unit) for size in sizes]
    return torch.cat([*(torch.full_like(part, -1) if last else part for part in parts[:-1]), parts[-1]])


def block_joints(model: nn.Module, family: Family, only: str | None = None) -> list[Joint]:
    """The declared couplings of all blocks of a language model, or of one."""
    blocks: Mapping[str, nn.Module] = dict(model.get_submodule(family.blocks).named_children())
    named = {f"{family.blocks}.{name}": block for name, block in blocks.items()}
    return [
        found.inside(name)
        for name, block in named.items()
        if only in (None, name)
        for found in declared_joints(block, family)
    ]


def width_joints(model: nn.Module, family: Family) -> list[Joint]:
    """The residual stream of a language model: none where a layer that writes to it or reads it is compressed.

    Where norms stand behind what is written to it, each of its channels weighs on all, and only their order is free.
    """
    tensors = dict(model.named_parameters())
    blocks = {f"{family.blocks}.{name}": block for name, block in model.get_submodule(family.blocks).named_children()}
    written = [f"{name}.{family.mixes}" for name in blocks]
    written += [f"{name}.{sums}" for name, block in blocks.items() for _, sums in family.feeds(block)]
    read = {
        f"{name}.{reader}": f"{name}.{link.makers[0]}"
        for name, block in blocks.items()
        for link in family.linked(block)
        if link.makers[0] not in (*family.heads, *(made for makers, _ in family.feeds(block) for made in makers))
        for reader in link.readers
    }
    makers = {f"{family.embedding}.weight": 1} | {f"{name}.weight": 0 for name in dict.fromkeys(read.values())}
    makers |= {f"{family.norm}.weight": 0} | {f"{name}.weight": 0 for name in written}
    makers |= {f"{block}.{name}.weight": 0 for block in blocks for name in family.behind}
    makers |= {f"{name}.bias": 0 for name in written if f"{name}.bias" in tensors}
    if f"{family.head}.weight" in tensors:  # not tied to the embedding
        read[family.head] = family.norm
    if not tensors.keys() >= makers.keys() | {f"{name}.weight" for name in read}:
        return []
    units = torch.arange(tensors[f"{family.norm}.weight"].shape[0], device="cpu")
    readers = tuple(
        Reads(
            weight=Axis(tensor=f"{name}.weight", dim=1, units=units),
            bias=f"{name}.bias" if f"{name}.bias" in tensors else "",
            norm=f"{norm}.weight",
        )
        for name, norm in read.items()
    )
    axes = tuple(Axis(tensor=name, dim=dim, units=units) for name, dim in makers.items())
    return [Joint(units=len(units), makers=axes, readers=readers, kind="order" if family.behind else "width")]
