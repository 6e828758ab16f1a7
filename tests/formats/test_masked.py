"""When a mask is worth its bits."""

import pytest
import torch

from lissom.formats import Dense, Masked
from lissom.formats.masked import sparse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zeros", [0, 40, 400, 4000])
def test_a_matrix_is_sparse_where_a_mask_makes_it_smaller(dtype: torch.dtype, zeros: int) -> None:
    matrix = torch.ones(64, 128, dtype=dtype)
    matrix.view(-1)[:zeros] = 0
    assert sparse(matrix) == (Masked.of(matrix, matrix != 0).nbytes < Dense(values=matrix).nbytes)
