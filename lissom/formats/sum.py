"""Sum: a matrix in any format, and a product of low rank beside it that corrects it, W = base + A B.

Several layers may have the very same base: it is then stored once, and trained as one.

Shapes: o outputs, i inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lissom.formats.affine import Affine
from lissom.formats.binary import Binary
from lissom.formats.dense import Dense
from lissom.formats.dynamic import Dynamic
from lissom.formats.floats import Floats
from lissom.formats.lowrank import LowRank, TrainableLowRank
from lissom.formats.masked import Masked
from lissom.formats.narrow import Narrow
from lissom.formats.palette import Palette
from lissom.formats.signs import Signs
from lissom.formats.ternary import Ternary
from lissom.formats.weight import Parts, Spec, Taken, Trainable, Weight, nested, prefixed
from lissom.formats.xnor import Xnor

BASES: dict[str, type[Weight]] = {
    "dense": Dense,
    "masked": Masked,
    "affine": Affine,
    "palette": Palette,
    "binary": Binary,
    "signs": Signs,
    "ternary": Ternary,
    "xnor": Xnor,
    "lowrank": LowRank,
    "dynamic": Dynamic,
    "floats": Floats,
    "narrow": Narrow,
}  # every format but this one
BASE, CORRECTION = "_base", "_correction"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sum(Weight):
    """A base and its correction, run beside each other."""

    base: Weight
    correction: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.base.shape

    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""
        return self.base.dense() + self.correction.dense()

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x baseᵀ + x Bᵀ Aᵀ."""
        return self.base.linear(x) + self.correction.linear(x)

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the matrix."""
        return self.base.look_up(index) + self.correction.look_up(index)

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the base makes of a layer's input; the correction is given the same."""
        return self.base.activate(x)

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """None: the base keeps what was pruned at zero, and the correction is added to that everywhere."""
        return None

    def parts(self) -> dict[str, Tensor]:
        """The parts of both."""
        base = {BASE + name: part for name, part in self.base.parts().items()}
        return base | {CORRECTION + name: part for name, part in self.correction.parts().items()}

    def spec(self) -> dict[str, Any]:
        """Shape, and the specs of both."""
        both = {"base": self.base.spec(), "correction": self.correction.spec()}
        return {"format": "sum", "shape": list(self.shape), **both}

    @classmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> "Sum":
        """The inverse of `parts` and `spec`."""
        base = BASES[spec["base"]["format"]].of_parts(spec["base"], nested(parts, BASE))
        return cls(base=base, correction=LowRank.of_parts(spec["correction"], nested(parts, CORRECTION)))

    def trainable(self) -> Trainable:
        """Both."""
        return TrainableSum(self)


class TrainableSum(Trainable):
    """A base and its correction, each trainable in its own format; the base may be that of other layers too."""

    def __init__(self, weight: Sum) -> None:
        super().__init__()
        self.base: Trainable = weight.base.trainable()
        self.correction = TrainableLowRank(weight.correction)

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """Of both."""
        both = {"base": self.base, "correction": self.correction}
        return {name: own for part in both for name, own in prefixed(part, both[part].taken(dim, places)).items()}

    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix."""
        total: Tensor = self.base() + self.correction()
        return total

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the base makes of a layer's input."""
        return self.base.activate(x)

    @torch.no_grad()
    def near(self, original: Float[Tensor, "o i"]) -> None:
        """The base as close as it gets to what the correction leaves of the original."""
        self.base.near(original - self.correction())

    def weight(self) -> Sum:
        """The matrix in its format."""
        return Sum(base=self.base.weight(), correction=self.correction.weight())
