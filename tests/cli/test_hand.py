"""Handing over on the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.cli.conftest import Run


def test_export_names_what_changes_and_measures_it(run: Run, demo_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps:\n"
        '  - {layers: "model.layers.*", technique: rtn, bits: 4, group: 32}\n'
        '  - {layers: "model.layers.3.mlp.up_proj", technique: kmeans}\n'
    )
    assert run("compress", demo_folder, "--recipe", recipe, "--out", tmp_path / "small").code == 0
    text = tmp_path / "text.txt"
    text.write_text((demo_folder / "stories.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
    done = run(
        "export", tmp_path / "small", "--to", "gguf", "--out", tmp_path / "a.gguf", "--data", text, "--length", 64
    )
    assert done.code == 0
    assert "27 x affine, 4 bits, groups of 32 -> Q4_0" in done.out
    assert "model.layers.3.mlp.up_proj: palette, 4 bits -> Q8_0" in done.out
    assert "perplexity before" in done.out
    told = json.loads(run("export", tmp_path / "small", "--to", "vllm", "--out", tmp_path / "b", "--json").out)
    assert list(told["changed"]) == ["model.layers.3.mlp.up_proj"]
    assert (tmp_path / "b" / "config.json").is_file()


def test_export_takes_no_name_twice_and_no_runtime_it_does_not_know(
    run: Run, demo_folder: Path, tmp_path: Path
) -> None:
    taken = run("export", demo_folder, "--to", "gguf", "--out", tmp_path)
    assert (taken.code, "exists already" in taken.error) == (2, True)
    unknown = run("export", demo_folder, "--to", "tensorrt", "--out", tmp_path / "x")
    assert (unknown.code, "no runtime is called 'tensorrt'" in unknown.error) == (2, True)
    other = run("export", demo_folder, "--to", "gguf", "--out", tmp_path / "x", "--part", "xcu250")
    assert (other.code, "gguf has no option 'part'" in other.error) == (2, True)


def test_deploy_foresees_the_memory(
    run: Run, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lissom.hardware import limits

    monkeypatch.setattr("lissom.hardware.limits", lambda seconds: limits(0.01, size=64, read_bytes=2**20))
    done = run("deploy", demo_folder, "--to", "compose", "--out", tmp_path / "out", "--replicas", "1-2")
    assert (done.code, "compose.yaml" in done.out) == (0, True)
    limit = re.search(r"memory: (\d+)M", (tmp_path / "out" / "compose.yaml").read_text())
    assert limit is not None
    assert 300 < int(limit[1]) < 800
    wrong = run("deploy", demo_folder, "--to", "compose", "--out", tmp_path / "no", "--replicas", "4-1")
    assert (wrong.code, "such as 1-4" in wrong.error) == (2, True)


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
