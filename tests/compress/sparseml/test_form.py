"""The ways in which recipes of modifiers are written."""

from typing import Any

import pytest

from lissom.compress.sparseml.form import filled, is_foreign, modifiers, read_text
from lissom.errors import RecipeError

LISTS = """
num_epochs: 10
sparsity: 0.8
training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0
      end_epoch: eval(num_epochs)
pruning_modifiers:
  - !GMPruningModifier
      params: __ALL_PRUNABLE__
      final_sparsity: eval(sparsity)
      end_epoch: eval(num_epochs * 0.5)
"""
STAGES = """
sparsity_stage:
  obcq_modifiers:
    SparseGPTModifier: {sparsity: 0.5, mask_structure: "2:4"}
quant_stage:
  bits: W4A16
  quant_modifiers:
    GPTQModifier: {scheme: $bits, targets: [Linear]}
"""


def asked(text: str) -> list[Any]:
    return [(one.place, one.name, dict(one.args)) for one in modifiers(read_text(text))]


def test_lists_of_tags_with_variables() -> None:
    assert asked(LISTS) == [
        ("training_modifiers", "EpochRangeModifier", {"start_epoch": 0, "end_epoch": 10}),
        (
            "pruning_modifiers",
            "GMPruningModifier",
            {"params": "__ALL_PRUNABLE__", "final_sparsity": 0.8, "end_epoch": "eval(num_epochs * 0.5)"},
        ),
    ]


def test_stages_of_groups() -> None:
    assert asked(STAGES) == [
        ("sparsity_stage.obcq_modifiers", "SparseGPTModifier", {"sparsity": 0.5, "mask_structure": "2:4"}),
        ("quant_stage.quant_modifiers", "GPTQModifier", {"scheme": "W4A16", "targets": ["Linear"]}),
    ]
    under = "stages:\n  one:\n    modifiers:\n      - ConstantPruningModifier: {targets: a}\n"
    assert asked(under) == [("stages.one.modifiers", "ConstantPruningModifier", {"targets": "a"})]


def test_the_front_of_a_card() -> None:
    assert asked(f"---\n{STAGES}\n---\n# A card: of a model\n- [x] {{") == asked(STAGES)


def test_what_is_a_recipe_of_modifiers() -> None:
    assert is_foreign(read_text(LISTS))
    assert is_foreign(read_text(STAGES))
    assert not is_foreign({"steps": []})
    assert not is_foreign([{"technique": "gptq"}])


def test_a_tag_runs_nothing() -> None:
    found = read_text("modifiers:\n  - !python/object/apply:os.getcwd []\n")
    assert found == {"modifiers": [{"python/object/apply:os.getcwd": {}}]}


def test_variables_lie_at_any_depth() -> None:
    assert filled({"a": ["${b}", {"c": "eval(b)"}, "eval(d)"]}, {"b": 2}) == {"a": [2, {"c": 2}, "eval(d)"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modifiers": []}, "no modifier in it"),
        ({"modifiers": [3]}, "holds 3, which is no modifier"),
        ({"modifiers": [{"A": 3}]}, "A is given 3"),
        ({"a_modifiers": {}, "prune": {"A": {}}}, "prune is no group of modifiers; such end in '_modifiers'"),
    ],
)
def test_what_holds_no_modifiers_is_refused(given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        modifiers(given)
