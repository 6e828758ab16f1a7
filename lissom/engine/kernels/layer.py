"""What linear layers on kernels have in common. Shapes: o outputs, i inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.errors import LissomError


class KernelLinear(nn.Module, ABC):
    """A linear layer that a kernel runs: in C where that was built, else by its definition in PyTorch.

    It stays as it is and where it is when the model around it is moved or cast: what kernels read has one type.
    """

    shape: tuple[int, int]

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

    @abstractmethod
    def definition(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """What the kernels compute, in PyTorch."""
