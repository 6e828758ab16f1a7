"""Layers swapped for the kernel that fits them, and only those."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model, quantize_model
from lissom.engine.kernels import lower
from lissom.engine.kernels.int4 import Int4Linear
from lissom.engine.kernels.int8 import Int8Linear
from lissom.formats import CompressedConv, CompressedEmbedding, CompressedLinear, freeze


def one(o: int, i: int, **knobs: object) -> Any:
    return freeze(compress_model(nn.Sequential(nn.Linear(i, o)), steps=[{"technique": "rtn", **knobs}]))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (one(7, 48, bits=8), Int8Linear),
        (one(16, 40, bits=8), CompressedLinear),  # inputs come in sixteens
        (one(16, 64, bits=4, group=32), Int4Linear),
        (one(32, 96, bits=4), Int4Linear),  # a whole row is three groups of 32
        (one(16, 64, bits=3, group=64), Int4Linear),
        (one(16, 64, bits=2, group=32, symmetric=False), Int4Linear),
        (one(16, 64, bits=8, group=32), CompressedLinear),
        (one(16, 64, bits=8, symmetric=False), CompressedLinear),
        (one(15, 64, bits=4), CompressedLinear),  # outputs come in sixteens
        (one(16, 48, bits=4, group=16), CompressedLinear),
    ],
)
def test_a_layer_goes_to_the_kernel_that_fits(model: Any, kind: type) -> None:
    lowered: Any = lower(model)
    assert type(lowered[0]) is kind


def test_what_fits_no_kernel_stays_and_the_rest_computes_nearly_the_same() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    quantized: Any = freeze(quantize_model(model)).eval()
    before = copy.deepcopy(quantized)
    lowered: Any = lower(quantized)
    assert lowered is quantized
    assert [type(part) for part in quantized] == [CompressedConv, nn.Flatten, Int8Linear, nn.ReLU, Int8Linear]
    x = torch.randn(5, 2, 10)
    torch.testing.assert_close(lowered(x), before(x), rtol=0.05, atol=0.02)


def test_other_formats_and_trainable_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    for kept in (quantize_model(model), freeze(compress_model(model)), freeze(quantize_model(model, bits="binary"))):
        lowered: Any = lower(kept)
        assert type(lowered[0]) is CompressedLinear


def test_tied_layers_are_lowered_apart() -> None:
    model = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 16, bias=False))
    model[1].weight = model[0].weight
    lowered: Any = lower(freeze(quantize_model(model)))
    assert [type(part) for part in lowered] == [CompressedEmbedding, Int8Linear]


def test_a_layer_in_two_places_is_lowered_once() -> None:
    layer = nn.Linear(32, 32)
    lowered: Any = lower(freeze(quantize_model(nn.Sequential(layer, nn.ReLU(), layer))))
    assert type(lowered[0]) is Int8Linear
    assert lowered[0] is lowered[2]
