"""Recipes in the forms of SparseML's and llm-compressor's documentation, and what lissom makes of models by them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model
from lissom.compress.sparseml import import_recipe
from lissom.compress.sparseml.form import read_text
from lissom.errors import RecipeError
from lissom.models import weight_of
from lissom.types import Recipe

BLOCKS = "model.layers.*"
HEAD = "ignore: [lm_head]"


def steps(text: str, model: Any) -> list[dict[str, Any]]:
    return [step.as_dict() for step in import_recipe(read_text(text), model).recipe.steps]


def stage(*modifiers: str) -> str:
    return "test_stage:\n  test_modifiers:\n" + "".join(f"    {one}\n" for one in modifiers)


def test_sparsegpt_and_wanda(tiny: Callable[..., Path]) -> None:
    folder = tiny("llama")
    given = (
        f'{{sparsity: 0.5, mask_structure: "1:4", dampening_frac: 0.001, block_size: 128, targets: [Linear], {HEAD}}}'
    )
    pattern = {"keep": 3, "of": 4}  # there N of M weights are pruned
    assert steps(stage(f"SparseGPTModifier: {given}"), folder) == [
        {"layers": BLOCKS, "technique": "sparsegpt", **pattern, "damp": 0.001}
    ]
    wanda = stage('WandaPruningModifier: {sparsity: [0.5, 0.25], targets: "re:model.layers.\\\\d+$"}')
    assert steps(wanda, folder) == [
        {"layers": f"model.layers.{n}.*", "technique": "wanda", "sparsity": s} for n, s in ((0, 0.5), (1, 0.25))
    ]


def test_gradual_pruning_becomes_its_end() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    text = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 10.0}
  - !GMPruningModifier
      init_sparsity: 0.05
      final_sparsity: {0.8: ['0.weight'], 0.5: ['re:2.*']}
      start_epoch: 1.0
      end_epoch: 8.0
      update_frequency: 0.5
  - !MagnitudePruningModifier {final_sparsity: 0.25, mask_type: "3:4", params: ['3.weight'], leave_enabled: True}
"""
    found = import_recipe(read_text(text), model)
    assert found.recipe == Recipe.of(
        [
            {"layers": "0", "technique": "magnitude", "sparsity": 0.8},
            {"layers": "2", "technique": "magnitude", "sparsity": 0.5},
            {"layers": "3", "technique": "magnitude", "keep": 3, "of": 4},  # older ones keep N of M weights
        ]
    )
    assert found.entries[0].notes == ("how to learn is said to `lissom recover`",)
    assert found.entries[1].left == ("init_sparsity=0.05", "start_epoch=1.0", "end_epoch=8.0", "update_frequency=0.5")
    assert str(found).splitlines()[2] == (
        "modifiers: MagnitudePruningModifier -> layers=3 technique=magnitude keep=3 of=4; left out: leave_enabled=True"
    )


def test_zeros_stay_zeros() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with torch.no_grad():
        zeros = torch.rand(16, 16) < 0.4
        model[0].weight[zeros] = 0
    text = (
        "modifiers:\n  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}\n  - QuantizationModifier: {scheme: W4A16}"
    )
    with pytest.raises(RecipeError, match="group=128"):
        compress_model(model, steps=import_recipe(read_text(text), model).recipe.steps)
    found = steps(text.replace("W4A16", "W8A8"), model)
    assert found[0] == {"layers": "0", "technique": "magnitude", "sparsity": 0.0}  # the other has none
    small = compress_model(model, torch.randn(64, 16), steps=found)
    kept = weight_of(small[0]).kept()
    assert torch.equal(kept, ~zeros)
    assert weight_of(small[2]).kept() is None
    assert "no layer that it names has zeros" in str(import_recipe(read_text(text), nn.Sequential(nn.Linear(4, 4))))


def test_schemes_for_groups_of_layers(tiny: Callable[..., Path]) -> None:
    text = """
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      kv_cache_scheme: {num_bits: 8, type: float}
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel, observer: mse}
          input_activations: {num_bits: 8, type: int, symmetric: true, dynamic: true, strategy: token}
        group_1:
          targets: ['re:.*down_proj']
          weights: {num_bits: 8, type: float, strategy: channel}
"""
    found = import_recipe(read_text(text), tiny("llama"))
    assert {(step.technique, step.layers) for step in found.recipe.steps} == {
        *((technique, f"*.{name}") for technique in ("rtn", "dynamic") for name in ("gate_proj", "up_proj")),
        ("rtn", "model.layers.*.self_attn.*"),
        ("dynamic", "model.layers.*.self_attn.*"),
        ("floats", "*.down_proj"),
    }
    assert all(step.knobs["clip"] for step in found.recipe.steps if step.technique == "rtn")
    assert "lissom serve --kv-cache int8" in str(found)


def test_gptq_in_each_of_its_ways(tiny: Callable[..., Path]) -> None:
    folder = tiny("llama")
    wanted = {"layers": BLOCKS, "technique": "gptq", "bits": 4, "group": 128, "clip": False}
    own = stage(f"GPTQModifier: {{scheme: W4A16, {HEAD}, dampening_frac: 0.1, actorder: null}}")
    assert steps(own, folder) == [{**wanted, "damp": 0.1, "act_order": False}]
    nested = stage(
        f"SparseGPTModifier: {{sparsity: 0.0, quantize: {{QuantizationModifier: {{scheme: W4A16, {HEAD}}}}}}}"
    )
    assert steps(nested, folder) == [wanted]
    heir = stage(f"QuantizationModifier: {{scheme: W4A16, {HEAD}}}", "GPTQModifier: {sequential_update: true}")
    assert steps(heir, folder) == [wanted]
    with pytest.raises(RecipeError, match="GPTQModifier: integers without a scheme"):
        steps(stage("GPTQModifier: {}"), folder)


def test_what_makes_ready_for_integers(tiny: Callable[..., Path]) -> None:
    folder = tiny("llama")
    even = {"technique": "smooth", "alpha": 0.8}
    rounding = f"GPTQModifier: {{scheme: W8A8, {HEAD}}}"
    found = steps(stage("SmoothQuantModifier: {smoothing_strength: 0.8}", rounding), folder)
    assert found[:2] == [{"layers": "*.gate_proj", **even}, {"layers": "*.q_proj", **even}]
    mapping = 'mappings: [[["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]]'
    assert steps(stage(f"SmoothQuantModifier: {{smoothing_strength: 0.8, {mapping}}}"), folder) == found[:1]
    scaled = steps(stage("AWQModifier: {}", f"QuantizationModifier: {{scheme: W4A16_ASYM, {HEAD}}}"), folder)
    names = {step["layers"] for step in scaled if step["technique"] == "awq"}
    assert names == {f"*.{name}" for name in ("q_proj", "gate_proj", "o_proj", "down_proj")}
    assert all(step["symmetric"] is False for step in scaled)
    assert scaled[-1]["technique"] == "rtn"
    assert steps(stage(f"AWQModifier: {{scheme: W4A16_ASYM, {HEAD}}}"), folder) == scaled
    with pytest.raises(RecipeError, match="AWQModifier: scaling without integers"):
        steps(stage("AWQModifier: {}"), folder)


def test_a_language_model_is_compressed_by_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom.artifact import compress_checkpoint, open_folder

    text = stage("SmoothQuantModifier: {}", f"GPTQModifier: {{scheme: W8A8, {HEAD}}}")
    recipe = import_recipe(read_text(text), tiny("llama")).recipe
    folder = compress_checkpoint(tiny("llama"), recipe, torch.randint(3, 2000, (2, 16)), tmp_path / "out")
    block: Any = open_folder(folder).model.model.layers[1]
    assert block.mlp.up_proj.weight.spec()["format"] == "dynamic"
    assert isinstance(open_folder(folder).model.lm_head, nn.Linear)


def test_sparseml_quantizes_all_but_what_it_ignores() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    text = """
quantization_modifiers:
  - !QuantizationModifier
      start_epoch: 0.0
      scheme_overrides: {Conv2d: {weights: {num_bits: 4, symmetric: True}, input_activations: null}, '3': null}
      ignore: [ReLU]
      freeze_bn_stats_epoch: 3.0
"""
    found = import_recipe(read_text(text), model)
    row = {"technique": "rtn", "group": 0, "clip": False}
    assert [step.as_dict() for step in found.recipe.steps] == [
        {"layers": "0", **row, "bits": 4},
        {"layers": "4", **row, "bits": 8},
        {"layers": "4", "technique": "dynamic", "bits": 8},
    ]
    assert found.entries[0].left == ("start_epoch=0.0", "freeze_bn_stats_epoch=3.0")
    assert "inputs have a scale for each token, none from calibration" in found.entries[0].notes


def test_autoround_learns_what_it_rounds_to(tiny: Callable[..., Path]) -> None:
    found = steps(stage(f"AutoRoundModifier: {{scheme: W4A16, {HEAD}, iters: 50}}"), tiny("llama"))
    assert [(step["technique"], step.get("iterations")) for step in found] == [("rtn", None), ("tuned", 50)]


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        ("MovementPruningModifier: {}", "MovementPruningModifier of test_stage.test_modifiers has no counterpart"),
        ("GPTQModifer: {}", "did you mean 'GPTQModifier'"),
        ("SpinQuantModifier: {}", "rotate_stream, rotate and hadamard"),
        ("SparseGPTModifier: {sparsity: 0.5, sparsity_profile: owl}", "sparsity_profile has no counterpart"),
        ("SparseGPTModifier: {sparsity: [0.5], targets: LlamaDecoderLayer}", "1 numbers and targets name 2 modules"),
        ("SparseGPTModifier: {sparsity: eval(a * 2)}", "is no number; write one, such as 0.5"),
        ("MagnitudePruningModifier: {final_sparsity: 0.5, apply_globally: true}", "one threshold for all layers"),
        ("MagnitudePruningModifier: {final_sparsity: 0.5, mask_structure: block4}", "mask structure 'block4'"),
        ("SmoothQuantModifier: {mappings: [[['re:.*q_proj'], 're:.*nowhere']]}", "what its mappings name"),
        ("SmoothQuantModifier: {mappings: [3]}", "3 is no mapping"),
        ("SmoothQuantModifier: {algorithm: log_equalization}", "log_equalization has no counterpart"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tiny: Callable[..., Path], modifier: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        steps(stage(modifier), tiny("llama"))


def test_a_file_that_holds_none_is_refused(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    (tmp_path / "a.yaml").write_text("steps: []")
    with pytest.raises(RecipeError, match="no modifiers in it"):
        import_recipe(tmp_path / "a.yaml", tiny("llama"))
    with pytest.raises(RecipeError, match=r"b\.yaml cannot be read"):
        import_recipe(tmp_path / "b.yaml", tiny("llama"))
