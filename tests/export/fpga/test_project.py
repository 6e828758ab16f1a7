"""Projects of hls4ml, compiled and simulated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lissom import compress_model
from lissom.artifact import save
from lissom.errors import DataError, RecipeError
from lissom.export.fpga import project as fpga
from lissom.export.targets import export_folder
from lissom.formats import Masked

needs = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
]


def built(folder: Path) -> Path:
    """A small module on disk, of layers in four bits with zeros, and one in one bit."""
    first = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*first, nn.Conv2d(2, 2, 2), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(2, 3))
    pruned = [{"technique": "magnitude", "sparsity": 0.3}, {"technique": "rtn", "bits": 4}]
    steps = [{"layers": name, **step} for name in ("0", "7") for step in pruned]
    return save(compress_model(model, steps=[*steps, {"layers": "4", "technique": "binary"}]), folder / "model")


class TestSimulated:
    pytestmark = needs

    def test_the_simulation_is_what_was_defined(self, tmp_path: Path) -> None:
        hls4ml = pytest.importorskip("hls4ml", reason="hls4ml is not installed")
        data = (torch.randn(40, 1, 6, 6), torch.randint(3, (40,)))
        done = export_folder(built(tmp_path), "fpga", tmp_path / "out", data=data, bits=10)
        assert done.report is not None
        found = done.report["comparison"]
        assert (found["examples"], found["bit_exact"], found["qonnx_same"]) == (40, 40, 40)
        assert abs(found["accuracy"] - found["artifact_accuracy"]) <= 0.05
        assert found["largest_difference"] < 0.05
        assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == done.report
        assert done.report["total"]["multipliers"] < done.report["uncompressed"]["multipliers"]
        files = {file.name for file in (tmp_path / "out").rglob("*")}
        assert {"model.qonnx.onnx", "build_prj.tcl", "lissom.cpp", "defines.h"} <= files
        texts = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
        assert not any(str(tmp_path).encode() in text for text in texts)
        assert fpga.PART.encode() in b"".join(texts)
        (again,) = hls4ml.converters.link_existing_project(tmp_path / "out" / "hls").get_output_variables()
        assert again.size() == 3

    def test_what_is_wrong_is_told_and_nothing_is_written(self, tmp_path: Path) -> None:
        pytest.importorskip("hls4ml", reason="hls4ml is not installed")
        folder, data = built(tmp_path), (torch.randn(4, 1, 6, 6), torch.randint(3, (4,)))
        with pytest.raises(RecipeError, match="bits 40 cannot be"):
            export_folder(folder, "fpga", tmp_path / "out", data=data, bits=40)
        with pytest.raises(DataError, match="give some"):
            export_folder(folder, "fpga", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_option_that_a_runtime_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="gguf has no option 'part'"):
        export_folder(tmp_path / "model", "gguf", tmp_path / "out", part="x")
    with pytest.raises(RecipeError, match="did you mean 'reuse'"):
        export_folder(tmp_path / "model", "fpga", tmp_path / "out", reus=2)


HELD = {"4 bits, rows": "int4", "binary": "one bit", "ternary": "int2", "8 bits, inputs": "int8"}
NOT_HELD = ("4 bits", "codebook", "pruned", "low rank")


@pytest.mark.parametrize("form", [*HELD, *NOT_HELD])
def test_each_format_is_held_or_comes_near(weight: Any, form: str) -> None:
    given, layer = weight(form), nn.Linear(1, 1)
    found = fpga.holds(given, layer)
    assert (found is None) is (form in NOT_HELD)
    if found is not None:
        assert found.name.startswith(HELD[form])
        return
    near = fpga.nearest(given, layer)
    assert fpga.holds(near, layer) is not None
    assert float((near.dense() - given.dense()).norm() / given.dense().norm()) < 0.02
    if isinstance(given, Masked):
        assert bool((near.dense()[given.dense() == 0] == 0).all())
