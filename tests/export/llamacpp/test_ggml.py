"""The blocks of llama.cpp, read back by its own package."""

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissom.export.llamacpp.ggml import KINDS, holds, kind_of, nearest, written
from lissom.formats import Affine, Dense
from tests.export.conftest import FORMS, IN, OUT

EXPECTED = {
    "2 bits": "Q4_0",
    "3 bits": "Q4_0",
    "4 bits": "Q4_0",
    "5 bits": "Q5_0",
    "6 bits": "Q8_0",
    "8 bits": "Q8_0",
    "4 bits, zeros": "Q4_1",
    "5 bits, zeros": "Q5_1",
    "4 bits, rows": "Q4_0",
    "8 bits, inputs": "Q8_0",
    "ternary": "TQ2_0",
    "binary": "TQ2_0",
}
LAYER = nn.Linear(1, 1)


def read(name: str, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])))


@pytest.mark.parametrize("form", EXPECTED)
def test_what_is_held_is_read_as_it_was(weight: Callable[..., Any], form: str) -> None:
    one = weight(form)
    name, rows = written(one, one.shape)
    assert (name, kind_of(one)) == (EXPECTED[form], EXPECTED[form])
    told = holds(one, LAYER)
    assert told is not None
    assert told.bits == rows.nbytes * 8 / (OUT * IN)
    assert torch.allclose(read(name, rows), one.dense(), rtol=2e-3, atol=2e-3 * float(one.dense().abs().max()))


@pytest.mark.parametrize("form", [name for name in FORMS if name not in EXPECTED])
def test_what_is_not_held_has_a_nearest_that_is(weight: Callable[..., Any], form: str) -> None:
    one = weight(form)
    if kind_of(one) is None:
        new = nearest(one, LAYER)
        name, rows = written(new, new.shape)
        assert name == "Q8_0"
        assert float((read(name, rows) - one.dense()).norm() / one.dense().norm()) < 0.01


def test_rows_that_are_no_whole_blocks_are_floats(weight: Callable[..., Any]) -> None:
    one = weight("4 bits, rows", i=40)
    assert kind_of(one) is None
    new = nearest(one, LAYER)
    assert isinstance(new, Dense)
    assert kind_of(new) == "F16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_floats_stay_what_they_are(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5).to(dtype)
    name, rows = written(Dense(values=values), (4, 6))
    there = read(name, rows)
    assert torch.equal(there[:3, :5], values.float())
    assert not there[3:].any()


@settings(max_examples=40)
@given(
    bits=st.integers(2, 8),
    blocks=st.integers(1, 3),
    outputs=st.integers(1, 4),
    zeros=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_grid_that_a_type_holds_is_read_as_it_was(
    bits: int, blocks: int, outputs: int, zeros: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, 32 * blocks), generator=draw).to(torch.uint8)
    zero = torch.randint(0, 2**bits, (outputs, blocks), generator=draw).to(torch.uint8) if zeros else None
    one = Affine.of(codes, torch.rand(outputs, blocks, generator=draw) + 0.1, zero, bits)
    name = kind_of(one)
    assert name is not None or (zeros and bits == 8)
    if name is not None:
        order = torch.randperm(outputs, generator=draw)
        found = read(*written(one, one.shape, order))
        step = one.scale.float().repeat_interleave(32, 1)[order]
        assert bool(((found - one.dense()[order]).abs() <= step * (0.02 if KINDS[name].least else 1e-6)).all())


def test_rows_that_room_makes_no_whole_blocks_are_floats(weight: Callable[..., Any]) -> None:
    one = weight("4 bits")
    name, rows = written(one, (OUT, IN + 12))
    assert name == "F16"
    assert torch.equal(torch.from_numpy(rows)[:, :IN], one.dense().half())
    assert not rows[:, IN:].any()
