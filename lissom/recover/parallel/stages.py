"""Stages: a model as a chain of units, of which any that follow one another can be run by themselves.

Of a language model the units are its blocks, the embedding with the first and the head with the last; of any other
module what its traced graph does between two places where nothing but tensors of floating-point numbers passes. Where
branches run side by side in the graph, what one stage has made and a later one reads is handed through; so they may
run on different workers, too.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from lissom.calibrate import Batch
from lissom.calibrate.data import TARGETS, device_of
from lissom.compress.layers import said
from lissom.errors import DataError, ModelError, reason
from lissom.formats import CompressedLayer
from lissom.models.families import FAMILIES, Family, at


class Chain(ABC):
    """A model as units, one behind the other."""

    count: int

    @abstractmethod
    def stage(self, first: int, last: int) -> nn.Module:
        """The units from one to before another; called with tensors, the last stage gives what the model says.

        The first one's are the `inputs` of a batch. Modules and parameters are the model's own.
        """

    @abstractmethod
    def inputs(self, batch: Batch) -> list[Tensor]:
        """Those of a batch, in the order in which the first stage takes them."""


def chain_of(model: nn.Module, batch: Batch) -> Chain:
    """A model as a chain, `batch` being such as it will see.

    Raises:
        DataError: the batch has not the inputs that it takes.
        ModelError: its graph cannot be traced.
    """
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return Traced(model, batch) if family is None else Blocks(model, family)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The inputs of a batch by the names of a model's arguments; "" is the first."""
    if isinstance(batch, Mapping):
        return {name: part for name, part in batch.items() if name not in TARGETS}
    return {"": batch[0] if isinstance(batch, tuple) else batch}


class Through(nn.Module):
    """In the place of a block that another stage has: what comes in goes out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        if hasattr(block, "attention_type"):
            self.attention_type = block.attention_type

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Tensor:
        """As it is."""
        return hidden_states


class Blocks(Chain):
    """A language model, whose units are its blocks."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family
        self.count = len(list(at(model, family.blocks).children()))

    def stage(self, first: int, last: int) -> nn.Module:
        """A model of the same parts, but for those that other stages have."""
        family = self.family
        blocks = at(self.model, family.blocks).named_children()
        parts: dict[str, nn.Module] = {
            f"{family.blocks}.{name}": Through(block)
            for number, (name, block) in enumerate(blocks)
            if not first <= number < last
        }
        if first:
            parts[family.embedding] = nn.Identity()
        if last < self.count:
            parts |= {family.norm: nn.Identity(), family.head: nn.Identity()}
        return Decoder(replaced(self.model, parts), family, opens=first == 0, ends=last == self.count)

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Windows of tokens.

        Raises:
            DataError: there is something beside them.
        """
        several = inputs_of(batch)
        if len(several) > 1:
            raise DataError(f"pipeline: a language model learns from tokens alone, not from {', '.join(several)} too")
        return [x.to(device_of(self.model)) for x in several.values()]


class Decoder(nn.Module):
    """Some blocks of a language model; those that neither open nor end it take and give hidden states."""

    def __init__(self, model: nn.Module, family: Family, *, opens: bool, ends: bool) -> None:
        super().__init__()
        base, _, _ = family.blocks.rpartition(".")
        self.part = model if ends else at(model, base)
        self.opens, self.ends = opens, ends

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or hidden states."""
        found = self.part(**{"input_ids" if self.opens else "inputs_embeds": x}, use_cache=False)
        return said(self.part, found) if self.ends else found.last_hidden_state


def replaced(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A model that shares everything with another, but for some parts, by their dotted names."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    inner: dict[str, dict[str, nn.Module]] = {}
    for name, part in parts.items():
        child, _, rest = name.partition(".")
        if rest:
            inner.setdefault(child, {})[rest] = part
        else:
            found._modules[child] = part
    for child, own in inner.items():
        found._modules[child] = replaced(model.get_submodule(child), own)
    return found


class Traced(Chain):
    """Any module, whose units are pieces of its graph."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model = model
        self.graph = traced(model, inputs_of(batch))
        self.names = [node.target for node in self.graph.nodes if node.op == "placeholder"]
        nodes = [node for node in self.graph.nodes if node.op not in ("placeholder", "output")]
        values = observed(model, self.graph, self.inputs(batch))
        whole = [n for n in range(1, len(nodes)) if all(is_float(values[own]) for own in self.alive(nodes, n))]
        self.units = [nodes[a:b] for a, b in pairwise([0, *whole, len(nodes)])]
        self.ends = [0, *whole, len(nodes)]
        self.nodes, self.count = nodes, len(self.units)

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Those that the graph reads."""
        several = inputs_of(batch)
        ordered = several.values() if "" in several else [several[name] for name in self.names]
        return [x.to(device_of(self.model)) for x in ordered]

    def alive(self, nodes: Sequence[fx.Node], place: int) -> list[fx.Node]:
        """What is made before a place among the nodes and read behind it, inputs of the model among it."""
        behind = set(nodes[place:])
        made = [node for node in self.graph.nodes if node not in behind and node.op != "output"]
        return [node for node in made if any(user in behind or user.op == "output" for user in node.users)]

    def stage(self, first: int, last: int) -> nn.Module:
        """A graph of some of the nodes."""
        a, b = self.ends[first], self.ends[last]
        graph, held = fx.Graph(), {}
        entering = self.alive(self.nodes, a) if a else [n for n in self.graph.nodes if n.op == "placeholder"]
        for node in entering:
            held[node] = graph.placeholder(node.name)
        for node in self.nodes[a:b]:
            held[node] = graph.node_copy(node, held.__getitem__)
        if b == len(self.nodes):
            (end,) = (node for node in self.graph.nodes if node.op == "output")
            graph.output(fx.node.map_arg(end.args[0], held.__getitem__))
            return Ending(fx.GraphModule(self.model, graph))
        graph.output(tuple(held[node] for node in self.alive(self.nodes, b)))
        return fx.GraphModule(self.model, graph)


class Ending(nn.Module):
    """The last piece of a graph: of what the model gives, the tensor that is learned from."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *given: Tensor) -> Tensor:
        """What the model says."""
        return said(self.part, self.part(*given))


class Leaves(fx.Tracer):
    """Traces down to layers, and to parts whose own graph cannot be traced."""

    def __init__(self, closed: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.closed = set(closed)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one node."""
        return m in self.closed or isinstance(m, CompressedLayer) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module, given: Iterable[str]) -> fx.Graph:
    """The graph of a model that is given these arguments; "" is the first.

    Raises:
        DataError: the model takes others.
        ModelError: what it does depends on what it is given.
    """
    names = named(model, given)
    try:
        return graph_of(model, names, ())
    except Exception as error:  # whatever the model's own code says of being traced
        first = error
    try:
        return graph_of(model, names, untraceable(model))
    except Exception:
        raise ModelError(
            f"pipeline: the graph of {type(model).__name__} cannot be traced, so it cannot be cut: {reason(first)}"
        ) from first


def untraceable(model: nn.Module) -> set[nn.Module]:
    """The parts of a model whose own graphs cannot be traced; each is to stay in one piece."""
    found: set[nn.Module] = set()
    for part in reversed([*model.modules()][1:]):  # those within others first
        try:
            if not Leaves().is_leaf_module(part, ""):
                Leaves(found).trace(part)
        except Exception:  # as above
            found.add(part)
    return found


def graph_of(model: nn.Module, names: Collection[str], closed: Iterable[nn.Module]) -> fx.Graph:
    """The graph, with the arguments that are not given as they are by default."""
    several = inspect.signature(model.forward).parameters.values()
    absent = {one.name: one.default for one in several if one.name not in names and one.default is not one.empty}
    graph = Leaves(closed).trace(model, absent)
    for node in [node for node in graph.nodes if node.op == "placeholder" and node.target not in names]:
        forget(graph, node)
    return graph


def named(model: nn.Module, given: Iterable[str]) -> set[str]:
    """The names of the arguments that are given; "" is the first.

    Raises:
        DataError: some are none of the model's, or it needs others.
    """
    several = list(inspect.signature(model.forward).parameters.values())
    names = {several[0].name if name == "" else name for name in given}
    plain = [one for one in several if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = {one.name for one in plain if one.default is one.empty}
    if (len(plain) == len(several) and names - {one.name for one in plain}) or needed - names:
        takes = ", ".join(one.name + f" (by default {one.default})" * (one.name not in needed) for one in plain)
        raise DataError(
            f"pipeline: a batch has {', '.join(sorted(names)) or 'nothing'}, but {type(model).__name__} takes {takes}; "
            "name the inputs of a batch as the arguments of forward"
        )
    return names


def forget(graph: fx.Graph, node: fx.Node) -> None:
    """Take out a node and what is made of it: of an argument that is as it is by default, that this is so."""
    for user in list(node.users):
        forget(graph, user)
    graph.erase_node(node)


@torch.no_grad()
def observed(model: nn.Module, graph: fx.Graph, given: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """What each node makes of an example; of tensors an empty one of the same kind."""
    found: dict[fx.Node, Any] = {}

    class Seen(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            found[n] = torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
            return value

    Seen(fx.GraphModule(model, graph)).run(*given)
    return found


def is_float(value: Any) -> bool:
    """Whether it is a tensor of floating-point numbers, through which gradients can come back."""
    return isinstance(value, Tensor) and value.is_floating_point()
