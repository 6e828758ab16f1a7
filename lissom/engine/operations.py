"""What a program is made of: where numbers lie, what layers read of them, and what each operation is told.

A matrix has a row for each token of a pass; an operation reads columns of matrices and writes others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels.layer import KernelLinear
from lissom.engine.kernels.lowrank import LowRankLinear
from lissom.engine.kernels.masked import MaskedLinear
from lissom.engine.kernels.native import structs
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.kernels.signs import SignsLinear
from lissom.engine.kernels.sum import SumLinear
from lissom.engine.kernels.turned import TurnedLinear
from lissom.errors import ModelError

GATES = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1, "relu": 2, "gelu": 3}  # as step.h counts them
DENSE = MaskedLinear | nn.Linear  # what reads its input as floats


class Code(IntEnum):
    """The operations, as step.c counts them."""

    EMBED, ROTARY, MAKE, LINEAR, ATTENTION, BOUND, EXPERTS, WHOLE, PICK = range(9)


class By(IntEnum):
    """What says which row of a table is a token's, as step.c counts it."""

    TOKEN, PLACE, TYPE = range(3)


class Kind(IntEnum):
    """How the input of a layer is made of a row, as step.h counts it."""

    AS_IS, NORMED, SCALED, GATED, CENTRED, ACTIVE = range(6)


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a matrix of floats, from `first` on."""

    matrix: Float[Tensor, "m n"]
    first: int = 0

    def given(self) -> structs.CColumns:
        """As the library is given them."""
        return structs.CColumns(self.matrix.data_ptr() + self.first * self.matrix.itemsize, self.matrix.shape[1])

    def after(self, width: int) -> "Columns":
        """Those behind the first so many."""
        return Columns(self.matrix, self.first + width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The input of a layer: columns, normed or scaled by a weight, times what a gate lets through, or activated."""

    at: Columns
    width: int
    kind: Kind = Kind.AS_IS
    weight: Float[Tensor, " n"] | None = None
    bias: Float[Tensor, " n"] | None = None
    eps: float = 0.0
    gate: Columns | None = None
    shape: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A layer, where its outputs go, and whether they are added to what is there."""

    layer: nn.Module
    to: Columns
    add: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Angles:
    """By how many radians a token each pair of features of a head is turned, and by what it is multiplied."""

    frequency: Float[Tensor, " half"]
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Where a layer's queries, keys and values are, what is done to them, and what they see."""

    query: Columns
    key: Columns
    value: Columns
    to: Columns
    heads: int
    groups: int
    size: int
    scale: float
    query_norm: Float[Tensor, " size"] | None = None
    key_norm: Float[Tensor, " size"] | None = None
    eps: float = 0.0
    window: int = 0
    cap: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Where the queries, keys and values of a layer are whose tokens see all others of their sequence."""

    query: Columns
    key: Columns
    value: Columns
    to: Columns
    heads: int
    size: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expert:
    """One expert: layers that read the stream, what its last layer reads of them, and that layer."""

    products: Sequence[Product]
    between: Source
    layer: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """What gives experts their scores, how many are asked, and whether the weights of these sum to 1."""

    layer: nn.Module
    top: int
    whole: bool


def plainly(product: Product) -> Product:
    """A product that the library computes as one.

    Raises:
        ModelError: it cannot.
    """
    if not isinstance(product.layer, PanelLinear | DENSE):
        raise ModelError(f"engine: a head or an expert that is a {type(product.layer).__name__} runs in PyTorch only")
    return product


def outputs(layer: nn.Module) -> int:
    """Outputs of a linear layer of any kind."""
    if isinstance(layer, KernelLinear):
        return layer.shape[0]
    if isinstance(layer, SumLinear | TurnedLinear):
        return outputs(layer.base)
    if isinstance(layer, SignsLinear | LowRankLinear):
        return outputs(layer.left)
    found = getattr(layer, "out_features", None)
    if not isinstance(found, int):
        raise ModelError(f"engine: a layer that is a {type(layer).__name__} runs in PyTorch only")
    return found
