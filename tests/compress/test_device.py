"""A model is compressed where it is: on a GPU as on a CPU, with data that may lie elsewhere.

Without a GPU what would go wrong on one is found by a default device whose tensors go together with none of the
model's: whoever makes a tensor without saying where makes it there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import load, open_folder, save
from lissom.calibrate.data import device_of
from lissom.compress import compress_model, quantize_model
from lissom.engine import Engine, Sampling
from lissom.evaluate import compare
from lissom.search import allocate_channels
from lissom.search.sensitivity import sensitivity
from lissom.types import Step

GPU = "cuda"
NEAR = 0.1  # of what is said: the devices sum in other orders, and now and then the next code is taken


class Conv(nn.Module):
    """Convolutions, one of them with a way around it, batch norms and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.first, self.middle, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.second(self.middle(self.first(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def mlp() -> nn.Module:
    parts = [nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(64, 10))


def conv() -> nn.Module:
    model = Conv()
    for _ in range(5):
        model(torch.randn(16, 3, 8, 8) + 0.5)  # for the norms to have seen something
    return model


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2))
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            p.data += 0.2 * torch.randn_like(p)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "mlp": (mlp, lambda: [(torch.randn(64, 32), torch.randint(10, (64,))) for _ in range(3)]),
    "conv": (conv, lambda: [torch.randn(16, 3, 8, 8) + 0.5 for _ in range(3)]),
    "llama": (llama, lambda: [{"input_ids": torch.randint(96, (4, 16))} for _ in range(4)]),
}
RTN, LINEAR = {"technique": "rtn", "bits": 8}, "model.layers.*"
RECIPES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "mlp": {
        "layers": [{"technique": "sparsegpt", "sparsity": 0.3}, {"technique": "kmeans", "bits": 5}],
        "heard": [{"technique": "yaqa", "bits": 8, "group": 0}],
        "guided": [{"technique": "gptq", "bits": 8, "group": 0, "guided": True}],
        "turned": [{"technique": "hadamard"}, {"technique": "dynamic"}],
        "corrected": [{"technique": "rtn", "bits": 4}, {"technique": "residual", "rank": 4}],
        "smooth": [{"technique": "smooth"}, RTN],
        "channels": [{"technique": "channels", "sparsity": 0.25}, RTN],
        "permuted": [{"technique": "permute", "layers": "[24]"}, RTN],
        "several": [{"technique": "tie", "layers": "[24]", "rank": 8}],
        "block": [{"technique": "rtn", "bits": 4}, {"technique": "tuned", "iterations": 5}],
        "model": [{"technique": "rtn", "bits": 4}, {"technique": "distil", "epochs": 1}],
    },
    "conv": {
        "layers": [{"technique": "gptq", "bits": 5, "group": 0}],
        "codebooks": [{"technique": "lnq", "bits": 5}],
        "dynamic": [{"technique": "dynamic"}],
        "channels": [{"technique": "channels", "sparsity": 0.25}, RTN],
        "block": [{"technique": "rtn", "bits": 4}, {"technique": "tuned", "iterations": 5}],
        "model": [{"technique": "rtn", "bits": 4}, {"technique": "distil", "epochs": 1}],
    },
    "llama": {
        "layers": [{"technique": "gptq", "layers": LINEAR, "bits": 6, "group": 32}, RTN | {"layers": "*embed*"}],
        "guided": [{"technique": "gptq", "layers": LINEAR, "bits": 8, "group": 32, "guided": True}],
        "awq": [{"technique": "awq", "layers": LINEAR, "group": 32}, RTN],
        "rotate": [{"technique": "rotate", "layers": LINEAR}, RTN],
        "rotate_stream": [{"technique": "rotate_stream"}, RTN],
        "permute_stream": [{"technique": "permute_stream"}, RTN],
        "heads": [{"technique": "heads", "sparsity": 0.5}, {"technique": "channels", "sparsity": 0.25}, RTN],
        "width": [{"technique": "width", "sparsity": 0.25}, RTN],
        "blocks": [{"technique": "blocks", "sparsity": 0.5}, RTN],
        "block": [RTN | {"layers": LINEAR, "bits": 5}, {"technique": "tuned", "layers": LINEAR, "iterations": 5}],
        "model": [{"technique": "rtn", "bits": 5}, {"technique": "distil", "epochs": 1}],
    },
}
CASES = [pytest.param(name, recipe, id=f"{name}-{recipe}") for name, own in RECIPES.items() for recipe in own]


def made(name: str) -> tuple[nn.Module, list[Any]]:
    """A model and data for it, both on the CPU."""
    torch.manual_seed(1)
    model, data = MODELS[name]
    return model().eval(), data()


def inputs(batch: Any) -> dict[str, Any] | tuple[Any, ...]:
    return batch if isinstance(batch, dict) else (batch[0] if isinstance(batch, tuple) else batch,)


@torch.no_grad()
def said(model: nn.Module, batch: Any) -> Tensor:
    """What a model says to a batch, on the CPU."""
    device, given = device_of(model), inputs(batch)
    if isinstance(given, dict):
        return model(**{key: value.to(device) for key, value in given.items()}).logits.cpu()
    return model(*(value.to(device) for value in given)).cpu()


def apart(one: Tensor, other: Tensor) -> float:
    """How far what is said is from something else, relatively."""
    return float((one - other).norm() / other.norm())


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_nothing_is_made_on_a_default_device(name: str, recipe: str) -> None:
    model, data = made(name)
    wanted = compress_model(model, data, steps=RECIPES[name][recipe]).state_dict()
    with torch.device("meta"):
        found = compress_model(model, data, steps=RECIPES[name][recipe]).state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.parametrize("recipe", ["layers", "blank"])
def test_without_data_nothing_is_made_on_a_default_device(recipe: str) -> None:
    model, _ = made("mlp")
    steps = {"blank": [{"technique": "yaqa", "group": 0}], "layers": [{"technique": "gptq", "group": 0}]}[recipe]
    wanted = compress_model(model, steps=steps).state_dict()
    with torch.device("meta"):
        found = compress_model(model, steps=steps).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@needs_gpu
@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_on_a_gpu_as_on_a_cpu(name: str, recipe: str) -> None:
    model, data = made(name)
    here = compress_model(model, data, steps=RECIPES[name][recipe]).eval()
    there = compress_model(model.to(GPU), data, steps=RECIPES[name][recipe]).eval()
    assert {tensor.device.type for tensor in tensors(there)} == {GPU}
    assert {key: value.shape for key, value in there.state_dict().items()} == {
        key: value.shape for key, value in here.state_dict().items()
    }
    assert apart(said(there, data[0]), said(here, data[0])) < NEAR


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_data_may_be_on_the_gpu_too(name: str) -> None:
    model, data = made(name)
    there = [{key: value.to(GPU) for key, value in b.items()} if isinstance(b, dict) else b for b in data]
    there = [tuple(part.to(GPU) for part in b) if isinstance(b, tuple) else b for b in there]
    there = [b.to(GPU) if isinstance(b, Tensor) else b for b in there]
    found = [quantize_model(model.to(GPU), lots, bits=4) for lots in (data, there)]
    assert torch.equal(said(found[0], data[0]), said(found[1], data[0]))


@needs_gpu
@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("bits", [8, 4, "ternary", "binary"])
def test_quantized_on_a_gpu_as_on_a_cpu(bits: Any, with_data: bool) -> None:
    model, data = made("mlp")
    lots = data if with_data else None
    here = quantize_model(model, lots, bits=bits)
    there = quantize_model(model.to(GPU), lots, bits=bits)
    assert apart(said(there, data[0]), said(here, data[0])) < NEAR


@needs_gpu
@pytest.mark.parametrize(("name", "recipe"), [("mlp", "several"), ("mlp", "channels"), ("conv", "layers")])
def test_saved_from_a_gpu_and_opened_on_a_cpu(name: str, recipe: str, tmp_path: Path) -> None:
    model, data = made(name)
    there = compress_model(model.to(GPU), data, steps=RECIPES[name][recipe]).eval()
    before = said(there, data[0])
    folder = save(there, tmp_path / "small", example=data[0])
    assert {tensor.device.type for tensor in tensors(there)} == {GPU}
    opened = load(folder)
    assert {tensor.device.type for tensor in tensors(opened)} <= {"cpu"}
    assert apart(said(opened, data[0]), before) < 0.01
    once = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    on_cpu = save(there.cpu(), tmp_path / "again", example=data[0])
    assert once == pytest.approx(sum(file.stat().st_size for file in on_cpu.glob("*.safetensors")), abs=64)


@needs_gpu
@pytest.mark.parametrize("recipe", ["layers", "heads", "rotate_stream"])
def test_a_language_model_saved_from_a_gpu_and_opened_again(recipe: str, tmp_path: Path) -> None:
    model, data = made("llama")
    there = compress_model(model.to(GPU), data, steps=RECIPES["llama"][recipe]).eval()
    opened = load(save(there, tmp_path / "small"), model=model.cpu())
    assert {tensor.device.type for tensor in tensors(opened)} == {"cpu"}
    assert apart(said(opened, data[0]), said(there, data[0])) < 0.01


@needs_gpu
def test_compared_and_searched_on_a_gpu_as_on_a_cpu() -> None:
    model, data = made("mlp")
    step = Step(technique="rtn", knobs={"bits": 4})
    candidates = {name: [(step,)] for name in ("0", "2")}
    figures, options, shares = [], [], []
    for device in ("cpu", GPU):
        model = model.to(device)
        figures.append(compare(model, compress_model(model, data, steps=[step]), data).kl)
        options.append([found.error for own in sensitivity(model, data, candidates).values() for found in own])
        shares.append([found.knobs["sparsity"] for found in allocate_channels(model, data, sparsity=0.3)])
    assert figures[1].value == pytest.approx(figures[0].value, rel=0.05)
    assert options[1] == pytest.approx(options[0], rel=0.01)
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


@needs_gpu
@pytest.mark.parametrize("cache", ["float", "int8", "int4"])
def test_the_engine_writes_the_same_on_a_gpu(cache: str, demo_folder: Path) -> None:
    opened = open_folder(demo_folder)
    assert opened.tokenizer is not None
    prompts = [opened.tokenizer(text)["input_ids"] for text in ("Once upon a time", "The little dog", "One day")]
    written = []
    for device in ("cpu", GPU):
        engine = Engine(opened.model.to(device), opened.tokenizer, max_tokens_in_cache=512, cache=cache)
        found = engine.generate(prompts, Sampling(max_tokens=24, temperature=0))
        written.append([sequence.generated for sequence in found])
    assert written[1] == written[0]
