"""Tuning as a step of a recipe: in memory, and block by block."""

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
from lissom.formats import Trainable

ROUND = {"technique": "rtn", "bits": 3, "group": 0}


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_a_module_says_more_nearly_what_it_said() -> None:
    model, data = classifier(), list(torch.randn(6, 50, 32))
    rounded, tuned = (
        compress_model(model, data, steps=steps)
        for steps in ([ROUND], [ROUND, {"technique": "tuned", "iterations": 60, "lr": 0.003}])
    )
    with torch.no_grad():
        before, after = (sum(float((m(x) - model(x)).square().mean()) for x in data) for m in (rounded, tuned))
    assert after < 0.9 * before
    assert all(isinstance(layer.matrix, Trainable) for layer in tuned[::2])  # type: ignore[index, union-attr]


def test_only_the_layers_of_the_step_move() -> None:
    model, data = classifier(), [torch.randn(50, 32)]
    rounded: Any = compress_model(model, data, steps=[ROUND])
    tuned: Any = compress_model(
        model, data, steps=[ROUND, {"layers": "2", "technique": "tuned", "iterations": 30, "lr": 0.01}]
    )
    same = [torch.equal(a.weight.dense(), b.weight.dense()) for a, b in zip(rounded[::2], tuned[::2], strict=True)]
    assert same == [True, False, True]


def test_without_data_nothing_moves() -> None:
    model = classifier()
    rounded: Any = compress_model(model, None, steps=[ROUND])
    tuned: Any = compress_model(model, None, steps=[ROUND, {"technique": "tuned"}])
    assert all(torch.equal(a.weight.dense(), b.weight.dense()) for a, b in zip(rounded[::2], tuned[::2], strict=True))


def test_what_is_not_compressed_yet_cannot_be_tuned() -> None:
    steps = [{"layers": "0", **ROUND}, {"technique": "tuned"}]
    with pytest.raises(RecipeError, match="tuned: 2 is not compressed yet; put a step before it that does"):
        compress_model(classifier(), torch.randn(5, 32), steps=steps)


def test_a_streamed_model_is_tuned_block_by_block(demo_folder: Path, tmp_path: Path) -> None:
    tokenizer = open_folder(demo_folder).tokenizer
    windows = token_windows((demo_folder / "stories.txt").read_text(encoding="utf-8"), tokenizer, 64)
    steps = [{"layers": "model.layers.*", "technique": "rtn", "bits": 3, "group": 64}]
    divergence = {}
    for name, more in {
        "rounded": [],
        "tuned": [{"layers": "model.layers.*", "technique": "tuned", "iterations": 30}],
    }.items():
        out = lissom.compress_checkpoint(demo_folder, lissom.Recipe.of(steps + more), windows[:32], tmp_path / name)
        found = compare(open_folder(demo_folder).model, open_folder(out).model, windows[40:56], "perplexity")
        divergence[name] = found.kl.value
    assert divergence["tuned"] < 0.95 * divergence["rounded"]
