"""Which layers steps can name."""

from torch import nn

from lissom.formats import Dense, matrix_of, wrap
from lissom.models import compressible


class Odd(nn.Linear):
    """A subclass, whose code may read the weight in a way of its own."""


def test_the_layers_with_a_matrix_are_found_in_order() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)), nn.Embedding(3, 2))
    assert list(compressible(model)) == ["0", "2.0", "3"]
    assert list(compressible(model[2], "block.1")) == ["block.1.0"]
    assert list(compressible(model[0], "head")) == ["head"]


def test_what_may_not_be_replaced_is_left_alone() -> None:
    model = nn.ModuleDict(
        {
            "odd": Odd(2, 2),
            "attention": nn.MultiheadAttention(4, 2),
            "transposed": nn.ConvTranspose1d(2, 2, 2),
            "renormalized": nn.Embedding(4, 2, max_norm=1.0),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        }
    )
    assert list(compressible(model)) == []


def test_a_layer_already_compressed_is_found() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(wrap(layer, Dense(values=matrix_of(layer))))
    assert list(compressible(model)) == ["0"]
