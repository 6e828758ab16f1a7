"""What was foreseen is what comes about, byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lissom.artifact import compress_checkpoint, open_folder, save
from lissom.compress import compress_model
from lissom.errors import ModelError, RecipeError
from lissom.models import compressible, weight_of
from lissom.search import explain as room
from lissom.search.explain import Source, explain, period, sized, tried
from lissom.types import Recipe, Step

STEPS: list[list[dict[str, Any]]] = [
    [{"technique": "rtn", "bits": 3, "group": 16}],
    [{"technique": "gptq", "bits": 4, "group": 32, "symmetric": False}],
    [{"technique": "magnitude", "sparsity": 0.3}],
    [{"technique": "sparsegpt", "keep": 2, "of": 4}, {"technique": "gptq", "bits": 2, "group": 32}],
    [{"technique": "kmeans", "bits": 4, "rows": 0}, {"technique": "rtn", "bits": 8}],
    [{"technique": "kmeans", "bits": 3, "rows": 16}],
    [{"technique": "lowrank", "rank": 3}],
    [{"technique": "rtn", "bits": 4}, {"technique": "residual", "rank": 2}],
    [{"technique": "binary"}],
    [{"technique": "hadamard", "size": 16}, {"technique": "gptq", "bits": 4, "group": 16}, {"technique": "dynamic"}],
]


def stored(folder: Path) -> int:
    """Bytes of all tensors of a folder."""
    from lissom.artifact.tensors import read_tensors

    return sum(tensor.nbytes for tensor in read_tensors(folder).values())


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(step["technique"] for step in steps))
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_checkpoint_are_exact(
    tiny: Callable[..., Path], tmp_path: Path, steps: list[dict[str, Any]], tied: bool
) -> None:
    recipe = Recipe.of([{"layers": "model.layers.*", **step} for step in steps])
    told = explain(tiny("llama", tied), recipe)
    compress_checkpoint(tiny("llama", tied), recipe, torch.empty(0, 8, dtype=torch.long), tmp_path / "out")
    assert told.bytes_after == stored(tmp_path / "out")
    assert told.bytes_before == stored(tiny("llama", tied))
    held = compressible(open_folder(tmp_path / "out").model)
    for layer in told.layers:
        if layer.steps:
            assert layer.bytes_after == weight_of(held[layer.name]).nbytes, layer.name
            assert layer.format == weight_of(held[layer.name]).spec()["format"]


def test_vectors_that_learn_keep_all_their_digits(tiny: Callable[..., Path], tmp_path: Path) -> None:
    steps = [{"layers": "model.layers.*", "technique": "rtn", "bits": 2}, {"technique": "distil"}]
    windows = torch.randint(2048, (16, 16), generator=torch.Generator().manual_seed(0))
    told = explain(tiny("llama", True), Recipe.of(steps))
    compress_checkpoint(tiny("llama", True), Recipe.of(steps), windows, tmp_path / "out")
    assert told.bytes_after == stored(tmp_path / "out")
    assert not any(layer.at_most for layer in told.layers)


@pytest.mark.parametrize("tied", [True, False])
def test_a_turned_stream_parts_the_head_from_the_embedding(
    tiny: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    ends = [
        {"layers": name, "technique": "rtn", "bits": bits} for name, bits in (("*embed_tokens", 8), ("*layers*", 4))
    ]
    recipe = Recipe.of([{"technique": "rotate_stream"}, *ends])
    told = explain(tiny("llama", tied), recipe)
    compress_checkpoint(tiny("llama", tied), recipe, torch.empty(0, 8, dtype=torch.long), tmp_path / "out")
    assert (told.bytes_before, told.bytes_after) == (stored(tiny("llama", tied)), stored(tmp_path / "out"))
    assert told.layers[-1].name == "lm_head"
    assert told.layers[0].kernel == "rows"
    model = open_folder(tiny("llama", tied)).model
    in_memory = explain(model, recipe)
    assert in_memory.bytes_after == stored(save(compress_model(model, steps=recipe.steps), tmp_path / "module"))


def test_the_kernel_is_the_one_that_runs() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 7))
    steps = [
        {"layers": "0", "technique": "rtn", "bits": 4, "group": 32},
        {"layers": "2", "technique": "rtn", "bits": 8},
        {"layers": "4", "technique": "magnitude"},
    ]
    found = {layer.name: layer.kernel for layer in explain(model, Recipe.of(steps)).layers}
    assert found == {"0": "panels", "2": "panels", "4": "masked"}


def test_an_embedding_that_is_the_head_has_two_ways_to_run(demo_folder: Path) -> None:
    recipe = Recipe.of([{"layers": "model.embed_tokens", "technique": "rtn"}])
    first, second, *_ = explain(demo_folder, recipe).layers
    assert (first.kernel, second.kernel) == ("rows and panels", "dense")
    assert second.bytes_after == second.bytes_before


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(step["technique"] for step in steps))
def test_few_rows_tell_of_many(steps: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 rows by three heights are what all of them are; and most formats need no more than the three."""
    step_list = [Step.of(step) for step in steps]
    layer = nn.Linear(64, 1000, bias=False, device="meta")
    numbers = torch.randn(1000, 64) * 0.1
    source = Source(layer=layer, shape=(1000, 64), rows=lambda count: numbers[:count], dtype=torch.float32)
    exact = tried("layer", source, step_list, 1000).nbytes
    heights: list[int] = []
    monkeypatch.setattr(room, "tried", lambda *given: heights.append(given[-1]) or tried(*given))
    assert sized("layer", source, step_list)[0] == exact
    assert heights[-1] in (1000, 3 * period(step_list) + 1000 % period(step_list))


def test_rows_that_come_in_books_are_counted_in_books() -> None:
    assert period([Step(technique="kmeans", knobs={"rows": 100, "bits": 4, "iterations": 1})]) == 1600
    assert period([Step(technique="rtn", knobs={"bits": 4, "group": 32})]) == 64
    assert period([Step(technique="magnitude", knobs={"sparsity": 0.3})]) == 320


def test_bytes_of_a_module_and_of_its_folder_are_exact(tmp_path: Path) -> None:
    shared = nn.Linear(48, 48)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 48), shared, shared)
    pruned = compress_model(model, steps=[{"layers": "2", "technique": "magnitude", "sparsity": 0.37}])
    recipe = Recipe.of([{"technique": "rtn", "bits": 4}])
    done = compress_model(pruned, steps=recipe.steps)
    save(pruned, tmp_path / "before")
    save(done, tmp_path / "after")
    for given in (pruned, tmp_path / "before"):
        told = explain(given, recipe)
        assert (told.bytes_before, told.bytes_after) == (stored(tmp_path / "before"), stored(tmp_path / "after"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_a_share_that_is_none_is_named(demo_folder: Path, value: float) -> None:
    with pytest.raises(RecipeError, match=f"sparsity={value} must be a fraction .* of model"):
        explain(demo_folder, Recipe.of([{"technique": "wanda", "layers": "model.layers.*", "sparsity": value}]))


def test_what_changes_places_is_as_large_as_it_was(demo_folder: Path) -> None:
    pattern = {"layers": "model.layers.*", "keep": 2, "of": 4}
    pruned = {"technique": "ria", **pattern}
    told = explain(demo_folder, Recipe.of([{"technique": "permute", **pattern}, pruned]))
    assert told.bytes_after == explain(demo_folder, Recipe.of([pruned])).bytes_after
    assert not any(layer.at_most for layer in told.layers)
    fewer = explain(demo_folder, Recipe.of([{"technique": "channels", "layers": "model.layers.*"}]))
    assert any(layer.at_most for layer in fewer.layers)


def test_it_is_told_to_programs(demo_folder: Path) -> None:
    told = explain(demo_folder, Recipe.of([{"technique": "rtn", "layers": "model.layers.*"}, {"technique": "tuned"}]))
    found = json.loads(json.dumps(told.as_dict()))
    assert found["bytes_after"] < found["bytes_before"]
    assert found["layers"][1]["steps"][0]["technique"] == "rtn"
    assert found["layers"][1]["bits_per_weight"] == pytest.approx(8 + 16 / 256)


def test_what_cannot_be_is_said_before_anything_is_read(demo_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"group=96 does not divide 256 inputs; try .* of model"):
        explain(demo_folder, Recipe.of([{"layers": "model.layers.*", "technique": "rtn", "group": 96}]))
    with pytest.raises(ModelError, match="has no Linear"):
        explain(nn.ReLU(), Recipe())
