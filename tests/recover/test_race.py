"""Races of training algorithms."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.errors import RecipeError
from lissom.recover.folder import race_folder
from lissom.recover.optimizers import OPTIMIZERS
from lissom.recover.race import named, race
from lissom.recover.training import Training


def test_all_learn_from_the_same_beginning_for_equally_long() -> None:
    original = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(120, 8)
    model = lissom.quantize_model(original, bits=2)
    names = ["sgd", "adamw", "adagrad"]
    found = race(model, x, Training(batch=10, epochs=2), optimizers=names, seeds=2, original=original)
    assert {one.optimizer for one in found.contenders} == {*names}
    curves = [curve for one in found.contenders for curve in one.curves]
    assert len(curves) == 6
    assert len({curve.before.held for curve in curves}) == 1
    assert len({curve.looks[-1].step for curve in curves}) == 1
    assert len({curve.after.held for curve in curves}) > 3  # seeds differ
    losses = [one.held.value for one in found.contenders]
    assert losses == sorted(losses)
    assert found.curve.after.held == min(curve.after.held for curve in curves)
    assert found.contenders[0].held.n == 2
    assert found.training.optimizer in names


def test_a_race_of_one_is_none_and_several_workers_run_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two or more"):
        race(nn.Linear(2, 2), torch.zeros(4, 2), optimizers=["sgd"])
    with pytest.raises(RecipeError, match="each once"):
        race(nn.Linear(2, 2), torch.zeros(4, 2), optimizers=["sgd", "sgd"])
    with pytest.raises(RecipeError, match="seeds=0"):
        race(nn.Linear(2, 2), torch.zeros(4, 2), optimizers=["sgd", "adam"], seeds=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a race is for one worker"):
        race_folder(tmp_path, torch.zeros(4, 2), tmp_path / "out", optimizers=["sgd", "adam"])
    assert named("all") == [*OPTIMIZERS]
    assert named("sgd, lion") == ["sgd", "lion"]
