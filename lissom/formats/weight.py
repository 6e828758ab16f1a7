"""What every format of a weight can do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lissom.errors import RecipeError

NO_TENSOR = (
    "the module's own code reads the weight of a layer that is compressed, which is no tensor; compress it with data, "
    "of which a batch tells what layers are read so and stay as they are, or with steps that name other layers"
)
Parts = Mapping[str, Tensor]
Spec = Mapping[str, Any]
Taken = dict[str, tuple[int, Tensor]]


class Trainable(nn.Module, ABC):
    """A weight with parameters: called, it gives the dense matrix; `weight()` writes it down again.

    The matrix is on the format's grid at every step, so what training sees is what will be served.
    """

    @abstractmethod
    def forward(self) -> Float[Tensor, "o i"]:
        """The matrix, with gradients to the parameters."""

    @abstractmethod
    def weight(self) -> "Weight":
        """The matrix in its format; `weight().dense()` equals `forward()` bit for bit."""

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the format makes of a layer's input before the product, an example or token a row: nothing."""
        return x

    def near(self, original: Float[Tensor, "o i"]) -> None:
        """Move latent values as close to the original weights as they can get without changing the matrix."""

    def taken(self, dim: int, places: Int[Tensor, " n"]) -> Taken:
        """What of each parameter and buffer belongs to some outputs (dim 0) or inputs (dim 1) of the matrix.

        By name: along which dim of the tensor it is cut, and which places there are taken. What is not named belongs to
        all outputs, or inputs. With every tensor cut so, the matrix is that of these outputs or inputs.

        Raises:
            RecipeError: the format cannot be cut so.
        """
        kind, along = type(self).__name__.removeprefix("Trainable").lower(), ("outputs", "inputs")[dim]
        raise RecipeError(f"tensor: a matrix in the format {kind} cannot be cut along its {along}")

    def units(self) -> dict[nn.Parameter, Tensor]:
        """How large a step of each own parameter is: the distance of its grid's points, or what its values are like.

        Logarithms of scales, whose names begin with `log`, are relative already: 1.
        """
        named = self.named_parameters(recurse=False)
        return {p: p.new_ones(()) if name.startswith("log") else p.detach().square().mean().sqrt() for name, p in named}


class Weight(ABC):
    """A layer's matrix, o outputs by i inputs, as it is written down. Immutable.

    What a layer gives out as its weight has the `dtype` of the layer's inputs, which a model's own code may ask.
    """

    __slots__ = ("dtype",)
    dtype: torch.dtype

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}: {NO_TENSOR}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls when it is given a weight in the place of a tensor."""
        raise TypeError(f"{getattr(func, '__name__', func)} was given a {cls.__name__}: {NO_TENSOR}")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(o, i)."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "o i"]:
        """The matrix in float32."""

    @abstractmethod
    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights were not pruned; None means all."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """The tensors to store, by the name they have on disk after `<layer>.weight`."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What else must be known to read the parts; plain numbers and strings."""

    @classmethod
    @abstractmethod
    def of_parts(cls, spec: Spec, parts: Parts) -> Self:
        """The inverse of `parts` and `spec`."""

    @abstractmethod
    def trainable(self) -> Trainable:
        """The same weight with parameters that an optimizer can move."""

    def activate(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """What the format makes of a layer's input before the product, an example or token a row: nothing."""
        return x

    def linear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ."""
        return F.linear(x, self.dense().to(x.dtype))

    def hear(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ, for what the format makes of x first."""
        return self.linear(self.activate(x.reshape(-1, x.shape[-1])).reshape(x.shape))

    def look_up(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """Some rows of the dense matrix, in float32."""
        return self.dense()[index]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.parts().values())).device

    @property
    def nbytes(self) -> int:
        """Bytes on disk, everything counted: codes, masks, scales, codebooks."""
        return sum(part.numel() * part.element_size() for part in self.parts().values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights of the dense matrix."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(latent: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`value` exactly, with a gradient as if it were `latent`.

    Bengio, Léonard, Courville, 2013, arXiv:1308.3432, section 2.3.
    """
    return _StraightThrough.apply(latent, value)  # type: ignore[no-any-return, no-untyped-call]


def lying(matrix: Trainable, shape: tuple[int, int], dim: int, places: Int[Tensor, " n"]) -> Taken:
    """`Trainable.taken` of a matrix whose own tensors lie as it does: rows for outputs, columns for inputs or groups.

    Raises:
        RecipeError: a group of inputs is there in part only.
    """
    own = [*matrix.named_parameters(recurse=False), *matrix.named_buffers(recurse=False)]
    several = [(name, tensor.shape[dim]) for name, tensor in own if tensor.dim() == 2 and tensor.shape[dim] > 1]
    return {name: (dim, within(places, shape[dim] // size)) for name, size in several}


def within(places: Int[Tensor, " n"], size: int) -> Int[Tensor, " m"]:
    """The groups of `size` that places fill.

    Raises:
        RecipeError: one of them is there in part only.
    """
    groups = places[::size] // size
    whole = (groups.unsqueeze(1) * size + torch.arange(size)).flatten()
    if not torch.equal(whole, places):
        raise RecipeError(f"tensor: a matrix can be cut between groups of {size} inputs only")
    return groups


def prefixed(prefix: str, taken: Taken) -> Taken:
    """What is taken of a part, by names of the whole."""
    return {f"{prefix}.{name}": own for name, own in taken.items()}


@torch.no_grad()
def leave(module: nn.Module, taken: Taken) -> None:
    """Leave of parameters and buffers of a module, and of its parts, what is taken of each, in place."""
    for name, (dim, places) in taken.items():
        holder, _, own = name.rpartition(".")
        part = module.get_submodule(holder)
        whole: Tensor = getattr(part, own)
        left = whole.index_select(dim, places.to(whole.device))
        setattr(part, own, nn.Parameter(left, whole.requires_grad) if isinstance(whole, nn.Parameter) else left)


def stored(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A scale in the narrowest float that holds it: float16, or float32 where float16 would lose digits.

    Techniques round their scales through this before they choose codes, so that the codes fit the stored scale.
    """
    magnitude = scale.abs()[scale != 0]
    narrow = torch.finfo(torch.float16)
    fits = magnitude.numel() == 0 or bool((magnitude.min() >= narrow.tiny) & (magnitude.max() <= narrow.max))
    return scale.to(torch.float16 if fits else torch.float32)


def by_way_of(dense: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """x Wᵀ for x and then what `dense` makes W of: the shape that an operator for it gives."""

    def product(x: Float[Tensor, "*n i"], *given: Any) -> Float[Tensor, "*n o"]:
        return F.linear(x, dense(*given).to(x.dtype))

    return product


def nested(parts: Parts, prefix: str) -> dict[str, Tensor]:
    """The parts of a weight that is written inside another one, under names that begin with `prefix`."""
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}
