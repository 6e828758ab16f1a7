"""Experts set apart: they say what they said together, are layers like any other, and none is taken for a block."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import lissom
from lissom.artifact import open_folder
from lissom.calibrate.stream import Stream, calls_of
from lissom.engine import Engine, Sampling
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.lower import lower
from lissom.errors import DataError, RecipeError
from lissom.formats import CompressedLinear
from lissom.models import FAMILIES, Checkpoint, compressible
from lissom.models.apart import apart, set_apart
from lissom.models.experts import EveryExpert, Experts, unchosen
from lissom.search.foresee import foreseen
from lissom.search.forms import units_of_module
from lissom.search.sparsity import allocate_sparsity
from lissom.types import Step

IDS = torch.randint(2048, (4, 16), generator=torch.Generator().manual_seed(4))
BLOCK, EXPERTS = "model.layers.0", "model.layers.0.mlp.experts"


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny("qwen3_moe"), dtype=torch.float32).eval()


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits  # type: ignore[no-any-return]


def test_apart_they_say_the_same_under_the_names_on_disk(model: Any, tiny: Callable[..., Path]) -> None:
    wanted = logits(model)
    assert apart(model) is model
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == load_file(tiny("qwen3_moe") / "model.safetensors").keys()
    before = model.get_submodule(EXPERTS)
    assert apart(model).get_submodule(EXPERTS) is before


def test_all_experts_asked_they_say_the_same(model: Any) -> None:
    wanted = logits(apart(model))
    keys = model.state_dict().keys()
    assert unchosen(model) is model
    assert any(isinstance(part, EveryExpert) for part in model.modules())
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == keys


def test_other_models_stay_as_they_are(tiny: Callable[..., Path]) -> None:
    for other in (nn.Linear(2, 2), AutoModelForCausalLM.from_pretrained(tiny("llama"))):
        assert not any(isinstance(part, Experts) for part in apart(other).modules())


def test_gradients_reach_the_experts_that_were_chosen(model: Any) -> None:
    apart(model)(input_ids=IDS).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.get_submodule(EXPERTS).parameters())


def test_all_experts_and_what_chooses_them_read_one_norm(model: Any) -> None:
    links = FAMILIES["qwen3_moe"].linked(apart(model).get_submodule(BLOCK))
    (norm,) = (link for link in links if link.makers == ("post_attention_layernorm",))
    assert norm.readers[0] == "mlp.gate"
    assert len(norm.readers) == 1 + 3 * 2
    inner = [link for link in links if link.makers[0].endswith("up_proj")]
    assert [link.readers[0] for link in inner] == [f"mlp.experts.{number}.down_proj" for number in range(3)]


def test_neurons_of_an_expert_go_and_the_others_keep_theirs(tiny: Callable[..., Path], tmp_path: Path) -> None:
    steps = [
        {"technique": "channels", "layers": f"{EXPERTS}.1.*", "sparsity": 0.5},
        {"technique": "rtn", "layers": "*_proj", "bits": 8},
    ]
    out = lissom.compress_checkpoint(tiny("qwen3_moe"), lissom.Recipe.of(steps), IDS, tmp_path / "out")
    opened = open_folder(out)
    experts = opened.model.get_submodule(EXPERTS)
    assert [one.down_proj.weight.shape[1] for one in experts.children()] == [32, 16, 32]
    prompt = IDS[0, :6].tolist()
    wanted = int(logits(opened.model, torch.tensor([prompt]))[0, -1].argmax())
    engine = Engine(opened.model, opened.tokenizer, max_tokens_in_cache=64)
    written = engine.generate([prompt], Sampling(temperature=0, max_tokens=1, ignore_eos=True))[0].generated
    assert written[0] == wanted
    assert {type(layer) for one in lower(experts).children() for layer in one.children()} >= {PanelLinear}
    assert not any(isinstance(part, CompressedLinear) for part in experts.modules())


def test_a_model_with_experts_is_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    small = lissom.compress_model(model, IDS, steps=[{"technique": "rtn", "layers": "*experts*"}])
    assert sum("experts" in name for name in compressible(small)) == 9
    folder = lissom.save(small, tmp_path / "saved")
    again = lissom.load(folder, model=AutoModelForCausalLM.from_config(model.config))
    torch.testing.assert_close(logits(again), logits(small))


def test_what_is_asked_of_all_layers_is_asked_of_experts(model: Any) -> None:
    before = model.state_dict().keys()
    quantized = lissom.quantize_model(model, bits=8)
    assert sum(isinstance(layer, CompressedLinear) for layer in quantized.get_submodule(EXPERTS).modules()) == 9
    units, given = units_of_module(model, IDS), (f"{EXPERTS}.2.gate_proj", f"{EXPERTS}.2.up_proj")
    assert units[given[0]] == given
    assert model.state_dict().keys() == before
    steps = allocate_sparsity(model, IDS, sparsity=0.5, technique="wanda", layers="*experts*")
    assert len(steps) == 9
    shared = set_apart(model)
    assert shared.get_submodule("lm_head").weight is model.lm_head.weight
    assert set_apart(shared) is shared


def test_experts_are_no_blocks(model: Any) -> None:
    small: Any = lissom.compress_model(model, IDS, steps=[{"technique": "blocks", "sparsity": 0.9}])
    assert len(small.model.layers) == 1
    assert all(len(list(part.children())) == 3 for part in small.modules() if isinstance(part, Experts))


def test_an_expert_that_only_some_tokens_reach_is_seen_whole(tiny: Callable[..., Path]) -> None:
    """Of many experts few are called at a time: looking must not stop at the last of those called before."""
    stream = Stream(Checkpoint(tiny("qwen3_moe")), torch.tensor([[token] for token in range(40)]), batch=1)
    stream.start(stream.embedding())
    name, block = next(iter(stream.blocks()))
    layers = [layer for own, layer in compressible(block, name).items() if own.endswith("gate_proj")]
    counts = []
    for watched in ((), layers):
        stream.further = stream.hidden  # so that nothing flows on
        with calls_of(layers) as called:
            stream.see(name, block, watched)
        counts.append([called.count(layer) for layer in layers])
    assert counts[0] == counts[1]
    assert sum(counts[0]) == 40 * 2


def test_an_expert_that_no_token_reaches_is_named(tiny: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny("qwen3_moe"))
    rounded = (Step(technique="rtn", knobs={"bits": 4, "group": 16}),)
    candidates = {f"{EXPERTS}.{number}.gate_proj": [rounded] for number in range(3)}
    assert foreseen(checkpoint, IDS, candidates).keys() == candidates.keys()
    with pytest.raises(DataError, match=r"data: .*experts\.\d\.gate_proj is not used when the model runs on it"):
        foreseen(checkpoint, IDS[:1, :1], candidates)


def test_what_the_end_loss_says_is_not_asked_of_experts(model: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    steps = [{"technique": "yaqa", "layers": "model.layers.*", "group": 16}]
    message = "experts.0.gate_proj is given other tokens each time .* leave experts out"
    with pytest.raises(RecipeError, match=message):
        lissom.compress_model(model, IDS, steps=steps)
    with pytest.raises(RecipeError, match=message):
        lissom.compress_checkpoint(tiny("qwen3_moe"), lissom.Recipe.of(steps), IDS, tmp_path / "out")
    alone = [{**steps[0], "layers": "*self_attn*"}]
    small = lissom.compress_model(model, IDS, steps=alone)
    assert isinstance(small.get_submodule(f"{BLOCK}.self_attn.q_proj"), CompressedLinear)
