"""Presets against those of compressed-tensors."""

import pytest
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme

from lissom.compress.sparseml.schemes import KINDS, preset, scheme
from lissom.errors import RecipeError

NONE = {"UNQUANTIZED", "MXFP6A16", "MXFP6A8"}


@pytest.mark.parametrize("name", sorted(set(PRESET_SCHEMES) - NONE))
def test_a_preset_is_what_it_is_there(name: str) -> None:
    theirs, found = preset_name_to_scheme(name, ["Linear"]), preset(name.lower())
    assert theirs.weights is not None
    assert found is not None
    assert (found.group or None) == theirs.weights.group_size
    inputs = theirs.input_activations
    if theirs.weights.type == "int":
        assert (found.bits, found.symmetric, found.kind) == (theirs.weights.num_bits, theirs.weights.symmetric, "")
        assert found.inputs == (inputs.num_bits if inputs is not None and inputs.type == "int" else 0)
    else:
        assert found.kind == KINDS[theirs.weights.num_bits, theirs.weights.group_size or 0]
    assert any("inputs stay" in note for note in found.notes) == (inputs is not None and inputs.type == "float")
    assert any("scale of its own" in note for note in found.notes) == (theirs.weights.strategy in ("tensor", "block"))


def test_what_cannot_be_held_is_refused() -> None:
    assert preset("UNQUANTIZED") is None
    for name in ("MXFP6A16", "W9A16", "W4A32", "NVFP44"):
        with pytest.raises(RecipeError, match=f"scheme '{name}' has no counterpart"):
            preset(name)
    with pytest.raises(RecipeError, match="no floats of 6 bits and groups of 32; there are nvfp4"):
        scheme({"weights": {"num_bits": 6, "type": "float", "group_size": 32}})
    with pytest.raises(RecipeError, match="integers of 1 bits"):
        scheme({"weights": {"num_bits": 1}})


def test_steps_of_a_scheme() -> None:
    weights = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False, "actorder": None}
    inputs = {"num_bits": 8, "dynamic": False, "symmetric": False}
    found = scheme({"weights": weights, "input_activations": inputs, "output_activations": {"num_bits": 8}})
    assert found is not None
    knobs = {"bits": 4, "group": 32, "clip": False, "symmetric": False}
    assert [step.as_dict() for step in found.steps("*", "gptq", damp=0.1)] == [
        {"layers": "*", "technique": "gptq", **knobs, "act_order": False, "damp": 0.1},
        {"layers": "*", "technique": "dynamic", "bits": 8},
    ]
    assert found.notes == (
        "what comes out of layers is not rounded",
        "inputs have a scale for each token, none from calibration",
        "inputs are rounded symmetrically",
    )
