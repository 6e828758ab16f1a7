"""Dynamic: integer weights whose layer's input becomes integers too, row by row, as it comes.

Dettmers et al., LLM.int8(), NeurIPS 2022, arXiv:2208.07339, section 2.1; Yao et al., ZeroQuant, NeurIPS 2022,
arXiv:2206.01861, section 3.1 (a scale for each token, found when the model runs):

    q = round(x / a)        a = max_j |x_j| / (2^(b-1) - 1)        y_o = a Σ_g s_og Σ_{j in g} q_j (c_oj - z_og)

The inner sum is one of whole numbers and exact; in a convolution, where the rows are examples, it is one of the floats
a q. Any integer weight can be run so.

Shapes: o outputs, i inputs, n rows of input, f features of a token or example.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int8, Int16
from torch import Tensor

from lissom.formats.affine import Affine, affine_codes
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, prefixed, straight_through


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dynamic(Weight):
    """An integer weight, and of how many bits its layer's inputs are to be."""

    affine: Affine
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.affine.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.affine.dense()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row on its grid."""
        return rounded(x, self.inputs)

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ in integers, for an x of which every row is on its grid, as `activate` leaves it."""
        return torch.ops.lissom.dynamic_linear(x, *self.affine.flat(), self.inputs)  # type: ignore[no-any-return]

    def hear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ; on a GPU the product rounds x by itself, and need not be given it rounded."""
        return self.linear(x) if x.is_cuda else Weight.hear(self, x)

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the dense matrix."""
        return self.affine.look_up(index)

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""
        return self.affine.kept()

    def parts(self) -> dict[str, Tensor]:
        """Those of the integer weight."""
        return self.affine.parts()

    def spec(self) -> dict[str, Any]:
        """That of the integer weight, and the bits of inputs."""
        return {**self.affine.spec(), "format": "dynamic", "inputs": self.inputs}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Dynamic":
        """The inverse of `parts` and `spec`."""
        return cls(affine=Affine.of_parts(spec, parts), inputs=spec["inputs"])

    def trainable(self) -> Trainable:
        """The latent weights and scales of the integer weight."""
        return TrainableDynamic(self)


class TrainableDynamic(Trainable):
    """A trainable integer weight; gradients pass straight through the rounding of the input."""

    def __init__(self, weight: Dynamic) -> None:
        super().__init__()
        self.inputs = weight.inputs
        self.affine: Trainable = weight.affine.trainable()

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Each row on its grid."""
        return straight_through(x, rounded(x.detach(), self.inputs))

    def near(self, original: Float[Tensor, "o i"]) -> None:
        """The integer weight as near as it gets."""
        self.affine.near(original)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Of the integers, along outputs; the scale of a row of inputs is that of all of them."""
        return super().taken(dim, places) if dim else prefixed("affine", self.affine.taken(dim, places))

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix on its grid."""
        matrix: Tensor = self.affine()
        return matrix

    def weight(self) -> Dynamic:
        """The matrix in its format."""
        affine = self.affine.weight()
        assert isinstance(affine, Affine)
        return Dynamic(affine=affine, inputs=self.inputs)


def integers(x: Float[Tensor, "n f"], bits: int) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n 1"]]:
    """q and a; a row of zeros has a = 1."""
    largest = x.float().abs().amax(1, keepdim=True)
    a = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    return (x.float() / a).round(), a


def rounded(x: Float[Tensor, "n f"], bits: int) -> Float[Tensor, "n f"]:
    """a q, in the precision of x. Rounded again it stays what it is."""
    q, a = integers(x, bits)
    return (q * a).to(x.dtype)


def whole_product(q: Int8[Tensor, "n k"], c: Int16[Tensor, "o k"]) -> Float[Tensor, "n o"]:
    """q cᵀ of whole numbers, exact until it becomes a float; c has 8 bits and a sign at most.

    With one input PyTorch 2.13's integer product leaves its result unwritten.
    """
    if not q.is_cpu or q.shape[1] == 1:
        return (q.double() @ c.double().T).float()
    parts, rest = list[Tensor](), c
    while not parts or bool(rest.any()):  # 255 = 127 + 127 + 1
        parts.append(rest.clamp(-128, 127))
        rest = rest - parts[-1]
    total = sum(torch._int_mm(q, part.to(torch.int8).T.contiguous()) for part in parts)
    assert isinstance(total, Tensor)
    return total.float()


@torch.library.custom_op("lissom::dynamic_linear", mutates_args=())
def dynamic_linear(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
    inputs: int,
) -> Tensor:
    """x Wᵀ, group by group in whole numbers."""
    q, a = integers(x.reshape(-1, columns), inputs)
    codes = affine_codes(words, mask, scale, zero, bits, rows, columns)
    y = torch.zeros(q.shape[0], rows, device=x.device)
    for g, (some, own) in enumerate(zip(q.to(torch.int8).chunk(scale.shape[1], 1), codes.unbind(1), strict=True)):
        y += whole_product(some.contiguous(), own) * scale[:, g].float()
    return (a * y).to(x.dtype).reshape(*x.shape[:-1], rows)


@dynamic_linear.register_fake
def _(
    x: Tensor,
    words: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    rows: int,
    columns: int,
    inputs: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))
