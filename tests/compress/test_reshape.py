"""Shapes that really shrink: in memory, streamed, saved and loaded; with other techniques after them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

import lissom
from lissom.artifact import open_folder
from lissom.compress.reshape import joints_of
from lissom.engine import Engine, Sampling
from lissom.errors import RecipeError
from lissom.formats import CompressedConv
from lissom.models import FAMILIES

HALF = {"technique": "channels", "sparsity": 0.5}


class Net(nn.Module):
    """A residual block between a stem and a head; what flows has far fewer directions than channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.inner = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.two, self.outer = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(self.two(F.relu(self.inner(self.one(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def net() -> tuple[Net, Tensor]:
    model, x = Net().eval(), torch.randn(32, 3, 8, 8)
    model.one.weight.data[8:] = model.one.weight.data[:8] * 0.5  # half of the channels say what the others say
    for norm in (model.norm, model.inner, model.outer):
        norm.running_mean = torch.randn_like(norm.running_mean) * 0.1  # type: ignore[arg-type]
        norm.running_var = torch.rand_like(norm.running_var) + 0.5  # type: ignore[arg-type]
    model.inner.running_mean[8:] = model.inner.running_mean[:8] * 0.5  # type: ignore[index]
    model.inner.running_var[8:] = model.inner.running_var[:8] * 0.25 - 0.75e-5  # type: ignore[index]
    return model, x


def said(model: nn.Module, *x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(*x)
    return found if isinstance(found, Tensor) else getattr(found, "logits", found[0])


def error(model: nn.Module, other: nn.Module, *x: Tensor) -> float:
    return float((said(model, *x) - said(other, *x)).square().mean())


def test_channels_that_others_stand_for_go_and_nothing_is_lost() -> None:
    model, x = net()
    small = lissom.compress_model(model, x, steps=[{**HALF, "layers": "one", "damp": 1e-6}])
    assert (small.one.out_channels, small.inner.num_features, small.two.in_channels) == (8, 8, 8)
    assert (tuple(small.one.weight.shape), tuple(small.two.weight.shape)) == ((8, 8, 3, 3), (8, 8, 3, 3))
    torch.testing.assert_close(said(small, x), said(model, x), rtol=1e-3, atol=1e-3)
    plain = lissom.compress_model(model, x, steps=[{**HALF, "layers": "one", "repair": False}])
    assert error(small, model, x) < 1e-4 * error(plain, model, x)
    assert model.one.out_channels == 16


def test_all_channels_shrink_together_and_train_on() -> None:
    model, x = net()
    small = lissom.compress_model(model, x, steps=[HALF])
    assert tuple(small.head.weight.shape) == (5, 16)
    assert [small.stem.out_channels, small.norm.num_features, small.two.out_channels] == [4, 4, 4]
    assert (small.one.in_channels, small.one.out_channels) == (4, 8)
    before = error(small, model, x)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(small(x), said(model, x))
        loss.backward()
        optimizer.step()
    assert error(small, model, x) < 0.8 * before


def test_a_shrunk_module_is_saved_and_loaded_by_class_and_by_graph(tmp_path: Path) -> None:
    model, x = net()
    small = lissom.compress_model(model, x, steps=[HALF])
    folder = lissom.save(small, tmp_path / "saved", example=x[:2])
    base = Net()
    assert torch.equal(said(lissom.load(folder, model=base), x), said(small, x))
    assert base.one.out_channels == 16
    torch.testing.assert_close(said(lissom.load(folder), x), said(small, x))


def test_a_shrunk_sequential_is_loaded_by_itself(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.PReLU(8),
        nn.Flatten(), nn.Linear(8 * 16, 6), nn.GELU(), nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.randn(16, 2, 6, 6)
    small = lissom.compress_model(model, x, steps=[HALF])
    assert (small[3].groups, small[3].out_channels, small[4].num_parameters, small[6].in_features) == (4, 4, 4, 64)
    again = lissom.load(lissom.save(small, tmp_path / "saved"))
    assert torch.equal(said(again, x), said(small, x))


def test_other_techniques_act_on_the_shrunk_layers(tmp_path: Path) -> None:
    model, x = net()
    steps = [
        HALF,
        {"technique": "gptq", "layers": "two", "bits": 4, "group": 0},
        {"technique": "rtn", "layers": "head"},
    ]
    small = lissom.compress_model(model, x, steps=steps)
    assert isinstance(small.two, CompressedConv)
    assert small.two.weight.shape == (4, 72)
    again = lissom.load(lissom.save(small, tmp_path / "saved"), model=Net())
    assert torch.equal(said(again, x), said(small, x))
    with pytest.raises(RecipeError, match="Net cannot be traced"):
        lissom.compress_model(small, x, steps=[{"technique": "channels", "layers": "two"}])


def test_the_same_channels_can_shrink_twice() -> None:
    model, x = net()
    small = lissom.compress_model(model, x, steps=[{**HALF, "layers": "one"}, {**HALF, "layers": "one"}])
    assert small.one.out_channels == 4
    assert said(small, x).isfinite().all()


def test_mistakes_say_what_to_do() -> None:
    model, x = net()
    for steps, message in (
        ([{"technique": "channels", "sparsity": 1.5}], r"channels: sparsity=1.5 must be a fraction .* of stem"),
        ([{"technique": "heads"}], r"heads: no channels of layers='\*' can be taken away"),
        ([{"technique": "channels", "multiple": 0}], "multiple=0 must be 1 or more"),
    ):
        with pytest.raises(RecipeError, match=message):
            lissom.compress_model(model, x, steps=steps)
    with pytest.raises(RecipeError, match="is found by running it; give data"):
        lissom.compress_model(model, steps=[HALF])


def test_an_encoder_loses_heads_and_neurons(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )  # fmt: skip
    model = BertModel(config).eval()
    ids = {"input_ids": torch.randint(50, (8, 9)), "attention_mask": torch.ones(8, 9, dtype=torch.long)}
    assert (
        sorted((joint.units, joint.kind == "heads") for joint in joints_of(model, ids))
        == [(4, True)] * 2 + [(48, False)] * 2
    )
    steps = [{"technique": "heads", "sparsity": 0.25}, {"technique": "channels", "sparsity": 0.25}]
    small = lissom.compress_model(model, [ids], steps=steps)
    layer = small.encoder.layer[1]
    assert tuple(layer.attention.self.query.weight.shape) == (24, 32)
    assert tuple(layer.output.dense.weight.shape) == (32, 36)
    with torch.no_grad():
        found, wanted = small(**ids).last_hidden_state, model(**ids).last_hidden_state
    assert F.cosine_similarity(found, wanted, dim=-1).mean() > 0.95
    again = lissom.load(lissom.save(small, tmp_path / "saved"), model=BertModel(config))
    with torch.no_grad():
        assert torch.equal(again(**ids).last_hidden_state, found)


def served(opened: Any, prompt: list[int]) -> list[int]:
    """What the engine writes after a prompt."""
    engine = Engine(opened.model, opened.tokenizer, max_tokens_in_cache=64)
    found = engine.generate([prompt], Sampling(temperature=0, max_tokens=3, ignore_eos=True))
    return list(found[0].generated)


def written(model: nn.Module, prompt: list[int]) -> list[int]:
    """The same by the model alone."""
    tokens = list(prompt)
    for _ in range(3):
        tokens.append(int(said(model, torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if len(family.heads) == 3])
def test_a_language_model_is_streamed_as_it_is_compressed_in_memory(
    family: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, ids = tiny(family), torch.randint(2048, (4, 16))
    steps = [
        {"technique": "heads", "layers": "model.layers.0.*", "sparsity": 0.5},
        {"technique": "channels", "layers": "model.layers.1.*", "sparsity": 0.25},
        {"technique": "rtn", "layers": "*.1.mlp.down_proj", "bits": 8},
    ]
    opened = open_folder(lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "out"))
    model: Any = opened.model
    assert tuple(model.model.layers[0].self_attn.q_proj.weight.shape) == (16, 32)
    assert tuple(model.model.layers[0].self_attn.k_proj.weight.shape) == (8, 32)
    assert tuple(model.model.layers[1].self_attn.k_proj.weight.shape) == (16, 32)
    assert model.model.layers[1].mlp.down_proj.weight.shape == (32, 48)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    small = lissom.compress_model(whole, ids, steps=steps)
    torch.testing.assert_close(said(small, ids), said(model, ids), rtol=1e-3, atol=1e-3)
    prompt = ids[0, :6].tolist()  # layers with one and with two key heads
    assert served(opened, prompt) == written(model, prompt)


def test_heads_that_one_layer_makes_all_stay_and_its_neurons_go(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, ids = tiny("phi3"), torch.randint(2048, (4, 16))
    whole: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for block in whole.model.layers:  # neurons of which the last quarter says what the first one says
            both = block.mlp.gate_up_proj.weight.view(2, 64, 32)
            both[:, 48:] = both[:, :16]
    steps = [{"technique": "channels", "sparsity": 0.25, "damp": 1e-6}]
    small = lissom.compress_model(whole, ids, steps=steps)
    assert error(small, whole, ids) < 1e-3 * float(said(whole, ids).var())
    out = lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 48
    opened = open_folder(out)
    assert served(opened, ids[0, :6].tolist()) == written(opened.model, ids[0, :6].tolist())
    with pytest.raises(RecipeError, match="heads: no channels of layers='\\*' can be taken away"):
        lissom.compress_model(whole, ids, steps=[{"technique": "heads"}])


def test_a_config_says_what_is_the_same_in_every_block(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, ids = tiny("qwen2"), torch.randint(2048, (4, 16))
    steps = [{"technique": "heads", "sparsity": 0.5}, {"technique": "channels", "sparsity": 0.25}]
    out = lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert [config[name] for name in sizes] == [2, 1, 8, 48]
    config.pop("quantization_config")
    plain = AutoModelForCausalLM.from_config(type(open_folder(out).model.config)(**config))
    assert {n: p.shape for n, p in plain.named_parameters()} == {
        n: p.shape for n, p in open_folder(out).model.named_parameters()
    }


@pytest.mark.parametrize("step", [{"technique": "width", "sparsity": 0.1}, {"technique": "heads", "sparsity": 0.25}])
def test_sizes_that_no_config_may_have_are_told_by_the_tensors(step: Any, tmp_path: Path, demo_folder: Path) -> None:
    """29 channels are no multiple of 4 heads, and 32 none of 3."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 2048, "head_dim": 8}
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=4, num_key_value_heads=4)
    model, ids = AutoModelForCausalLM.from_config(config), torch.randint(2048, (4, 16))
    model.save_pretrained(tmp_path / "model")
    for file in demo_folder.glob("tokenizer*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    out = lissom.compress_checkpoint(tmp_path / "model", lissom.Recipe.of([step]), ids, tmp_path / "out")
    wanted = lissom.compress_model(model.eval(), ids, steps=[step])
    assert sum(p.numel() for p in wanted.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(said(open_folder(out).model, ids), said(wanted, ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen2", False), ("qwen2", True), ("smollm3", False), ("gemma3_text", True), ("qwen3_moe", False)],
)
def test_blocks_of_a_language_model_go_by_what_they_are_worth(
    family: str, tied: bool, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, ids = tiny(family, tied), torch.randint(2048, (4, 16))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    idle = model.model.layers[0]
    for name, weight in idle.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.data *= 1e-3
    for norm in FAMILIES[family].behind:  # which would undo that
        idle.get_submodule(norm).weight.data.fill_(1e-3 - 1)
    steps = [
        {"technique": "blocks", "sparsity": 0.5},
        {"technique": "channels", "sparsity": 0.25},
        {"technique": "rtn", "layers": "model.layers.*", "bits": 8},
    ]
    small: Any = lissom.compress_model(model, ids, steps=steps)
    assert (len(small.model.layers), small.config.num_hidden_layers) == (1, 1)
    for listed in ("layer_types", "no_rope_layers"):
        assert getattr(small.config, listed, None) == (getattr(model.config, listed, [])[1:] or None)
    assert small.model.layers[0].self_attn.layer_idx == 0
    kept = model.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(small.model.layers[0].self_attn.q_proj.weight.dense(), kept.detach(), rtol=0, atol=0.02)
    out = lissom.compress_checkpoint(source, lissom.Recipe.of(steps), ids, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    opened: Any = open_folder(out).model
    again = lissom.compress_model(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), ids, steps=steps)
    torch.testing.assert_close(said(opened, ids), said(again, ids), rtol=1e-3, atol=1e-3)


class Deep(nn.Module):
    """Three blocks of one shape, the second of which does next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_blocks_of_any_module(tmp_path: Path) -> None:
    model, x = nn.Sequential(Deep(), nn.ReLU(), nn.Linear(4, 4)).eval(), torch.randn(16, 8)
    for block, scale in zip(model[0].blocks, (1.0, -1.0, 1.0), strict=True):
        block.weight.data, block.bias.data = block.weight.data * scale, block.bias.data * 0.1
    model[0].blocks[1].weight.data = torch.eye(8) + 1e-3 * torch.randn(8, 8)  # as good as passing on
    small = lissom.compress_model(model, x, steps=[{"technique": "blocks", "sparsity": 0.34, "loss": "mse"}])
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters()) - 72
    assert error(small, model, x) < 1e-2 * float(said(model, x).var())
    again = lissom.load(lissom.save(small, tmp_path / "saved"), model=copy.deepcopy(model))
    assert torch.equal(said(again, x), said(small, x))
    with pytest.raises(RecipeError, match="blocks acts on the whole model; leave out layers='head'"):
        lissom.compress_model(model[0], x, steps=[{"technique": "blocks", "layers": "head"}])
    with pytest.raises(RecipeError, match="has no list of blocks"):
        lissom.compress_model(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), x, steps=[{"technique": "blocks"}])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "qwen3_moe"])
def test_the_stream_of_a_language_model_gets_narrower(
    family: str, tied: bool, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, ids = tiny(family, tied), torch.randint(2048, (8, 16))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():  # four channels of the stream say what four others say
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                p[..., 28:, :] = p[..., :4, :]
            elif name.endswith("o_proj.bias"):
                p[28:] = p[:4]
            elif name.endswith("embed_tokens.weight"):
                p[:, 28:] = p[:, :4]
    model.save_pretrained(tmp_path / "model")
    for file in source.glob("tokenizer*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    steps = [{"technique": "width", "sparsity": 0.125, "damp": 1e-6}, {"technique": "rtn", "layers": "*o_proj"}]
    out = lissom.compress_checkpoint(tmp_path / "model", lissom.Recipe.of(steps), ids, tmp_path / "out")
    small: Any = open_folder(out).model
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 28
    assert tuple(small.model.embed_tokens.weight.shape) == (2048, 28)
    assert tuple(small.model.layers[1].mlp.down_proj.weight.shape) == (28, 64)
    plain = lissom.compress_model(model, ids, steps=[{**steps[0], "repair": False}])
    assert (plain.config.hidden_size, model.config.hidden_size) == (28, 32)
    lost = error(small, model, ids)
    if tied:  # a head that is the embedding too cannot be fitted anew
        assert lost < 0.9 * error(plain, model, ids)
    else:
        assert lost < 0.5 * error(plain, model, ids)
        assert lost < 0.05 * float(said(model, ids).var())
