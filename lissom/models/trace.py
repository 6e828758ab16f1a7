"""Which channels of which tensors are the same, followed through the traced graph of a module.

Fang, Ma, Song, Mi, Wang, DepGraph, CVPR 2023, arXiv:2301.12900, is the idea: layers depend on one another by the dims
of what flows between them. Here every element of every value has a label, and labels that must live and die together
are joined. A value's label tensor has the value's rank, with size 1 in the dims along which it does not change, so that
an operation that only moves elements is run on the labels as it is. Label 0 is what must stay. What is not in the table
of operations makes all that it reads stay: never wrong, at worst not prunable.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lissom.errors import ModelError, reason
from lissom.models.labels import Joined, Label, compact, padded, varying
from lissom.models.operations import ALONG, CONVOLUTIONS, MOVES, POINTWISE, REDUCTIONS, SPATIAL


def shape_of(node: Node) -> torch.Size:
    """The shape of what a node makes."""
    shape: torch.Size = node.meta["val"].shape
    return shape


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node that makes a tensor."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)


def name_of(node: Node) -> str:
    """An operation's name, the same for its in-place form."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1].rstrip("_") if schema else getattr(node.target, "__name__", "")


def arguments(node: Node) -> dict[str, Any]:
    """An operation's arguments by name, defaults among them."""
    schema = node.target._schema  # type: ignore[union-attr]
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return named | dict(node.kwargs)


class Trace:
    """The labels of a module's parameters, from one walk over its graph.

    `axes` has the labels along a dim of a parameter; `columns` the weights whose dim 1 reads channels, with the bias
    beside each; `shifts` the running mean of the batch norm behind each, if there is one; `attended` labels that went
    through attention.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self.names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.joined = Joined()
        self.values: dict[Node, Any] = {}
        self.axes: dict[tuple[str, int], Label] = {}
        self.columns: dict[str, str] = {}
        self.shifts: dict[str, str] = {}
        self.attended: list[Label] = []
        self.used: set[str] = set()
        loose: set[str] = set()  # parameters that are read in ways which say nothing of their dims
        for node in program.graph.nodes:
            self.used.clear()
            self.values[node] = self.visit(node)
            loose |= {self.names[given.name] for given in node.all_input_nodes if given.name in self.names} - self.used
        for (name, _), labels in self.axes.items():
            if name in loose:
                self.joined.pin(labels)

    def visit(self, node: Node) -> Any:
        """The label of what a node makes: None where it must stay, a list where it makes several."""
        if node.op == "output":
            return self.unknown(node)
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            made = self.values[node.args[0]]  # type: ignore[index]
            return made[node.args[1]] if isinstance(made, list) else None  # type: ignore[index]
        return self.rule(name_of(node))(node)

    def rule(self, name: str) -> Callable[[Node], Any]:
        """What to do for an operation."""
        own: dict[str, Callable[[Node], Any]] = {
            "linear": self.linear,
            "embedding": self.embedding,
            "batch_norm": self.batch_norm,
            "prelu": self.prelu,
            "cat": self.cat,
            "scaled_dot_product_attention": self.attention,
            "matmul": self.matmul,
            "bmm": self.matmul,
        }
        families = (
            (MOVES, self.move),
            (POINTWISE, self.pointwise),
            (REDUCTIONS, self.reduce),
            (ALONG, self.along),
            (SPATIAL, self.spatial),
            (CONVOLUTIONS, self.convolution),
        )
        return own.get(name) or next((rule for names, rule in families if name in names), self.unknown)

    def label(self, node: Any) -> Label | None:
        """The label of an argument."""
        found = self.values.get(node) if isinstance(node, Node) else None
        return found if isinstance(found, Tensor) else None

    def full(self, node: Node) -> Label:
        """The label of every element."""
        label = self.label(node)
        label = torch.zeros(1, dtype=torch.long, device="cpu") if label is None else label
        return label.expand(shape_of(node))

    def parameter(self, node: Any) -> str | None:
        """The name of a parameter or buffer, if an argument is one as it stands."""
        return self.names.get(node.name) if isinstance(node, Node) and node.op == "placeholder" else None

    def axis(self, node: Any, dim: int, labels: Label | None = None) -> Label:
        """The labels along a dim of a parameter; joined with those given, or new."""
        name = self.parameter(node)
        assert name is not None
        self.used.add(name)
        if labels is None and (name, dim) not in self.axes:
            labels = self.joined.fresh(shape_of(node)[dim])
        known = self.axes.setdefault((name, dim), labels)  # type: ignore[arg-type]
        if labels is not None and known is not labels:
            self.joined.join(known, labels)
        return known

    def line(self, node: Node, dim: int) -> Label:
        """The labels along one dim; if they change along others too, they must stay."""
        label, dim = self.label(node), dim % len(shape_of(node))
        if label is not None and not set(varying(label)) <= {dim}:
            self.joined.pin(label)
            label = None
        count = shape_of(node)[dim]
        label = torch.zeros(1, dtype=torch.long, device="cpu") if label is None else label
        return label.flatten().expand(count)

    def unknown(self, node: Node) -> None:
        """All that it reads must stay."""
        for given in node.all_input_nodes:
            labels = self.values.get(given)
            for label in labels if isinstance(labels, list) else [labels]:
                if label is not None:
                    self.joined.pin(label)

    def move(self, node: Node) -> Any:
        """Labels move as the elements do."""
        if all(self.label(given) is None for given in node.all_input_nodes):
            return None
        given = torch.fx.node.map_arg(arguments(node), lambda n: self.full(n) if is_tensor(n) else n.meta["val"])
        if given.get("mode", "constant") != "constant":
            return self.unknown(node)
        if "size" in given and name_of(node).endswith("view"):  # labels do not lie in memory as the elements do
            return compact(given["self"].reshape(given["size"]))
        made = node.target(**given | ({"value": 0} if "value" in given else {}))  # type: ignore[operator]
        return [compact(label) for label in made] if isinstance(made, list | tuple) else compact(made)

    def pointwise(self, node: Node) -> Label | None:
        """Labels of all operands are the same, where they meet."""
        operands = [given for given in node.all_input_nodes if is_tensor(given)]
        shape = shape_of(node)
        labels = [self.label(o).reshape(padded(self.label(o), shape)) for o in operands if self.label(o) is not None]  # type: ignore[union-attr, arg-type]
        if not labels:
            return None
        merged = labels[0]
        for label in labels[1:]:
            merged, label = torch.broadcast_tensors(merged, label)
            self.joined.join(merged, label)
        for operand in operands:
            if self.label(operand) is None:
                self.beside(operand, merged, shape)
        return compact(merged)

    def beside(self, operand: Node, label: Label, shape: torch.Size) -> None:
        """A parameter or a fixed value meets labels: it has a place for each, or it holds some of them together."""
        size = padded(torch.empty(shape_of(operand), device="meta"), shape)
        met = [d for d in varying(label) if size[d] > 1]
        if not met:
            return
        if self.parameter(operand) and varying(label) == met and len(met) == 1:
            dim = met[0] - (len(shape) - len(shape_of(operand)))
            self.axis(operand, dim, label.flatten())
            return
        free = [d for d in varying(label) if d not in met]
        order = [*free, *(d for d in range(label.dim()) if d not in free)]
        groups = label.permute(order).flatten(len(free)) if free else label.flatten()
        if not free:
            self.joined.pin(groups)
        for group in groups.reshape(-1, groups.shape[-1]) if free else ():
            self.joined.together(group)

    def reduce(self, node: Node) -> Label | None:
        """Dims that are summed away must have no labels."""
        given = arguments(node)
        dims = given.get("dim")
        label = self.kept(node.args[0], list(range(len(shape_of(node.args[0])))) if dims in (None, []) else dims)  # type: ignore[arg-type]
        if label is None:
            return None
        rank = label.dim()
        gone = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
        return label if given.get("keepdim") else label.reshape([s for d, s in enumerate(label.shape) if d not in gone])

    def along(self, node: Node) -> Label | None:
        """Dims over which an operation looks must have no labels; the others pass."""
        given = arguments(node)
        dims = list(range(-len(given["normalized_shape"]), 0)) if "normalized_shape" in given else given["dim"]
        return self.kept(node.args[0], dims)  # type: ignore[arg-type]

    def kept(self, node: Node, dims: int | Sequence[int]) -> Label | None:
        """A label that does not change along these dims, or else None, and then it must stay."""
        label = self.label(node)
        if label is None:
            return None
        gone = {d % label.dim() for d in ([dims] if isinstance(dims, int) else dims)}
        if gone & set(varying(label)):
            self.joined.pin(label)
            return None
        return label

    def spatial(self, node: Node) -> Any:
        """The last dims are pooled or resized."""
        count = int(name_of(node)[-2])
        label = self.kept(node.args[0], range(-count, 0))  # type: ignore[arg-type]
        return [label, None] if isinstance(node.meta["val"], tuple | list) else label

    def cat(self, node: Node) -> Label | None:
        """Parts one behind the other must agree on everything beside them."""
        parts: list[Node] = node.args[0]  # type: ignore[assignment]
        dim = arguments(node)["dim"] % len(shape_of(node))
        if all(self.label(part) is None for part in parts):
            return None
        beside = [self.full(part).select(dim, 0) for part in parts]
        if any(set(varying(label)) - {dim} for label in map(self.label, parts) if label is not None):
            for other in beside[1:]:
                self.joined.join(beside[0], other)
        return compact(torch.cat([self.full(part) for part in parts], dim))

    def linear(self, node: Node) -> Label | None:
        """x Wᵀ + b."""
        return self.layer(node, -1)

    def convolution(self, node: Node) -> Label | None:
        """A convolution; in groups, the channels of a group go together."""
        unbatched = len(shape_of(node.args[0])) < len(shape_of(node.args[1]))  # type: ignore[arg-type]
        return self.layer(node, 0 if unbatched else 1, arguments(node)["groups"])

    def layer(self, node: Node, dim: int, groups: int = 1) -> Label | None:
        """A layer with a matrix reads channels along a dim, and makes others there."""
        given = arguments(node)
        x, w, b = given["input"], given["weight"], given["bias"]
        name = self.parameter(w)
        if name is None or (b is not None and self.parameter(b) is None):
            self.unknown(node)
            return None
        read, made = self.line(x, dim), self.axis(w, 0)
        if b is not None:
            self.axis(b, 0, made)
        if groups > 1:
            for ours, theirs in zip(made.chunk(groups), read.chunk(groups), strict=True):
                self.joined.together(torch.cat([ours, theirs]))
        else:
            self.axis(w, 1, read)
            self.shifts[name] = "" if name in self.columns else self.normalized(node)
            self.columns[name] = self.parameter(b) or ""
        shape = [1] * len(shape_of(node))
        shape[dim] = -1
        return made.reshape(shape)

    def normalized(self, node: Node) -> str:
        """The running mean of a batch norm that alone reads what a layer makes, and reads nothing else."""
        norms = [user for user in node.users if name_of(user) == "batch_norm"]
        mean = arguments(norms[0])["running_mean"] if norms and len(node.users) == 1 else None
        return self.parameter(mean) or "" if mean is not None and len(mean.users) == 1 else ""

    def embedding(self, node: Node) -> Label | None:
        """Rows of a table: its columns are channels."""
        if self.parameter(node.args[0]) is None:
            return self.unknown(node)  # type: ignore[func-returns-value]
        made = self.axis(node.args[0], 1)
        return made.reshape([1] * (len(shape_of(node)) - 1) + [-1])

    def batch_norm(self, node: Node) -> Label | None:
        """A channel's own weight, bias, mean and variance."""
        given = arguments(node)
        labels = self.line(given["input"], 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            if given[name] is not None and self.parameter(given[name]):
                self.axis(given[name], 0, labels)
        return self.label(given["input"]) if labels.any() else None

    def prelu(self, node: Node) -> Label | None:
        """A slope for each channel, or one for all."""
        x, slope = node.args[:2]
        if shape_of(slope).numel() == 1:  # type: ignore[arg-type]
            return self.label(x)
        labels = self.line(x, 1)  # type: ignore[arg-type]
        if self.parameter(slope):
            self.axis(slope, 0, labels)
        else:
            self.joined.pin(labels)
        return self.label(x) if labels.any() else None

    def attention(self, node: Node) -> Label | None:
        """What meets in a head lives and dies together."""
        given = arguments(node)
        query, key, value = (given[name] for name in ("query", "key", "value"))
        shared = shape_of(query)[-3] // shape_of(key)[-3] if given.get("enable_gqa") else 1
        if given["attn_mask"] is not None and self.label(query) is not None:
            self.beside(given["attn_mask"], self.full(query)[..., :1, :1], shape_of(query))
        one, other, last = (self.full(n) for n in (query, key, value))
        other, last = (t.repeat_interleave(shared, -3) for t in (other, last))
        return self.meet([one, other, last], last, shape_of(node))

    def matmul(self, node: Node) -> Label | None:
        """What is multiplied for the same place of a batch lives and dies together."""
        one, other = node.args[:2]
        labels = [self.full(n) for n in (one, other)]  # type: ignore[arg-type]
        if any(label.dim() < 3 for label in labels) or labels[0].dim() != labels[1].dim():
            return self.unknown(node)  # type: ignore[func-returns-value]
        turned = labels[1] if bool(labels[1].any()) else labels[0]
        return self.meet(labels, turned, shape_of(node))

    def meet(self, labels: list[Label], made: Label, shape: torch.Size) -> Label | None:
        """Join all labels of the same place of the leading dims; what comes out is called as in `made`."""
        flat = [label.expand(*shape[:-2], *label.shape[-2:]).flatten(-2).flatten(0, -2) for label in labels]
        if not any(bool(label.any()) for label in flat):
            return None
        for place in {tuple(row.unique().tolist()) for row in torch.cat(flat, 1)}:
            self.joined.together(torch.tensor(place, device="cpu"))
        out = made[..., :1, :].expand(*shape[:-2], 1, made.shape[-1])
        out = out if made.shape[-1] == shape[-1] else out[..., :1]
        self.attended.append(out.reshape(-1))
        return compact(out.expand(*shape[:-1], out.shape[-1]))


def traced(model: nn.Module, batch: Any) -> Trace:
    """Follow the labels through a module that runs on a batch (a tensor, or keyword arguments).

    Raises:
        ModelError: torch.export cannot follow the module.
    """
    given = ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
    try:
        with torch.no_grad():
            program = torch.export.export(model, given[0], given[1], strict=False)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be traced ({reason(error)}): how its layers hang together is unknown"
        ) from None
    return Trace(program)
