"""A convolutional network as a program: what a traced module does to images, from layer to layer, in C and at once.

    y = after(before(norm(conv x)) + other)       one step; `other` is what a residual brings

Maps have their channels innermost. A convolution on panels rounds what it reads as it does where it runs alone
(kernels/conv.py), and gives the same numbers. What a program does not know stays in PyTorch, before it and behind it.

Shapes: n images, c channels, h high, w wide.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.conv import PanelConv
from lissom.engine.maps import FLOATS, Flow, Operation, Pool, overwritten, read
from lissom.engine.patches import Packed
from lissom.engine.stand_in import StandIn, stand_in
from lissom.engine.steps import Plan
from lissom.errors import ModelError

SHAPES = 8  # of images, for which programs are kept


def native_images(model: nn.Module) -> nn.Module:
    """Let a model run as a program, or modules in it: such as can be traced and hold several convolutions on panels."""
    return stand_in(model, traced)


def count(layers: Iterator[Any]) -> int:
    """How many of them are convolutions on panels."""
    return sum(isinstance(layer, PanelConv) for layer in layers)


def traced(model: nn.Module) -> "NativeImages | None":
    """The model with programs in its graph, or None where it cannot be traced, or holds none."""
    if count(model.modules()) < 2 or not native.kernels():
        return None
    try:
        graph = copied(model.graph) if isinstance(model, fx.GraphModule) else Flow().trace(model)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a flow that depends on the data, most often
        return None
    parts: dict[str, Any] = {
        str(node.target): reduce(getattr, str(node.target).split("."), model)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    known, changed = {}, set[fx.Node]()
    for node in graph.nodes:
        before = overwritten(node, parts)
        found = None if before or not changed.isdisjoint(node.all_input_nodes) else read(node, parts)
        if before is not None:
            changed.add(before)
        if found is not None:
            known[node] = found
    regions = list(regions_of(known, parts))
    for at, region in enumerate(regions):
        parts[f"images_{at}"] = Images(region, parts)
        region.replace(f"images_{at}")
    return NativeImages(model, fx.GraphModule(parts, graph)) if regions else None


def copied(graph: fx.Graph) -> fx.Graph:
    """Other nodes of the same."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    made.set_codegen(graph._codegen)
    return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """Nodes of a graph that a program can run: what they do to what, beginning with one node's images."""

    entry: fx.Node
    known: Mapping[fx.Node, tuple[Operation, list[fx.Node]]]
    outputs: list[fx.Node]  # those that are read outside

    def graph(self, parts: Mapping[str, Any]) -> fx.GraphModule:
        """The nodes by themselves, in PyTorch."""
        alone = fx.Graph()
        made = {self.entry: alone.placeholder("x")}
        for node in self.known:
            for constant in node.all_input_nodes:
                if constant not in made:
                    made[constant] = alone.node_copy(constant)
            made[node] = alone.node_copy(node, made.__getitem__)
        alone.output(tuple(made[node] for node in self.outputs))
        return fx.GraphModule(dict(parts), alone)

    def replace(self, name: str) -> None:
        """One module of that name, in the graph, in place of them."""
        graph = self.entry.graph
        with graph.inserting_after(self.entry):
            made = graph.call_module(name, (self.entry,))
        for at, node in enumerate(self.outputs):
            with graph.inserting_after(made):
                part = graph.call_function(operator.getitem, (made, at))
            node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in self.known)
        for node in reversed(list(self.known)):
            graph.erase_node(node)


def regions_of(known: Mapping[fx.Node, tuple[Operation, list[fx.Node]]], parts: Mapping[str, Any]) -> Iterator[Region]:
    """All that can be reached from the images that a convolution on panels reads, if it is two such or more."""
    taken: set[fx.Node] = set()
    for first, (_, (entry, *_)) in known.items():
        if first in taken or not isinstance(parts.get(str(first.target)), PanelConv):
            continue
        inside: dict[fx.Node, tuple[Operation, list[fx.Node]]] = {}
        flat = {node for node, (operation, _) in known.items() if isinstance(operation, Pool) and operation.flat}
        for node, (operation, sources) in known.items():
            if node not in taken and all(
                source is entry or (source in inside and source not in flat) for source in sources
            ):
                inside[node] = operation, sources
        if count(parts.get(str(node.target)) for node in inside) > 1:
            taken |= inside.keys()
            outputs = [node for node in inside if any(user not in inside for user in node.users)]
            yield Region(entry=entry, known=inside, outputs=outputs)


class NativeImages(StandIn):
    """A model whose convolutions run as programs while it evaluates; it has all attributes of the original."""

    def __init__(self, model: nn.Module, graph: fx.GraphModule) -> None:
        super().__init__(model)
        self.traced = graph

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the model gives."""
        return (self.model if self.training else self.traced)(*arguments, **named)


class Images(nn.Module):
    """A region of a graph as a program, made for each size of images; other inputs than floats go through PyTorch.

    Inputs of 16 bits are computed with in 32, and what comes out is rounded to theirs.
    """

    def __init__(self, region: Region, parts: Mapping[str, Any], kernel: str | None = None) -> None:
        super().__init__()
        self.alone, self._kernel = region.graph(parts), kernel or native.kernels()[-1]
        self._known = {
            node.name: (what, [one.name for one in sources]) for node, (what, sources) in region.known.items()
        }
        self._entry, self._outputs = region.entry.name, [node.name for node in region.outputs]
        self._plans: dict[tuple[int, ...], Plan | None] = {}
        self._packed: dict[str, Packed] = {}
        self._idle: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_packed": {}, "_idle": []}

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, ...]:
        """What is read outside of the region."""
        plan = self._plan(x) if x.dim() == 4 and x.dtype in FLOATS and x.device.type == "cpu" else None
        if plan is None:
            return self.alone(x)  # type: ignore[no-any-return]
        return tuple(made.to(x.dtype) for made in self._run(plan, x.detach().float()))

    def _plan(self, x: Tensor) -> Plan | None:
        size, plans = tuple(x.shape[1:]), self._plans
        if size in plans:
            return plans[size]
        try:
            plan = Plan(self._known, self._entry, self._outputs, size, self._packed)
        except ModelError:
            plan = None
        self._plans = {**dict(list(plans.items())[1 - SHAPES :]), size: plan}  # others may be reading the former
        return plan

    def _run(self, plan: Plan, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, ...]:
        threads = torch.get_num_threads()
        try:
            room = self._idle.pop()
        except IndexError:  # other threads have all that there are
            room = torch.empty(0)
        if room.numel() < threads * plan.bytes:
            room = torch.empty(threads * plan.bytes, dtype=torch.uint8)
        made = plan.run(x, room, self._kernel, threads)
        self._idle.append(room)
        return made
