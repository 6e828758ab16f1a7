"""Distillation as a step of a recipe: in memory, for a folder, and among other steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lissom
from lissom.artifact import open_folder
from lissom.calibrate import token_windows
from lissom.compress import compress_model
from lissom.errors import RecipeError
from lissom.evaluate import compare
from lissom.formats import Frozen, Trainable, freeze
from lissom.techniques.quantize.tuned import LOSSES

ROUND = {"technique": "rtn", "bits": 2, "group": 0}
DISTIL = {"technique": "distil", "epochs": 10}


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def divergence(model: nn.Module, original: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float(LOSSES["kl"](model(x), original(x))) for x in data)


def test_a_module_predicts_more_nearly_what_it_predicted() -> None:
    model, data = classifier(), list(torch.randn(8, 50, 32))
    before = {name: p.clone() for name, p in model.named_parameters()}
    rounded, distilled = (compress_model(model, data, steps=steps) for steps in ([ROUND], [ROUND, DISTIL]))
    assert divergence(distilled, model, data) < 0.7 * divergence(rounded, model, data)
    assert all(isinstance(layer.matrix, Trainable) for layer in distilled[::2])  # type: ignore[index, union-attr]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "first",
    [
        pytest.param([{"technique": "wanda", "sparsity": 0.5}], id="pruned"),
        pytest.param([{"technique": "wanda", "sparsity": 0.5}, ROUND], id="pruned and rounded"),
        pytest.param([{"technique": "kmeans", "bits": 2, "rows": 0}], id="shared"),
        pytest.param([{"technique": "lowrank", "keep": 0.5}], id="low rank"),
        pytest.param([ROUND, {"technique": "residual", "rank": 2}], id="corrected"),
        pytest.param([{"technique": "channels", "sparsity": 0.25, "layers": "0"}, ROUND], id="narrower"),
        pytest.param([ROUND, {"technique": "tuned"}], id="tuned"),
        pytest.param([{"technique": "binary"}], id="binary"),
    ],
)
def test_it_follows_any_step(first: list[dict[str, Any]]) -> None:
    model, data = classifier(), list(torch.randn(8, 50, 32))
    before, after = (compress_model(model, data, steps=steps) for steps in (first, [*first, DISTIL]))
    assert divergence(after, model, data) < divergence(before, model, data)
    sizes = [sum(layer.weight.nbytes for layer in found[::2]) for found in (before, after)]  # type: ignore[index, union-attr]
    assert sizes[0] == sizes[1]


def test_steps_after_it_see_the_original_weights_still() -> None:
    model, data = classifier(), list(torch.randn(8, 50, 32))
    steps = [ROUND, DISTIL, {"technique": "residual", "rank": 8, "bits": 16}]
    before, after = (compress_model(model, data, steps=part) for part in (steps[:2], steps))
    errors = [(found[2].weight.dense() - model[2].weight).square().sum() for found in (before, after)]  # type: ignore[index, union-attr, operator]
    assert errors[1] < 0.8 * errors[0]


def test_layers_that_were_frozen_are_frozen_again() -> None:
    model, data = classifier(), list(torch.randn(4, 50, 32))
    first = freeze(compress_model(model, data, steps=[{"layers": "0", **ROUND}]))
    found: Any = compress_model(first, data, steps=[{"layers": "2", **ROUND}, DISTIL])
    assert isinstance(found[0].matrix, Frozen)
    assert isinstance(found[2].matrix, Trainable)


def test_it_acts_on_the_whole_model_and_on_data() -> None:
    model, data = classifier(), torch.randn(5, 32)
    with pytest.raises(RecipeError, match="distil acts on the whole model; leave out layers='0'"):
        compress_model(model, data, steps=[ROUND, {"layers": "0", **DISTIL}])
    with pytest.raises(RecipeError, match="distil: nothing is compressed yet; put a step before it that does"):
        compress_model(model, data, steps=[DISTIL])
    with pytest.raises(RecipeError, match="distil: what the original predicts is learned from data; give data"):
        compress_model(model, None, steps=[ROUND, DISTIL])


def test_a_folder_of_a_language_model_is_distilled(demo_folder: Path, tmp_path: Path) -> None:
    tokenizer = open_folder(demo_folder).tokenizer
    windows = token_windows((demo_folder / "stories.txt").read_text(encoding="utf-8"), tokenizer, 64)
    steps = [{"layers": "model.layers.*", "technique": "rtn", "bits": 2, "group": 64}]
    found = {}
    for name, more in {"rounded": [], "distilled": [{"technique": "distil", "epochs": 2}]}.items():
        out = lissom.compress_checkpoint(demo_folder, lissom.Recipe.of(steps + more), windows[:96], tmp_path / name)
        found[name] = compare(open_folder(demo_folder).model, open_folder(out).model, windows[100:116], "perplexity")
    assert found["distilled"].kl.value < 0.8 * found["rounded"].kl.value
