"""torch.nn's recurrent layers with their matrices as layers of their own: LSTM, GRU, RNN, and their cells.

The inputs of all steps are multiplied at once; what was said of the step before, step by step.

Shapes: b batch, t steps, n steps of all sequences, i inputs, h hidden, s what is said of a step, g gates, l layers
times directions.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lissom.errors import DataError
from lissom.formats.linear import once
from lissom.models.layers import linear

Said: TypeAlias = Float[Tensor, "b s"]
Kept: TypeAlias = tuple[Tensor, ...]  # from one step to the next: what was said [b, s], of an LSTM its cell [b, h] too


def lstm(gates: Float[Tensor, "*b g"], heard: Float[Tensor, "*b g"], kept: Kept) -> Kept:
    """What an LSTM says, and its cell (Hochreiter, Schmidhuber, Neural Computation 1997, with a gate that forgets)."""
    let_in, keep, new, let_out = (gates + heard).chunk(4, -1)
    cell = keep.sigmoid() * kept[1] + let_in.sigmoid() * new.tanh()
    return let_out.sigmoid() * cell.tanh(), cell


def gru(gates: Float[Tensor, "*b g"], heard: Float[Tensor, "*b g"], kept: Kept) -> Kept:
    """What a GRU says (Cho and others, EMNLP 2014, arXiv:1406.1078), its reset behind the product as in torch.nn."""
    reset, keep, new = gates.chunk(3, -1)
    to_reset, to_keep, before = heard.chunk(3, -1)
    new = (new + (reset + to_reset).sigmoid() * before).tanh()
    return (new + (keep + to_keep).sigmoid() * (kept[0] - new),)


def tanh(gates: Float[Tensor, "*b g"], heard: Float[Tensor, "*b g"], kept: Kept) -> Kept:
    """What a plain network says."""
    return ((gates + heard).tanh(),)


def relu(gates: Float[Tensor, "*b g"], heard: Float[Tensor, "*b g"], kept: Kept) -> Kept:
    """The same, rectified."""
    return ((gates + heard).relu(),)


KINDS: dict[str, Callable[[Tensor, Tensor, Kept], Kept]] = {
    "LSTM": lstm,
    "GRU": gru,
    "RNN_TANH": tanh,
    "RNN_RELU": relu,
}
PARTS = ("hidden", "project")  # of `Steps`
BACK = "_reverse"  # what torch.nn's names of the other direction end with


class Steps(nn.Module):
    """One direction of one layer: what is said of each step, from its gates and from what was said of the one before.

    `hidden` makes gates of what was said; `project`, where an LSTM has one, what is said of what it would say.
    """

    def __init__(self, kind: str, backward: bool, hidden: nn.Module, project: nn.Module | None = None) -> None:
        super().__init__()
        self.kind, self.backward, self.hidden, self.project = kind, backward, hidden, project

    @property
    def told(self) -> dict[str, Any]:
        """What makes such steps, of layers with the names `PARTS`."""
        return {"kind": self.kind, "backward": self.backward}

    def forward(self, gates: Float[Tensor, "t b g"], *kept: Tensor) -> tuple[Tensor, ...]:
        """What is said of each step [t, b, s], and what is kept after the last."""
        said, kept = self.over(gates.unbind(0), kept)
        return torch.stack(said), *kept

    def over(self, gates: Sequence[Float[Tensor, "_ g"]], kept: Kept) -> tuple[list[Tensor], Kept]:
        """The same step by step, each of which may be of the first sequences only, if those that go on come first."""
        said, first, ended = list[Tensor](), kept, list[Kept]()
        kept = tuple(part[: len(gates[-1])] for part in kept) if self.backward else kept
        with once(self.hidden), once(self.project):
            for now in reversed(gates) if self.backward else gates:
                rows = len(kept[0])
                if len(now) < rows:  # some have ended
                    ended.append(tuple(part[len(now) :] for part in kept))
                    kept = tuple(part[: len(now)] for part in kept)
                elif len(now) > rows:  # backwards some begin
                    more = (part[rows : len(now)] for part in first)
                    kept = tuple(map(torch.cat, zip(kept, more, strict=True)))
                kept = self.step(now, kept)
                said.append(kept[0])
        kept = tuple(map(torch.cat, zip(kept, *reversed(ended), strict=True))) if ended else kept
        return said[::-1] if self.backward else said, kept

    def step(self, gates: Float[Tensor, "*b g"], kept: Kept) -> Kept:
        """One step."""
        said, *rest = KINDS[self.kind](gates, self.hidden(kept[0]), kept)
        return said if self.project is None else self.project(said), *rest


class Recurrent(nn.Module):
    """Layers of steps, called as `torch.nn.LSTM`, `GRU` or `RNN` is."""

    def __init__(self, fused: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.batch_first, self.dropout = fused.mode, fused.batch_first, fused.dropout
        self.input_size, self.hidden_size, self.proj_size = fused.input_size, fused.hidden_size, fused.proj_size
        self.num_layers, self.bidirectional, self.bias = fused.num_layers, fused.bidirectional, fused.bias
        for place in self.places():
            own = {name: fused._parameters.get(f"{name}_{place}") for name in ("weight_hr", "bias_ih", "bias_hh")}
            matrices = (fused.get_parameter(f"{name}_{place}") for name in ("weight_ih", "weight_hh"))
            inputs, hidden = map(linear, matrices, (own["bias_ih"], own["bias_hh"]))
            project = None if own["weight_hr"] is None else linear(own["weight_hr"])
            self.add_module(f"input_{place}", inputs)
            self.add_module(f"steps_{place}", Steps(self.mode, place.endswith(BACK), hidden, project))
        self.train(fused.training)

    def places(self) -> list[str]:
        """What tells layers and directions apart in names, as torch.nn has it."""
        ways = ("", BACK) if self.bidirectional else ("",)
        return [f"l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    def whole(self) -> nn.RNNBase | None:
        """torch.nn's own with the same tensors; None where a layer is compressed or was made smaller."""
        kind: Any = getattr(nn, self.mode.partition("_")[0])
        told = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        more = {"nonlinearity": self.mode.partition("_")[2].lower()} if kind is nn.RNN else {}
        made: nn.RNNBase = kind(
            **{name: getattr(self, name) for name in told},
            **more,
            **({"proj_size": self.proj_size} if self.proj_size else {}),
            device="meta",
        )
        for place in self.places():
            inputs, steps = (self._modules[f"{part}_{place}"] for part in ("input", "steps"))
            assert isinstance(steps, Steps)
            for name, layer in (("ih", inputs), ("hh", steps.hidden), ("hr", steps.project)):
                if layer is None:
                    continue
                if type(layer) is not nn.Linear:
                    return None
                weight, bias = f"weight_{name}_{place}", f"bias_{name}_{place}"
                if layer.weight.shape != made.get_parameter(weight).shape:
                    return None
                setattr(made, weight, layer.weight)
                if layer.bias is not None:
                    setattr(made, bias, layer.bias)
        return made.train(self.training)

    def flatten_parameters(self) -> None:
        """Nothing: by this torch.nn's layers are made ready for a GPU, and models call it."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | Kept | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | Kept]:
        """What is said of each step, and what each layer keeps after its last step, [l, b, s]; of an LSTM a pair.

        A batch of sequences is [t, b, i], or [b, t, i] where it comes first, a sequence alone [t, i].
        """
        if isinstance(input, PackedSequence):
            return self.packed(input, hx)
        alone = input.dim() == 2
        x = input.unsqueeze(1) if alone else input.transpose(0, 1) if self.batch_first else input
        given = () if hx is None else (hx,) if isinstance(hx, Tensor) else hx
        given = tuple(part.unsqueeze(1) for part in given) if alone else given
        x, kept = self.run(x, None, self.begun(x, x.shape[1], given))
        if alone:
            x, kept = x.squeeze(1), tuple(part.squeeze(1) for part in kept)
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, kept if self.mode == "LSTM" else kept[0]

    def packed(self, input: PackedSequence, hx: Tensor | Kept | None) -> tuple[PackedSequence, Tensor | Kept]:
        """The same of sequences of different lengths, the longest of which come first."""
        x, sizes, order, back = input
        given = () if hx is None else (hx,) if isinstance(hx, Tensor) else hx
        given = self.begun(x, int(sizes[0]), given)
        given = given if order is None else tuple(part.index_select(1, order) for part in given)
        x, kept = self.run(x, sizes.tolist(), given)
        kept = kept if back is None else tuple(part.index_select(1, back) for part in kept)
        return PackedSequence(x, sizes, order, back), kept if self.mode == "LSTM" else kept[0]

    def begun(self, x: Tensor, batch: Any, given: Kept) -> Kept:
        """What is kept before the first step, [l, b, s]: what was given, or zeros.

        Raises:
            DataError: what was given is not as large.
        """
        sizes = [self.proj_size or self.hidden_size, *([self.hidden_size] if self.mode == "LSTM" else [])]
        shapes = [(len(self.places()), batch, size) for size in sizes]
        if not given:
            return tuple(x.new_zeros(shape) for shape in shapes)
        found = [tuple(part.shape) for part in given]
        if found != shapes:
            raise DataError(f"{self.mode}: hx is {found}; of {batch} sequences it has to be {shapes}")
        return given

    def run(self, x: Tensor, lengths: list[int] | None, kept: Kept) -> tuple[Tensor, Kept]:
        """Layer by layer; without lengths x is [t, b, i], with them [n, i], so many rows of each step."""
        places, after = self.places(), list[Kept]()
        ways = 2 if self.bidirectional else 1
        for first in range(0, len(places), ways):
            made = list[Tensor]()
            for number, place in enumerate(places[first : first + ways], first):
                steps: Any = self.get_submodule(f"steps_{place}")
                gates = self.get_submodule(f"input_{place}")(x)
                own = tuple(part[number] for part in kept)
                if lengths is None:
                    said, *rest = steps(gates, *own)
                else:
                    parts, rest = steps.over(gates.split(lengths), own)
                    said = torch.cat(parts)
                made.append(said)
                after.append(tuple(rest))
            x = torch.cat(made, -1) if ways > 1 else made[0]
            if self.dropout and first + ways < len(places):
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(map(torch.stack, zip(*after, strict=True)))


class Cell(nn.Module):
    """One step, called as `torch.nn.LSTMCell`, `GRUCell` or `RNNCell` is."""

    def __init__(self, fused: nn.RNNCellBase) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = fused.input_size, fused.hidden_size, fused.bias
        names: dict[type[nn.Module], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
        self.mode = names.get(type(fused)) or f"RNN_{getattr(fused, 'nonlinearity', 'tanh').upper()}"
        self.input = linear(fused.get_parameter("weight_ih"), fused._parameters["bias_ih"])
        self.hidden = linear(fused.get_parameter("weight_hh"), fused._parameters["bias_hh"])
        self.train(fused.training)

    def forward(self, input: Float[Tensor, "*b i"], hx: Tensor | Kept | None = None) -> Tensor | Kept:
        """What is said, [*b, h]; of an LSTM a pair with its cell."""
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zeros, zeros)
        kept = (hx,) if isinstance(hx, Tensor) else hx
        kept = KINDS[self.mode](self.input(input), self.hidden(kept[0]), kept)
        return kept if self.mode == "LSTM" else kept[0]
