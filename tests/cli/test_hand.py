import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

Run = Callable[..., Any]


def test_a_module_is_handed_over_and_what_that_costs_is_measured(run: Run, tmp_path: Path) -> None:
    from lissom import save
    from lissom.formats import Palette
    from lissom.models import compressible, replace

    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Linear(64, 10)).eval()
    indices = torch.randint(0, 16, (10, 32)).to(torch.uint8)
    weight = Palette.of(indices, torch.randn(1, 32), 10, torch.rand(10, 64) > 0.5, width=2)
    replace(model, {"0": weight}, compressible(model), trainable=False)
    x = torch.randn(40, 64)
    folder = save(model, tmp_path / "small", example=x)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=model(x).argmax(1).numpy())
    out = tmp_path / "small.onnx"
    done = run("export", folder, "--to", "onnx", "--out", out, "--data", tmp_path / "data.npz", "--json")
    assert (done.code, done.error) == (0, "")
    figures = json.loads(done.out)
    assert figures["accuracy before"]["value"] == 1
    assert figures["accuracy"]["value"] > 0.8
    assert figures["changed"]["0"]["form"] == "MatMulNBits 8 bits, blocks of 32"
    assert out.stat().st_size > figures["bytes"]
    again = run("export", folder, "--to", "onnx", "--out", out)
    assert (again.code, again.error.count("\n")) == (2, 1)


def test_an_encoder_is_not_measured_by_classes(run: Run, text_encoder: Callable[..., Path], tmp_path: Path) -> None:
    done = run("export", text_encoder(), "--to", "torch", "--out", tmp_path / "out", "--data", tmp_path / "data.npz")
    assert done.code == 2
    assert "turns texts into vectors" in done.error
