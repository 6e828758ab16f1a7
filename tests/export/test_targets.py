"""What was handed over, opened again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lissom.artifact import open_folder
from lissom.engine.bench import engine
from lissom.engine.lower import lower
from lissom.engine.turn import once
from lissom.export.targets import export_folder


@pytest.mark.parametrize("to", ["transformers", "vllm"])
def test_what_was_handed_over_comes_back(mixed: Path, to: str, tmp_path: Path) -> None:
    done = export_folder(mixed, to, tmp_path / "out")
    there, back = open_folder(mixed).model, open_folder(tmp_path / "out").model
    same = [layer.layer for layer in done.layers if not layer.error and "inputs" not in layer.form]
    for name in same:
        own, other = (model.get_submodule(name).weight for model in (there, back))
        own, other = (one.dense() if hasattr(one, "dense") else one for one in (own, other))
        assert torch.allclose(own, other, rtol=2e-3), name
    tokens = torch.randint(3, 2000, (1, 16))
    with torch.inference_mode():
        p, q = (model(tokens).logits.log_softmax(-1) for model in (there, back))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 1e-3


def test_an_engine_serves_it(mixed: Path, tmp_path: Path) -> None:
    export_folder(mixed, "vllm", tmp_path / "out")
    opened = open_folder(tmp_path / "out", bare=True)
    model: Any = lower(opened.model)
    assert once(engine(model, opened.tokenizer, 1, 8, 4), 1, 8, 4)
