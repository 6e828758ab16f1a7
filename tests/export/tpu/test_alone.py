"""What the compiler of TPUs says of one product: as many operations as there are, and fewer bytes of fewer bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lissom.export.tpu.alone import work_of
from lissom.formats import Dense

pytest.importorskip("jax", reason="jax is not installed")
pytest.importorskip("libtpu", reason="libtpu is not installed")
OUT, IN, ROWS = 512, 1024, 8


def test_fewer_bits_are_fewer_bytes(weight: Callable[..., Any]) -> None:
    dense = work_of(Dense(values=torch.zeros(OUT, IN, dtype=torch.bfloat16)), ROWS, "v5e", torch.bfloat16)
    eight, four = (work_of(weight(form, OUT, IN), ROWS, "v5e", torch.bfloat16) for form in ("8 bits", "4 bits"))
    assert dense.operations == pytest.approx(2 * ROWS * OUT * IN, rel=0.1)
    assert dense.nbytes >= 2 * OUT * IN
    assert four.nbytes < eight.nbytes < dense.nbytes
    assert four.nbytes >= OUT * IN / 2
