"""The layers that run a weight in any format: linear, convolution, embedding.

A layer holds its weight frozen (packed buffers, as on disk) or trainable (parameters). It keeps the attributes of the
torch.nn layer it stands for, so that code which reads `in_features` or `kernel_size` goes on working, and the type of
that layer's numbers: what it looks up is of this type, though its matrix is float32.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lissom.formats.sum import BASE, Sum, TrainableSum
from lissom.formats.weight import Trainable, Weight


class Frozen(nn.Module):
    """A weight as buffers, exactly the tensors that are stored; runs without ever being trained."""

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self.kind, self.spec = type(weight), weight.spec()
        for name, part in weight.parts().items():
            self.register_buffer("part" + name, part)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)  # never cast

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def weight(self) -> Weight:
        """The weight itself; its tensors are the buffers."""
        parts = {name.removeprefix("part"): part for name, part in self.named_buffers(recurse=False)}
        return self.kind.of_parts(self.spec, parts)

    def forward(self) -> Float[Tensor, "o i"]:
        """The dense matrix."""
        return self.weight().dense()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the weight's format makes of an input."""
        return self.weight().activate(x)


MACHINERY = frozenset(vars(nn.Module()))  # what every module has; the rest of a layer's attributes is its geometry


class CompressedLayer(nn.Module):
    """What the three have in common: a weight that is frozen or trainable, and a bias.

    The inner layer is the torch.nn layer without its weight; it knows the geometry and holds the bias.
    """

    def __init__(self, inner: nn.Module, weight: Frozen | Trainable) -> None:
        super().__init__()
        self.matrix = weight
        self.geometry = {name: value for name, value in vars(inner).items() if name not in MACHINERY}
        if isinstance(whole := getattr(inner, "weight", None), Tensor):
            self.geometry["dtype"] = whole.dtype
        bias = getattr(inner, "bias", None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.stands_for = type(inner)

    def __getattr__(self, name: str) -> Any:
        geometry = self.__dict__.get("geometry", {})
        return geometry[name] if name in geometry else super().__getattr__(name)

    @property
    def weight(self) -> Weight:
        """The weight in its format, as it would be stored now."""
        weight = self.matrix.weight()
        object.__setattr__(weight, "dtype", self.dtype)  # which no other weight has
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompressedLayer":
        self.geometry["dtype"] = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def activated(self, x: Float[Tensor, "*n"], dims: int) -> Float[Tensor, "*n"]:
        """The input as the format wants it; the last `dims` dims are one token's features, or one example's map."""
        return self.matrix.activate(x.reshape(-1, math.prod(x.shape[-dims:]))).reshape(x.shape)

    def extra_repr(self) -> str:
        """Format and size."""
        weight = self.weight
        o, i = weight.shape
        return f"{self.stands_for.__name__} {o}x{i}, {type(weight).__name__.lower()}, {weight.bits_per_weight:.2f} bits"


class CompressedLinear(CompressedLayer):
    """torch.nn.Linear on a compressed weight."""

    decoded: Float[Tensor, "o i"] | None = None  # while it is decoded `once`

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b."""
        if self.decoded is not None or isinstance(self.matrix, Trainable):
            matrix = self.matrix() if self.decoded is None else self.decoded
            y = F.linear(self.activated(x, 1), matrix.to(x.dtype))
        else:
            y = self.weight.hear(x)
        # apart in both, so that both round alike; in the type of y, which in mixed precision is another than the bias's
        return y if self.bias is None else y + self.bias.to(y.dtype)


@contextmanager
def once(layer: nn.Module | None) -> Iterator[None]:
    """Within the block a linear layer decodes its matrix once, however often it is called."""
    if not isinstance(layer, CompressedLinear):
        yield
        return
    layer.decoded = layer.matrix()
    try:
        yield
    finally:
        layer.decoded = None


class CompressedConv(CompressedLayer):
    """torch.nn.Conv1d, Conv2d or Conv3d; the matrix has a row for each output channel."""

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*m"]:
        """The convolution of the layer it stands for, which knows about padding."""
        x = self.activated(x, 1 + len(self.kernel_size))
        kernel = self.matrix().to(x.dtype).unflatten(1, (self.in_channels // self.groups, *self.kernel_size))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.stands_for._conv_forward(self, x, kernel, bias)  # type: ignore[no-any-return, attr-defined]


class CompressedEmbedding(CompressedLayer):
    """torch.nn.Embedding on a compressed weight; a row for each entry of the vocabulary."""

    def forward(self, index: Tensor) -> Float[Tensor, "*n i"]:
        """The rows asked for, scaled where the layer does so."""
        rows, scale = self.rows(index).to(self.dtype), scale_of(self)
        return rows if scale == 1 else rows * scale

    def rows(self, index: Tensor) -> Float[Tensor, "*n i"]:
        """The rows asked for, as they stand in the matrix."""
        if isinstance(self.matrix, Trainable):
            return F.embedding(index, self.matrix(), self.padding_idx)
        weight = self.matrix.weight()
        return weight.look_up(index.flatten()).reshape(*index.shape, weight.shape[1])


LAYERS: dict[type[nn.Module], type[CompressedLayer]] = {
    nn.Linear: CompressedLinear,
    nn.Conv1d: CompressedConv,
    nn.Conv2d: CompressedConv,
    nn.Conv3d: CompressedConv,
    nn.Embedding: CompressedEmbedding,
}
SCALE = "scalar_embed_scale"  # the attribute of a transformers embedding that multiplies its rows by a number


def compressed_kind(layer: nn.Module) -> type[CompressedLayer] | None:
    """What stands for a layer with its weight compressed: for torch.nn's own, and for embeddings that only scale."""
    own = layer._parameters.keys() | layer._buffers.keys()
    scaled = isinstance(layer, nn.Embedding) and SCALE in vars(layer) and own == {"weight", "embed_scale"}
    return CompressedEmbedding if scaled else LAYERS.get(type(layer))


def scale_of(layer: nn.Module) -> float:
    """The number that an embedding multiplies its rows by, as its type can hold it; 1 for all other layers."""
    return float(torch.tensor(getattr(layer, SCALE, 1.0), dtype=getattr(layer, "dtype", torch.float64), device="cpu"))


def matrix_of(layer: nn.Module) -> Float[Tensor, "o i"]:
    """A torch.nn layer's weight as a matrix: a row for each output (channel, or entry of an embedding)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().flatten(1)


def wrap(layer: nn.Module, weight: Weight, *, trainable: bool = False) -> CompressedLayer:
    """The compressed layer that stands for `layer` (torch.nn or already compressed), with another weight."""
    held = weight.trainable() if trainable else Frozen(weight)
    if isinstance(layer, CompressedLayer):
        inner = torch.nn.Module()
        inner.__dict__.update(layer.geometry)
        inner.register_parameter("bias", layer.bias)
        wrapped = type(layer)(inner, held)
        wrapped.stands_for = layer.stands_for
    else:
        kind = compressed_kind(layer)
        assert kind is not None
        wrapped = kind(layer, held)
    return wrapped.train(layer.training)


def freeze(model: nn.Module) -> nn.Module:
    """Make every compressed layer hold packed buffers, in place; what was learned is kept."""
    return _hold(model, Frozen)


def unfreeze(model: nn.Module) -> nn.Module:
    """Make every compressed layer trainable, in place."""
    return _hold(model, Trainable)


def _hold(model: nn.Module, kind: type[Frozen | Trainable]) -> nn.Module:
    held: dict[Frozen | Trainable, Frozen | Trainable] = {}
    bases: dict[Any, Weight] = {}
    trained: dict[int, Trainable] = {}
    for layer in model.modules():
        if isinstance(layer, CompressedLayer) and not isinstance(layer.matrix, kind):
            before = layer.matrix
            if before not in held:  # tied layers stay tied
                weight = _weight(before, bases)
                held[before] = Frozen(weight) if kind is Frozen else share_base(weight.trainable(), weight, trained)
            layer.matrix = held[before]
    return model


def _weight(held: Frozen | Trainable, bases: dict[Any, Weight]) -> Weight:
    """The weight of a layer; bases that were one stay one object."""
    weight = held.weight()
    if not isinstance(weight, Sum):
        return weight
    tensors = (id(part) for name, part in held.named_buffers() if name.startswith(f"part{BASE}"))
    same = held.base if isinstance(held, TrainableSum) else tuple(tensors)
    return dataclasses.replace(weight, base=bases.setdefault(same, weight.base))


def share_base(held: Trainable, weight: Weight, bases: dict[int, Trainable]) -> Trainable:
    """Sums that have the same object for a base train it as one; `bases` are those met before, by its id."""
    if isinstance(held, TrainableSum) and isinstance(weight, Sum):
        held.base = bases.setdefault(id(weight.base), held.base)
    return held
