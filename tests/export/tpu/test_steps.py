"""Language models as functions without a state, against the same read at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lissom.artifact import open_folder
from lissom.export.tpu.steps import Steps, inputs_of
from lissom.models.apart import apart
from lissom.models.experts import unchosen


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "qwen3_moe", "smollm3"]
)
def test_a_prompt_and_steps_say_what_the_model_says(tiny: Callable[..., Path], family: str) -> None:
    model, tokens = unchosen(apart(open_folder(tiny(family)).model)), torch.randint(3, 2000, (2, 12))
    inputs = inputs_of(model, tokens[:, :9], 16)  # some of them see the last 6 tokens only
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        first, *cache = Steps(model)(**inputs)
        said = [first]
        for place in range(9, 12):
            one, *cache = Steps(model)(tokens=tokens[:, place : place + 1], place=torch.tensor(place), cache=cache)
            said.append(one)
    assert torch.allclose(torch.cat(said, 1), expected, atol=1e-4)
    assert not any(part.any() for part in inputs["cache"])  # what was given is left as it is
