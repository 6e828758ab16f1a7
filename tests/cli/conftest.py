"""The command line run in this process, and small models and data for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

RECIPE = """
steps:
  - {layers: "model.layers.*.mlp.*", technique: sparsegpt, sparsity: 0.5}
  - {layers: "model.layers.*", technique: gptq, bits: 4, group: 32}
"""


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    error: str
    lines: list[str]


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `lissom WORDS` in this process; what it prints comes with its line breaks taken out."""
    from lissom.cli import main

    def called(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lissom", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        out, lines = " ".join(printed.out.split()), printed.out.splitlines()
        return Done(code=code if isinstance(code, int) else 0, out=out, error=printed.err, lines=lines)

    return called


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def text(demo_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text((demo_folder / "stories.txt").read_text(encoding="utf-8")[:12_000])
    return tmp_path / "text.txt"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A classifier that tells four corners apart, saved with an example."""
    from lissom import save

    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    x, y = corners(400)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return save(model, tmp_path / "module", example=torch.from_numpy(x[:2]))


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    x, y = corners(1500)
    np.savez(tmp_path / "examples.npz", x=x, y=y)
    return tmp_path / "examples.npz"


def corners(n: int) -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    y = np.arange(n) % 4
    x = np.eye(4, 32)[y] * 4 + random.normal(size=(n, 32))
    return x.astype(np.float32), y
