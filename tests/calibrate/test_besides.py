"""What a module's own code reads of its layers is found, and such layers stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from lissom.artifact import load, save
from lissom.calibrate.besides import read_besides
from lissom.compress import compress_model, quantize_model
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer
from lissom.models import compressible
from lissom.search.module import ModuleSubject


class Reading(nn.Module):
    """An embedding whose matrix is the head, a convolution done by hand, and layers that are only asked something."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 64)
        self.asked, self.up = nn.Linear(64, 64), nn.Linear(64, 64)
        self.along = nn.Conv1d(64, 64, 3, groups=64)
        self.shift = nn.Linear(64, 64)

    def forward(self, index: Tensor) -> Tensor:
        x = self.words(index).to(self.asked.weight.dtype).to(self.asked.weight.device)
        x = self.up(self.asked(x)).view(*index.shape, self.up.weight.shape[0])
        x = torch.einsum("btkc,ck->btc", x.unfold(1, 3, 1).mT, self.along.weight.squeeze(1)) + self.shift.bias
        return F.linear(x, self.words.weight)


READ = {"words", "along", "shift"}


def compressed(model: nn.Module) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, CompressedLayer)}


def test_what_is_read_is_found_and_what_is_asked_is_not() -> None:
    model = Reading()
    assert read_besides(model, compressible(model), torch.randint(32, (2, 5))) == READ
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("given", [lambda index: index, lambda index: iter([index, index]), lambda index: [index]])
@pytest.mark.parametrize("compress", [compress_model, quantize_model])
def test_such_layers_stay_as_they_are(compress: Any, given: Callable[[Tensor], Any], tmp_path: Path) -> None:
    model, index = Reading(), torch.randint(32, (4, 6))
    made = compress(model, given(index)).eval()
    assert compressed(made) == {"asked", "up"}
    said = model(index)
    assert float((made(index) - said).norm() / said.norm()) < 0.5
    opened = load(save(made, tmp_path / "saved", example=index))
    assert torch.equal(opened(index), made(index))
    assert set(compressible(model)) == {"asked", "up"} | READ  # the module given was told nothing


def test_a_step_that_names_such_a_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="'words' names no layer; there are asked, up"):
        compress_model(Reading(), torch.randint(32, (4, 6)), steps=[{"layers": "words", "technique": "rtn", "bits": 8}])


def test_a_search_leaves_them_alone() -> None:
    subject = ModuleSubject(Reading().eval(), torch.randint(32, (4, 6)), torch.device("cpu"))
    assert set(subject.layers) == {"asked", "up"} == {name for unit in subject.units.values() for name in unit}


def test_without_data_what_reads_is_told_what_to_do() -> None:
    index = torch.randint(32, (4, 6))
    with pytest.raises(AttributeError, match=r"Affine has no 'squeeze': the module's own code reads .* with data"):
        quantize_model(Reading())(index)
    some = compress_model(Reading(), steps=[{"layers": "words", "technique": "rtn", "bits": 8}])
    with pytest.raises(TypeError, match="linear was given a Affine: the module's own code reads"):
        some(index)


def test_mamba_is_compressed_but_for_what_it_does_itself() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, state_size=4, intermediate_size=64)
    model, words = MambaForCausalLM(config).eval(), torch.randint(32, (2, 6))
    made = quantize_model(model, words).eval()
    with torch.no_grad():
        torch.testing.assert_close(made(words).logits, model(words).logits, rtol=0.1, atol=0.05)
    left = set(compressible(model)) - compressed(made)
    assert left == {"backbone.layers.0.mixer.conv1d", "backbone.layers.0.mixer.dt_proj"}
