"""Matrices that models keep in ways of their own: set apart they say the same, and can be compressed."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import lissom
from lissom.engine.lower import lower
from lissom.models import compressible
from lissom.models.apart import apart, set_apart

IDS = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(7)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=64)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def test_turned_matrices_of_gpt2_are_linear_layers(model: nn.Module) -> None:
    wanted = logits(model)
    torch.testing.assert_close(logits(set_apart(model)), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=0)
    layers = compressible(apart(model))
    assert sum(type(layer) is nn.Linear for layer in layers.values()) == 2 * 4 + 1


def test_gpt2_is_quantized_whole(model: nn.Module) -> None:
    quantized = lissom.quantize_model(model, {"input_ids": IDS}).eval()
    wanted = logits(model).softmax(-1)
    for ran in (quantized, lower(quantized)):
        assert (logits(ran).softmax(-1) - wanted).abs().sum(-1).mean() < 0.02


@pytest.mark.parametrize(
    "other", [nn.Linear(2, 2), nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU())], ids=["linear", "convolution"]
)
def test_other_models_stay_as_they_are(other: nn.Module) -> None:
    before = dict(other.named_modules())
    assert set_apart(other) is other
    assert dict(apart(other).named_modules()) == before
