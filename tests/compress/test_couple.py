"""Couplings conducted: in memory and streamed, declared and found; what the model says stays the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, ViTConfig, ViTModel

import lissom
from lissom.artifact import open_folder
from lissom.compress.couple import links_of, reading_order
from lissom.compress.stream import exactly
from lissom.errors import RecipeError
from lissom.models import FAMILIES

STEPS = [{"technique": "smooth"}, {"technique": "rotate"}, {"technique": "awq", "bits": 3, "group": 32}]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits  # type: ignore[no-any-return]


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_language_model_says_the_same(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, ids = tiny(family), torch.randint(2048, (4, 16))
    out = lissom.compress_checkpoint(source, lissom.Recipe.of(STEPS), ids, tmp_path / "out")
    before, after = open_folder(source).model, open_folder(out).model
    near(logits(after, ids), logits(before, ids))
    for link in FAMILIES[family].links:
        for name in (f"model.layers.1.{own}.weight" for own in (*link.makers, *link.readers)):
            assert not torch.allclose(after.get_parameter(name), before.get_parameter(name), rtol=1e-2), name


@pytest.mark.parametrize("technique", ["smooth", "rotate", "awq"])
def test_a_language_model_in_memory_says_the_same(technique: str, tiny: Callable[..., Path]) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("qwen3")), torch.randint(2048, (4, 16))
    before = {name: p.clone() for name, p in model.named_parameters()}
    steps = [{"technique": technique} | ({"group": 32} if technique == "awq" else {})]
    near(logits(lissom.compress_model(model, ids, steps=steps), ids), logits(model, ids))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_only_the_couplings_that_a_step_names_change(tiny: Callable[..., Path]) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("llama")), torch.randint(2048, (4, 16))
    after = lissom.compress_model(model, ids, steps=[{"technique": "smooth", "layers": "*.0.mlp.down_proj"}])
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert changed == {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"}


def test_scaling_first_makes_rounding_better(tiny: Callable[..., Path]) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("llama")), torch.randint(2048, (8, 32))
    for p in (model.get_parameter(f"model.layers.{n}.post_attention_layernorm.weight") for n in range(2)):
        p.data = p * torch.logspace(-2, 1, 32)
    rounded = {"technique": "rtn", "layers": "*.gate_proj", "bits": 3, "group": 32}
    scaled = {"technique": "awq", "layers": "*.gate_proj", "bits": 3, "group": 32}
    wanted = logits(model, ids)
    errors = [
        (logits(lissom.compress_model(model, ids, steps=steps), ids) - wanted).square().mean()
        for steps in ([scaled, rounded], [rounded])
    ]
    assert errors[0] < 0.9 * errors[1]


def vit() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).eval()


def test_links_are_found_by_running() -> None:
    model, x = vit(), torch.randn(2, 3, 16, 16)
    links = {link.makers[0]: link.readers for link in links_of(model, x)}
    assert len(links) == 5 or len(links) == 4  # the norm before the pooler is read by what takes its first token
    norms = [name for name in links if name.endswith("layernorm_before")]
    assert [len(links[name]) for name in norms] == [3, 3]
    steps = [{"technique": "smooth", "layers": "*encoder*" if any("encoder" in n for n in links) else "*layer*"}]
    with torch.no_grad():
        near(lissom.compress_model(model, x, steps=steps)(x).last_hidden_state, model(x).last_hidden_state)


def test_what_a_step_names_must_be_coupled(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(RecipeError, match=r"smooth: no coupling of layers='\*' is known"):
        lissom.compress_model(model, torch.randn(4, 8), steps=[{"technique": "smooth"}])
    with pytest.raises(RecipeError, match="give data"):
        lissom.compress_model(model, steps=[{"technique": "smooth"}])
    recipe = lissom.Recipe.of([{"technique": "awq", "layers": "*embed*"}])
    with pytest.raises(RecipeError, match="awq: no coupling"):
        lissom.compress_checkpoint(tiny("llama"), recipe, torch.randint(2048, (2, 8)), tmp_path / "out")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"technique": "rtn"}, {"technique": "smooth"}], "is compressed already; put this step before"),
        ([{"technique": "awq", "group": 24}], "awq: group=24 does not divide 32 inputs.* of .*q_proj"),
    ],
)
def test_mistakes_name_the_layer(steps: list[dict[str, Any]], message: str, tiny: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    with pytest.raises(RecipeError, match=message):
        lissom.compress_model(model, torch.randint(2048, (2, 8)), steps=steps)


def test_a_correction_after_scaling_corrects_the_scaled_weight(tiny: Callable[..., Path]) -> None:
    """`residual` reads the original: it must be the one that the scaled layer has."""
    model, ids = AutoModelForCausalLM.from_pretrained(tiny("llama")), torch.randint(2048, (8, 32))
    layers = {"layers": "model.layers.*"}
    steps = [{"technique": "smooth", **layers}, {"technique": "rtn", "bits": 3, "group": 32, **layers}]
    wanted = logits(model, ids)
    corrected = [*steps, {"technique": "residual", "rank": 16, **layers}]
    with_residual, without = (
        (logits(lissom.compress_model(model, ids, steps=s), ids) - wanted).square().mean() for s in (corrected, steps)
    )
    assert with_residual < 0.5 * without


def test_heads_that_are_read_several_times_are_read_in_order() -> None:
    order = reading_order(12, 6, 3)  # two heads of three channels, each read by two heads
    assert order.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_a_norm_keeps_the_digits_that_folding_gave_it() -> None:
    assert exactly(torch.tensor([1.5, 0.25]), torch.bfloat16).dtype == torch.bfloat16
    assert exactly(torch.tensor([1.5001]), torch.bfloat16).dtype == torch.float32
    assert exactly(torch.tensor([[1.5001]]), torch.bfloat16).dtype == torch.bfloat16
