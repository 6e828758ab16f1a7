"""Pruned matrices on their kernel against their definition, for every shape, pattern, type and kernel."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissom.compress import compress_model
from lissom.engine.kernels import native
from lissom.engine.kernels.masked import MaskedLinear, counted
from lissom.engine.lower import lower
from lissom.errors import LissomError
from lissom.formats import Masked, freeze
from lissom.formats.plane import bitmask

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def layer(o: int, i: int, share: float, dtype: torch.dtype, seed: int, bias: bool = True) -> MaskedLinear:
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(o, i, generator=draw) < share
    weight = Masked.of(torch.randn(o, i, generator=draw).to(dtype), kept)
    return MaskedLinear(weight, nn.Parameter(torch.randn(o, generator=draw)) if bias else None)


@pytest.mark.parametrize("kernel", native.kernels())
@settings(max_examples=40)
@given(
    o=st.integers(1, 70),
    i=st.integers(1, 90),
    rows=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(DTYPES),
    inputs=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_kernel_computes_what_the_definition_says(
    kernel: str, o: int, i: int, rows: int, share: float, dtype: torch.dtype, inputs: torch.dtype, seed: int
) -> None:
    made, x = layer(o, i, share, dtype, seed), torch.randn(rows, i).to(inputs)
    found = made.multiply(made.read(x), kernel)
    torch.testing.assert_close(found, made.definition(x.float()), rtol=1e-4, atol=1e-4)
    assert torch.equal(made.run(x, kernel), found.to(inputs))


@given(o=st.integers(1, 9), i=st.integers(1, 200) | st.sampled_from([64, 128, 256]), share=st.floats(0, 1))
def test_bits_of_rows_are_counted_whatever_their_length(o: int, i: int, share: float) -> None:
    kept = torch.rand(o, i) < share
    for before in (0, 1):  # as tensors of a file, masks begin anywhere
        mask = torch.cat([torch.zeros(before, dtype=torch.uint8), bitmask(kept)])[before:]
        assert torch.equal(counted(mask, (o, i)), kept.sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", native.kernels())
def test_a_row_does_not_depend_on_those_beside_it(kernel: str, dtype: torch.dtype) -> None:
    made, x = layer(33, 650, 0.5, dtype, 1), torch.randn(53, 650).to(dtype)
    together = made.run(x, kernel)
    assert all(torch.equal(made.run(row[None], kernel)[0], both) for row, both in zip(x, together, strict=True))


@pytest.mark.parametrize("pattern", [{"sparsity": 0.5}, {"keep": 2, "of": 4}])
def test_pruned_layers_of_any_pattern_go_to_the_kernel(pattern: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 8, bias=False))
    pruned: Any = freeze(compress_model(model, steps=[{"technique": "magnitude", **pattern}])).eval()
    x = torch.randn(5, 64)
    before = pruned(x)
    lowered: Any = lower(pruned)
    assert [type(part) for part in lowered] == [MaskedLinear, nn.ReLU, MaskedLinear]
    torch.testing.assert_close(lowered(x), before, rtol=1e-4, atol=1e-4)
    assert lowered.to(torch.bfloat16)[0].values.dtype == lowered[0].values.dtype  # it stays as it is


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LissomError, match="of 50 inputs on the CPU was given 49"):
        layer(33, 50, 0.5, torch.float16, 1)(torch.randn(2, 49))
