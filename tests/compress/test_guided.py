"""Steps that ask what the end loss says: a pass backward, in memory and streamed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lissom
from lissom.artifact import open_folder
from lissom.compress import compress_model
from lissom.evaluate import compare
from lissom.formats import freeze
from lissom.techniques.contract import needed
from lissom.types import Step


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.mark.parametrize("labels", [None, torch.randint(0, 10, (64,))])
@pytest.mark.parametrize("step", [{"technique": "yaqa", "group": 0}, {"technique": "gptq", "group": 0, "guided": True}])
def test_any_module_is_heard(labels: Any, step: dict[str, Any]) -> None:
    model, x = classifier(), torch.randn(64, 3, 8, 8)
    data = x if labels is None else (x, labels)
    result = compress_model(model, data, steps=[{"layers": "*", "bits": 3, **step}])
    blind = compress_model(model, None, steps=[{"layers": "*", "bits": 3, **step}])
    assert all(p.grad is None for p in [*model.parameters(), *result.parameters()])
    with torch.no_grad():
        far, near = ((m(x) - model(x)).square().mean() for m in (blind, result))
    assert near < far


def test_data_that_is_read_once_is_kept_for_both_passes() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    batches = list(torch.randn(4, 30, 16))
    steps = [{"layers": "*", "technique": "yaqa", "group": 0}]
    once, again = (compress_model(model, data, steps=steps) for data in (iter(batches), batches))
    assert torch.equal(once[0].matrix(), again[0].matrix())  # type: ignore[index]


def test_a_model_that_is_compressed_and_frozen_can_be_heard() -> None:
    model = freeze(
        compress_model(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), steps=[{"technique": "rtn"}])
    )
    again = compress_model(model, torch.randn(30, 16), steps=[{"layers": "0", "technique": "yaqa", "group": 0}])
    assert [again[n].weight.bits for n in (0, 2)] == [4, 8]  # type: ignore[index, union-attr]


def test_a_guided_step_asks_for_another_gram() -> None:
    names = [
        {kind.__name__ for kind in needed(Step(technique="gptq", knobs={"guided": guided}))} for guided in (False, True)
    ]
    assert names == [{"Gram"}, {"Guided"}]


def test_a_streamed_model_keeps_its_predictions_better(demo_folder: Path, tmp_path: Path) -> None:
    """And an embedding that is compressed first does not stand in the way of the backward pass."""
    tokenizer = open_folder(demo_folder).tokenizer
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = lissom.calibrate.token_windows(text, tokenizer, 128)  # type: ignore[attr-defined]
    embedding = {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8}
    divergence = {}
    for technique in ("gptq", "yaqa"):
        steps = [embedding, {"layers": "model.layers.[02].*", "technique": technique, "bits": 3}]
        out = lissom.compress_checkpoint(demo_folder, lissom.Recipe.of(steps), windows[:48], tmp_path / technique)
        found = compare(open_folder(demo_folder).model, open_folder(out).model, windows[48:80], "perplexity")
        divergence[technique] = found.kl.value
    assert divergence["yaqa"] < 0.9 * divergence["gptq"]


def test_an_embedding_among_the_layers_is_no_obstacle() -> None:
    """Of its input, an index, nothing is heard; it is rounded as without data."""
    model = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 8))
    steps = [{"layers": "*", "technique": "yaqa", "group": 0}]
    heard, blind = (compress_model(model, data, steps=steps) for data in (torch.randint(12, (64, 3)), None))
    assert torch.equal(heard[0].matrix(), blind[0].matrix())  # type: ignore[index]
    assert not torch.equal(heard[1].matrix(), blind[1].matrix())  # type: ignore[index]
