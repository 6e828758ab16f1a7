"""The table of candidates: every one fits the model it is for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lissom.compress import compress_model, match
from lissom.errors import ModelError
from lissom.formats import CompressedLayer
from lissom.models import FAMILIES, Checkpoint, compressible
from lissom.search import for_language_model, for_module

MODELS = [
    nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)),
    nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 5, 3, groups=5), nn.Flatten(), nn.Linear(5 * 4 * 4, 2)),
    nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(18, 2)),
]
INPUTS = [torch.randn(4, 32), torch.randn(4, 1, 8, 8), torch.randint(11, (4, 3))]


@pytest.mark.parametrize(
    ("model", "x"), list(zip(MODELS, INPUTS, strict=True)), ids=["linear", "convolutional", "embedding"]
)
def test_every_candidate_works_on_any_module(model: nn.Module, x: torch.Tensor) -> None:
    recipes = for_module(model)
    assert len({recipe.name for recipe in recipes}) == len(recipes) > 5
    for recipe in recipes:
        compressed = compress_model(model, x, steps=recipe.steps).eval()
        assert all(isinstance(compressed.get_submodule(name), CompressedLayer) for name in compressible(model))
        with torch.no_grad():
            assert compressed(x).isfinite().all(), recipe.name


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="ReLU has no Linear, Conv or Embedding layer"):
        for_module(nn.ReLU())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_candidate_names_layers_of_the_language_model(tiny: Callable[..., Path], family: str, tied: bool) -> None:
    checkpoint = Checkpoint(tiny(family, tied))
    names = [name for name in compressible(checkpoint.skeleton()) if not (tied and name == "lm_head")]
    recipes = for_language_model(checkpoint)
    assert len({recipe.name for recipe in recipes}) == len(recipes) > 3
    for recipe in recipes:
        assert set(match(recipe, names)) == set(names)  # none is left in full precision
        groups = {step.knobs["group"] for step in recipe.steps if "group" in step.knobs}
        assert groups <= {32}  # the widest that divides all the blocks' layers
