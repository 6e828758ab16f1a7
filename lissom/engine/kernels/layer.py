"""What linear layers on kernels have in common. Shapes: o outputs, i inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.errors import LissomError


class KernelLinear(nn.Module, ABC):
    """A linear layer that a kernel runs: in C where that was built, else by its definition in PyTorch.

    It stays as it is and where it is when the model around it is moved or cast: what kernels read has one type.
    """

    shape: tuple[int, int]

    @property
    def in_features(self) -> int:
        """Inputs, by the name that torch.nn.Linear has for them."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Outputs, likewise."""
        return self.shape[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KernelLinear":
        return self

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b, by the best kernel there is.

        Raises:
            LissomError: another number of inputs, or inputs that are not on the CPU.
        """
        kernels = native.kernels()
        return self.run(x, kernels[-1]) if kernels else self.definition(x)

    def run(self, x: Float[Tensor, "*n i"], kernel: str) -> Float[Tensor, "*n o"]:
        """x Wᵀ + b by one of native.kernels()."""
        o, i = self.shape
        if x.shape[-1] != i or x.device.type != "cpu":
            raise LissomError(f"kernels: a layer of {i} inputs on the CPU was given {x.shape[-1]} on {x.device}")
        rows = self.read(x.detach().reshape(-1, i)).contiguous()
        return self.multiply(rows, kernel).to(x.dtype).reshape(*x.shape[:-1], o)

    def read(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n i"]:
        """Inputs as the library reads them."""
        return x.float()

    @abstractmethod
    def multiply(self, rows: Float[Tensor, "n i"], kernel: str) -> Float[Tensor, "n o"]:
        """The same for what `read` gives."""

    def rows(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """Some rows of the weight.

        Raises:
            LissomError: one that there is not.
        """
        which, place = index.flatten().unique(return_inverse=True)
        if len(which) and not (which[0] >= 0 and which[-1] < self.shape[0]):
            asked = f"{int(which[0])} to {int(which[-1])}"
            raise LissomError(f"kernels: rows {asked} were asked for; possible are 0 to {self.shape[0] - 1}")
        found: Tensor = self.look_up(which)[place].unflatten(0, index.shape)
        return found

    @abstractmethod
    def look_up(self, which: Int[Tensor, " n"]) -> Float[Tensor, "n i"]:
        """The same for rows that there are, each once."""

    @abstractmethod
    def definition(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """What the kernels compute, in PyTorch."""


class KernelEmbedding(nn.Module):
    """An embedding on the matrix of a linear layer, which may be a model's head: it is held once."""

    def __init__(self, layer: KernelLinear, scale: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer, self.scale, self.dtype = layer, scale, dtype

    def forward(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n i"]:
        """The rows asked for, times a number."""
        return self.layer.rows(index).to(self.dtype) * self.scale
