"""Bytes against the weights that they are written of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lissom.export.graphs.codes import Codes, paired
from lissom.export.grid import Grid, grid_of
from tests.export.conftest import FORMS, IN, OUT


def grid(weight: Callable[..., Any], form: str) -> tuple[Any, Grid]:
    one = weight(form)
    found = grid_of(one)
    assert found is not None
    return one, found


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("codebook", "pruned", "low rank")])
def test_bytes_are_read_as_they_were(weight: Callable[..., Any], form: str) -> None:
    one, found = grid(weight, form)
    codes = Codes(found)
    assert torch.allclose(codes.whole(), one.dense(), rtol=1e-6, atol=1e-7)
    index = torch.tensor([[3, 0], [7, 3]])
    assert torch.equal(codes.rows(index), codes.whole()[index])
    assert codes.octets.shape[1] == (IN if codes.bits == 8 else IN // 2)


def test_two_codes_are_in_a_byte() -> None:
    codes = torch.randint(0, 16, (OUT, 7)).to(torch.uint8)
    found = paired(codes)
    assert found.shape == (OUT, 4)
    assert torch.equal(found[:, :3] & 15, codes[:, 0:6:2])
    assert torch.equal(found >> 4, torch.nn.functional.pad(codes[:, 1::2], (0, 1)))
