"""A mixed recipe keeps its bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lissom.artifact import compress_checkpoint
from lissom.artifact.tensors import read_tensors
from lissom.errors import RecipeError
from lissom.search.mixed import mixed

BLOCKS = [{"technique": "rtn", "bits": bits, "group": 16} for bits in (2, 4, 8)]
ENDS = [{"technique": "rtn", "bits": bits} for bits in (4, 8)]


@pytest.mark.parametrize("tied", [True, False])
def test_a_mixed_recipe_keeps_its_bytes(tiny: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    model, windows = tiny("llama", tied), torch.randint(2048, (6, 16))
    budget = 85_000 if tied else 160_000
    recipe = mixed(model, windows, nbytes=budget, blocks=BLOCKS, ends=ENDS, cache=tmp_path / "cache")
    compress_checkpoint(model, recipe, windows, tmp_path / "out")
    written = sum(tensor.nbytes for tensor in read_tensors(tmp_path / "out").values())
    assert 0.65 * budget < written <= budget
    assert len({step.knobs["bits"] for step in recipe.steps}) > 1
    with pytest.raises(RecipeError, match="bytes are too few"):
        mixed(model, windows, nbytes=30_000, blocks=BLOCKS, ends=ENDS, cache=tmp_path / "cache")
