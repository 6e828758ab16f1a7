"""Signs: a matrix as the product of two narrow matrices of signs, with scales before, between and behind them.

    W = diag(s) A diag(m) B diag(t)        A in ±1^(o x r), B in ±1^(r x i)

Boža, Macko, DBF, 2025, arXiv:2505.11076; Lee et al., LittleBit, NeurIPS 2025, arXiv:2506.13771;
Chong et al., NanoQuant, ICML 2026, arXiv:2602.06694, which leaves out m. It costs (o + i) r bits and the scales, so the
rank says how many bits a weight has, also fewer than one. There is no mask: a product cannot be set at one place.

Shapes: o outputs, i inputs, r the rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.formats.plane import Plane
from lissom.formats.weight import Parts, Spec, Trainable, Weight, stored, straight_through

PARTS = {
    "left": "_left",
    "right": "_right",
    "rows": "_row_scale",
    "middle": "_middle_scale",
    "columns": "_column_scale",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signs(Weight):
    """Bit 1 stands for +1, bit 0 for -1; both factors are kept as r long rows, so that hardly a word is padded."""

    left: Plane
    right: Plane
    rows: Float[Tensor, " o"]
    middle: Float[Tensor, " r"]
    columns: Float[Tensor, " i"]

    @classmethod
    def of(
        cls,
        left: Bool[Tensor, "r o"],
        right: Bool[Tensor, "r i"],
        rows: Float[Tensor, " o"],
        middle: Float[Tensor, " r"],
        columns: Float[Tensor, " i"],
    ) -> "Signs":
        """Pack which signs are positive; the scales are stored in float16 where that holds them."""
        return cls(
            left=Plane.of(left.to(torch.uint8), 1),
            right=Plane.of(right.to(torch.uint8), 1),
            rows=stored(rows),
            middle=stored(middle),
            columns=stored(columns),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The columns of A."""
        return self.left.shape[0]

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return torch.ops.lissom.signs_dense(*self._flat())  # type: ignore[no-any-return]

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ as two products with signs; the matrix is not formed."""
        return torch.ops.lissom.signs_linear(x, *self._flat())  # type: ignore[no-any-return]

    def _flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
        return self.left.words, self.right.words, self.rows, self.middle, self.columns, *self.shape

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Nothing is pruned."""
        return None

    def parts(self) -> dict[str, Tensor]:
        """The signs of both factors, and the scales."""
        held = (self.left.words, self.right.words, self.rows, self.middle, self.columns)
        return dict(zip(PARTS.values(), held, strict=True))

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"format": "signs", "shape": list(self.shape)}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Signs":
        """The inverse of `parts` and `spec`."""
        (o, i), held = spec["shape"], {field: parts[name] for field, name in PARTS.items()}
        rank = held["middle"].shape[0]
        left = Plane(words=held.pop("left"), mask=None, shape=(rank, o), bits=1)
        right = Plane(words=held.pop("right"), mask=None, shape=(rank, i), bits=1)
        return cls(left=left, right=right, **held)

    def trainable(self) -> Trainable:
        """Latent weights behind the signs, and the scales."""
        return TrainableSigns(self)


class TrainableSigns(Trainable):
    """Latent weights behind the signs, reached straight through where they are within ±1, and the logarithms of scales.

    They start at ±1/2, so that a sign can still turn.
    """

    def __init__(self, weight: Signs) -> None:
        super().__init__()
        self.left = nn.Parameter(weight.left.codes().float() - 0.5)
        self.right = nn.Parameter(weight.right.codes().float() - 0.5)
        self.log_growth = nn.ParameterDict()
        for name in ("rows", "middle", "columns"):
            scale = getattr(weight, name).float()
            self.register_buffer(name, scale)
            self.log_growth[name] = nn.Parameter(torch.zeros_like(scale))

    def units(self) -> dict[nn.Parameter, Tensor]:
        """Half the distance of the two signs for weights; scales are relative already."""
        return {p: p.new_ones(()) for p in self.parameters()}

    def _grown(self, name: str) -> Float[Tensor, " n"]:
        grown = getattr(self, name) * self.log_growth[name].exp()
        return straight_through(grown, stored(grown.detach()).float())

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        a, b = (straight_through(p.clamp(-1, 1), signs(p.detach() >= 0)) for p in (self.left, self.right))
        return product(a, b, self._grown("rows"), self._grown("middle"), self._grown("columns"))

    @torch.no_grad()
    def weight(self) -> Signs:
        """The matrix in its format."""
        scales = {name: self._grown(name) for name in self.log_growth}
        return Signs.of(self.left >= 0, self.right >= 0, **scales)


def signs(positive: Tensor) -> Float[Tensor, "r n"]:
    """+1 where the bit is 1, -1 where it is 0."""
    return positive.float() * 2 - 1


def product(
    a: Float[Tensor, "r o"],
    b: Float[Tensor, "r i"],
    rows: Float[Tensor, " o"],
    middle: Float[Tensor, " r"],
    columns: Float[Tensor, " i"],
) -> Float[Tensor, "o i"]:
    """diag(rows) Aᵀ diag(middle) B diag(columns)."""
    return (a * middle.unsqueeze(1) * rows).T @ (b * columns)


@torch.library.custom_op("lissom::signs_dense", mutates_args=())
def signs_dense(
    left: Tensor, right: Tensor, rows: Tensor, middle: Tensor, columns: Tensor, outputs: int, inputs: int
) -> Tensor:
    """The product of the factors with their scales."""
    a, b = factors(left, right, outputs, inputs)
    return product(a, b, rows.float(), middle.float(), columns.float())


@signs_dense.register_fake
def _(left: Tensor, right: Tensor, rows: Tensor, middle: Tensor, columns: Tensor, outputs: int, inputs: int) -> Tensor:
    return rows.new_empty((outputs, inputs), dtype=torch.float32)


@torch.library.custom_op("lissom::signs_linear", mutates_args=())
def signs_linear(
    x: Tensor, left: Tensor, right: Tensor, rows: Tensor, middle: Tensor, columns: Tensor, outputs: int, inputs: int
) -> Tensor:
    """((x t) Bᵀ m) Aᵀ s; the scales in float32, the signs in the input's type."""
    a, b = (factor.to(x.dtype) for factor in factors(left, right, outputs, inputs))
    inner = (x * columns.float()).to(x.dtype) @ b.T
    return ((inner * middle.float()).to(x.dtype) @ a * rows.float()).to(x.dtype)


@signs_linear.register_fake
def _(
    x: Tensor, left: Tensor, right: Tensor, rows: Tensor, middle: Tensor, columns: Tensor, outputs: int, inputs: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def factors(left: Tensor, right: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """The signs of Aᵀ (r, o) and B (r, i)."""
    planes = ((left, outputs), (right, inputs))
    a, b = (Plane(words=words, mask=None, shape=(words.shape[0], n), bits=1) for words, n in planes)
    return signs(a.codes()), signs(b.codes())
