"""Tensor parallel: the layers of a language model's blocks cut over several workers, by heads and by neurons.

Shoeybi et al., Megatron-LM, 2019, arXiv:1909.08053, section 3:

    Y = Σ_r σ(X A_r) B_r        worker r has some outputs of A and the inputs of B that read them

X is the same on all workers. What goes in is passed on as it is, and its gradients are summed (f); what comes out is
summed, and its gradients are passed on (g). Both are changes of placement of a DTensor. Compressed matrices are cut
as they are written (`Trainable.taken`): along outputs anywhere, along inputs between whole groups.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from lissom.errors import ModelError, RecipeError
from lissom.formats import CompressedLayer, Trainable
from lissom.formats.weight import Taken, leave, prefixed
from lissom.models.families import FAMILIES, Family, at, fused_sizes
from lissom.recover.parallel.pieces import Piece


@dataclass(slots=True, kw_only=True)
class Cut:
    """What became of a model on this worker.

    `pieces` are the tensors that are here in part, `absent` the parameters that are not here, and `shared` those that
    are whole on all workers, and whose gradients on each are of its part of the work: to be summed.
    """

    pieces: dict[str, Piece] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)


def cut_model(model: nn.Module, mesh: DeviceMesh) -> Cut:
    """Leave of a language model what this worker of a mesh of one axis has, in place.

    Raises:
        ModelError: it is no language model of a known family.
        RecipeError: there are too few heads, or neurons in whole groups; a matrix cannot be cut; layers share one.
    """
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if family is None:
        raise ModelError(f"tensor: {type(model).__name__} is no language model of {', '.join(FAMILIES)}; take pipeline")
    found, cutter = Cut(), Cutter(mesh)
    check_own(model, family)
    for number, block in at(model, family.blocks).named_children():
        cutter.cut_attention(found, block, f"{family.blocks}.{number}", family)
        for neurons, sums in family.feeds(block):
            cutter.cut_feed(found, block, f"{family.blocks}.{number}", neurons, sums)
    return found


def check_own(model: nn.Module, family: Family) -> None:
    """See that no two layers share a tensor.

    Raises:
        RecipeError: two do.
    """
    seen: dict[int, str] = {}
    for name, p in at(model, family.blocks).named_parameters(remove_duplicate=False):
        if seen.setdefault(id(p), name) != name:
            raise RecipeError(f"tensor: {seen[id(p)]} and {name} are one, which cannot be cut twice; take shard")


class Cutter:
    """Cuts layers for one worker of a mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.rank, self.count = mesh, mesh.get_local_rank(), mesh.size()

    def cut_attention(self, found: Cut, block: nn.Module, prefix: str, family: Family) -> None:
        """Each worker has some heads of keys and values, and the queries that ask them."""
        attention, mixes = at(block, family.attention), at(block, family.mixes)
        size: int = attention.head_dim  # type: ignore[assignment]
        queries = shape_of(mixes)[1] // size
        rows = [shape_of(at(block, name))[0] for name in family.heads]
        fused = fused_sizes(rows[0], queries * size, 3) if len(rows) == 1 else rows
        heads = fused[1] // size
        each = queries // heads
        a, b = self.range(f"{prefix}.{family.attention}", "heads of keys", mixes, heads, each * size)
        own = [torch.arange(a * each * size, b * each * size)] + [torch.arange(a * size, b * size)] * 2
        before = set(parameters_in(attention, f"{prefix}.{family.attention}"))
        self.cut_columns(found, block, prefix, family.heads, own, fused)
        self.cut_row(found, block, prefix, family.mixes, own[0])
        layers = tuple(f"{prefix}.{name}." for name in (*family.heads, family.mixes))
        found.shared |= {name for name in before if not name.startswith(layers)}
        attention.config = copy(attention.config)
        for name, count in (("num_attention_heads", (b - a) * each), ("num_key_value_heads", b - a)):
            for counted in (attention, attention.config):  # some count heads by these
                if hasattr(counted, name):
                    setattr(counted, name, count)

    def cut_feed(self, found: Cut, block: nn.Module, prefix: str, neurons: Sequence[str], sums: str) -> None:
        """Each worker has some neurons."""
        reader = at(block, sums)
        inputs = shape_of(reader)[1]
        a, b = self.range(f"{prefix}.{sums}", "neurons", reader, inputs, 1)
        several = 2 if len(neurons) == 1 else len(neurons)
        own = [torch.arange(a, b)] * several
        self.cut_columns(found, block, prefix, neurons, own, [inputs] * several)
        self.cut_row(found, block, prefix, sums, own[0])

    def range(self, name: str, what: str, reader: nn.Module, count: int, size: int) -> tuple[int, int]:
        """Which of so many things of `size` inputs are this worker's; only whole groups of the reader are.

        Raises:
            RecipeError: there are not as many as there are workers.
        """
        together = next(n for n in range(1, count + 1) if n == count or cuttable(reader, n * size))
        units = -(-count // together)
        if units < self.count:
            raise RecipeError(
                f"tensor={self.count}: {name} has {count} {what}, {together} of which stay together in whole groups; "
                f"take tensor={units} at most"
            )
        ends = [min(units * r // self.count * together, count) for r in (self.rank, self.rank + 1)]
        return ends[0], ends[1]

    def cut_columns(
        self,
        found: Cut,
        block: nn.Module,
        prefix: str,
        names: Sequence[str],
        own: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> None:
        """Cut the outputs of layers that read the same; one may be fused of several."""
        if len(names) == 1:
            starts = [sum(sizes[:n]) for n in range(len(sizes))]
            own = [torch.cat([start + places for start, places in zip(starts, own, strict=True)])]
        entry = Entry(self.mesh, len(names))
        for name, places in zip(names, own, strict=True):
            layer = at(block, name)
            cut_layer(found, layer, f"{prefix}.{name}", 0, places)
            layer.register_forward_pre_hook(entry)

    def cut_row(self, found: Cut, block: nn.Module, prefix: str, name: str, places: Tensor) -> None:
        """Cut the inputs of a layer, whose outputs are summed; its bias is added once, by the first worker."""
        layer = at(block, name)
        cut_layer(found, layer, f"{prefix}.{name}", 1, places)
        if layer.bias is not None and self.rank:
            layer.register_parameter("bias", None)
            found.absent.add(f"{prefix}.{name}.bias")
        layer.register_forward_hook(lambda _, given, output: summed(output, self.mesh))


class Entry:
    """f, for all layers that read the same: it is gone through once, so that gradients are summed once."""

    def __init__(self, mesh: DeviceMesh, count: int) -> None:
        self.mesh, self.count = mesh, count
        self.given: Tensor | None = None
        self.passed: Tensor | None = None
        self.left = 0

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the layer reads in place of what it is given."""
        if given[0] is not self.given or self.passed is None:
            self.given, self.passed, self.left = given[0], entering(given[0], self.mesh), self.count
        passed = self.passed
        self.left -= 1
        if not self.left:
            self.given = self.passed = None
        return (passed, *given[1:])


def entering(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """f: as it is, and back the sum of all workers' gradients."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


def summed(y: Tensor, mesh: DeviceMesh) -> Tensor:
    """g: the sum over all workers, and back the gradient as it is."""
    part = DTensor.from_local(y, mesh, [Partial()], run_check=False)
    return part.redistribute(placements=[Replicate()]).to_local()


def cut_layer(found: Cut, layer: nn.Module, name: str, dim: int, places: Tensor) -> None:
    """Leave of a layer some outputs, or some inputs."""
    wanted = taken(layer, dim, places)
    if not dim and layer.bias is not None:
        wanted["bias"] = (0, places)
    for own, (along, there) in wanted.items():
        whole: Any = layer.get_submodule(own.rpartition(".")[0])
        shape = tuple(getattr(whole, own.rpartition(".")[2]).shape)
        found.pieces[f"{name}.{own}"] = Piece(shape=shape, dim=along, places=there)
    leave(layer, wanted)
    matrix = [own for own, _ in layer.named_parameters() if own.startswith("matrix.") and own not in wanted]
    found.shared |= {f"{name}.{own}" for own in matrix}
    setattr(layer, ("out_features", "in_features")[dim], len(places))


def taken(layer: nn.Module, dim: int, places: Tensor) -> Taken:
    """What of a layer's tensors belongs to some outputs or inputs."""
    if isinstance(layer, CompressedLayer):
        assert isinstance(layer.matrix, Trainable)
        return prefixed("matrix", layer.matrix.taken(dim, places))
    return {"weight": (dim, places)}


def cuttable(reader: nn.Module, inputs: int) -> bool:
    """Whether so many inputs of a layer are whole groups.

    Raises:
        RecipeError: its format cannot be cut along inputs at all.
    """
    taken(reader, 1, torch.arange(shape_of(reader)[1]))
    try:
        taken(reader, 1, torch.arange(inputs))
    except RecipeError:
        return False
    return True


def parameters_in(part: nn.Module, prefix: str) -> Iterator[str]:
    """The names of a part's parameters, in the whole."""
    return (f"{prefix}.{name}" for name, _ in part.named_parameters())


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Its outputs and inputs."""
    weight: Any = layer.weight
    return weight.shape[0], weight.shape[1]
