"""Weights in plain operators against the formats that they are made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lissom.export.tpu.plain import NARROW, WIDE, Integers, Whole, make_plain, plain_of
from lissom.formats import Dense, LowRank, Sum, Turned
from lissom.formats.turned import hadamard
from tests.export.conftest import FORMS, IN

LAYER = nn.Linear(1, 1)
HELD = [name for name in FORMS if name != "codebook"]


@pytest.mark.parametrize("form", HELD)
def test_it_computes_what_the_format_does(weight: Callable[..., Any], form: str) -> None:
    given, x, index = weight(form), torch.randn(5, 3, IN), torch.tensor([7, 0, 7])
    plain = plain_of(given, LAYER, torch.float32)
    assert plain is not None
    assert torch.allclose(plain(), given.dense(), atol=1e-4)
    assert torch.allclose(plain.look_up(index), given.look_up(index), atol=1e-4)
    expected = given.linear(given.activate(x.flatten(0, 1)).reshape(x.shape))
    assert torch.allclose(plain.linear(plain.activate(x)), expected, atol=1e-4)


def test_what_is_no_grid_has_no_plain_form(weight: Callable[..., Any]) -> None:
    codebook = weight("codebook")
    assert plain_of(codebook, LAYER, torch.float32) is None
    assert plain_of(Turned(base=codebook, size=8), LAYER, torch.float32) is None
    assert plain_of(Sum(base=codebook, correction=weight("low rank")), LAYER, torch.float32) is None


@pytest.mark.parametrize("form", ["4 bits, zeros", "8 bits, zeros", "8 bits, inputs", "ternary"])
def test_integers_stay_integers(weight: Callable[..., Any], form: str) -> None:
    plain = plain_of(weight(form), LAYER, torch.float32)
    assert isinstance(plain, Whole)
    assert plain.codes.dtype == torch.int8
    assert plain.name == (WIDE if form.startswith("8") else NARROW)
    half = 128 if form.startswith("8") else 8
    assert -half <= int(plain.codes.min()) <= int(plain.codes.max()) < half
    assert isinstance(plain, Integers) == (form == "8 bits, inputs")


def test_what_is_made_of_others_is_so_still(weight: Callable[..., Any]) -> None:
    base, x = weight("4 bits, zeros"), torch.randn(4, IN)
    low = LowRank.of(torch.randn(base.shape[0], 3), torch.randn(3, IN))
    both, turned = Sum(base=base, correction=low), Turned(base=base, size=16)
    for made, expected in ((both, base.dense() + low.dense()), (turned, hadamard(base.dense(), 16))):
        plain = plain_of(made, LAYER, torch.float32)
        assert plain is not None
        assert torch.allclose(plain(), expected, atol=1e-4)
        assert torch.allclose(plain.linear(x), x @ expected.T, atol=1e-3)
    rounded = Turned(base=weight("8 bits, inputs"), size=16)
    assert plain_of(rounded, LAYER, torch.float32) is None  # it would not see the input that it rounds


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.convolution, self.linear = nn.Embedding(10, 8), nn.Conv1d(4, 6, 3), nn.Linear(6, 8)
        self.again = nn.Linear(8, 10, bias=False)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.again(self.linear(self.convolution(self.rows(index)).transpose(1, 2)))
        return made


@pytest.mark.parametrize("technique", ["rtn", "dynamic"])
def test_layers_of_all_kinds_run_on_it_and_what_is_shared_stays_so(technique: str) -> None:
    from lissom import compress_model

    model, index = Network(), torch.randint(10, (3, 4))
    model.again.weight = model.rows.weight
    steps = [{"technique": technique, "bits": 8} if technique == "rtn" else {"technique": technique}]
    small = compress_model(model, index, steps=steps)
    expected = small(index)
    plain = make_plain(small, torch.float32)
    assert torch.allclose(plain(index), expected, atol=1e-5)
    assert plain.again.matrix is plain.rows.matrix


def test_a_scale_that_float16_does_not_hold_stays_in_float32() -> None:
    from lissom.export.tpu.plain import narrowest

    assert narrowest(torch.tensor([0.5, 2.0])).dtype == torch.float16
    assert narrowest(torch.tensor([0.1])).dtype == torch.float32


def test_floats_stay_in_the_type_they_have() -> None:
    plain = plain_of(Dense(values=torch.randn(2, 3).bfloat16()), LAYER, torch.float32)
    assert plain is not None
    assert plain().dtype == torch.bfloat16
