"""Links are found where only linear layers read, and nowhere else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lissom.calibrate.links import observed_links
from lissom.models import compressible


class Reads(nn.Module):
    """A norm, two linear layers that read it, and something else that may."""

    def __init__(self, also: Callable[[Tensor], Tensor] | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.also = norm or nn.LayerNorm(8), also
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        assert y.shape[-1] == 8
        out = self.one(y) * self.two(y).relu()
        return (out,) if self.also is None else (out, self.also(y))


def found(model: nn.Module) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    links = observed_links(model.eval(), compressible(model), torch.randn(3, 8))
    return [(link.makers, link.readers) for link in links]


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(8)])
def test_linear_layers_behind_a_maker_are_linked(norm: nn.Module) -> None:
    assert found(Reads(norm=norm)) == [(("norm",), ("one", "two"))]


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a sum": lambda y: y + 1,
    "a view": lambda y: y.view(-1),
    "its transpose": lambda y: y.T,
    "the output itself": lambda y: y,
    "a change in place": lambda y: y.mul_(2),
    "an index": lambda y: y[:, 0],
    "a list of it": lambda y: torch.stack([y, y]),
    "a number": lambda y: torch.tensor(y.sum().item()),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_reader_breaks_the_link(other: str) -> None:
    assert found(Reads(OTHERS[other])) == []


class OnePlus(nn.Module):
    """A norm whose weight is what it adds to one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.norm(self.one(self.norm(x))))  # type: ignore[no-any-return]


def test_what_does_not_scale_or_runs_twice_is_not_linked() -> None:
    assert found(Reads(norm=OnePlus())) == []
    assert found(Reads(norm=nn.LayerNorm(8, elementwise_affine=False))) == []
    assert found(Twice()) == []


def test_a_shared_matrix_is_not_linked() -> None:
    model = Reads()
    model.two.weight = model.one.weight
    assert found(model) == []
