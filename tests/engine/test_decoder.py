"""The step in C against the same model in PyTorch: every family, format, cache and kernel, and blocks that differ."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.compress import compress_model
from lissom.engine import Engine
from lissom.engine.decoder import CACHES, ROWS, Decoder, native_runner
from lissom.engine.kernels import native
from lissom.engine.kernels.layer import KernelEmbedding
from lissom.engine.kernels.lowrank import LowRankLinear
from lissom.engine.kernels.masked import MaskedLinear
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.kernels.signs import SignsLinear
from lissom.engine.kernels.sum import SumLinear
from lissom.engine.kernels.turned import TurnedLinear
from lissom.engine.lower import lower
from lissom.engine.native_runner import NativeRunner, cut
from lissom.engine.pages import Pages
from lissom.engine.runner import FAMILIES, Runner
from lissom.engine.schedule import Slice
from lissom.formats import freeze
from lissom.models.apart import apart
from tests.engine.test_runner import SMALL, WINDOWS, random_model, sequence

pytestmark = pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built: there was no compiler")


def random(family: str = "qwen3", **options: Any) -> Any:
    """A model whose every weight matters."""
    config = AutoConfig.for_model(family, **{**SMALL, **WINDOWS[family], **options})
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1)
    return apart(model)


def linear(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def tokens(count: int, seed: int = 1) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL["vocab_size"], (count,), generator=draw).tolist()


def read(runner: Any, prompts: list[list[int]], chunk: int, total: int = 40) -> list[Tensor]:
    """Prompts read together, so many tokens of each at a time, and what is said after each."""
    pages = Pages(total)
    held = [sequence(prompt) for prompt in prompts]
    for one in held:
        pages.grow(one, one.length)
    found: dict[int, Tensor] = {}
    while any(one.pending for one in held):
        running = [one for one in held if one.pending]
        slices = [Slice(sequence=one, start=one.cached, count=min(chunk, one.pending)) for one in running]
        logits = iter(torch.from_numpy(runner.forward(slices)).clone())
        for piece in slices:
            piece.sequence.cached += piece.count
            if piece.completes:
                found[id(piece.sequence)] = next(logits)
    return [found[id(one)] for one in held]


def runner(model: Any, cache: str = "float", kernel: str | None = None, pages: int = 40) -> NativeRunner:
    return NativeRunner(Decoder(model, pages=pages, cache=cache, kernel=kernel).program())


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(family: str, kernel: str) -> None:
    model = random(family)
    prompts = [tokens(length, seed=length) for length in (1, 20, 75, 130)]
    expected = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    for chunk in (7, 64, 200):
        for found, wanted in zip(read(runner(model, kernel=kernel), prompts, chunk), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", native.kernels())
@torch.no_grad()
def test_scores_that_grow_far_along_a_context(kernel: str) -> None:
    model = random()
    for block in model.model.layers:
        block.self_attn.q_norm.weight *= 8
    prompt = tokens(200)
    (found,) = read(runner(model, kernel=kernel), [prompt], 200)
    torch.testing.assert_close(found, model(torch.tensor([prompt])).logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize(("family", "cache"), [("qwen3", "float"), ("gemma2", "float"), ("qwen3", "int8")])
@torch.no_grad()
def test_a_long_context_is_shared_out(family: str, cache: str, kernel: str) -> None:
    model = random(family, num_key_value_heads=1, max_position_embeddings=2048, sliding_window=600)
    prompts = [tokens(length, seed=length) for length in (1101, 1110)]
    whole = read(runner(model, cache, kernel, 150), prompts, 2000, 150)
    shared = read(runner(model, cache, kernel, 150), prompts, 550, 150)  # the last tokens come alone
    for prompt, one, other in zip(prompts, whole, shared, strict=True):
        assert torch.equal(one, other)
        if cache == "float":
            torch.testing.assert_close(one, model(torch.tensor([prompt])).logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_sequence_gives_does_not_depend_on_what_runs_beside_it(
    cache: str, kernel: str, dtype: torch.dtype
) -> None:
    model = random("mistral").to(dtype)
    prompts = [tokens(length, seed=length) for length in (1, 33, 100)]
    together = read(runner(model, cache, kernel), prompts, 40)
    for prompt, found in zip(prompts, together, strict=True):
        for chunk in (1, 17, 100):
            (alone,) = read(runner(model, cache, kernel), [prompt], chunk)
            assert torch.equal(alone, found)


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize(("cache", "within"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_a_smaller_cache_says_nearly_the_same(cache: str, within: float, kernel: str) -> None:
    model = random(head_dim=24)
    (exact,) = read(runner(model), [tokens(90)], 90)
    (near,) = read(runner(model, cache, kernel), [tokens(90)], 90)
    assert 0 < (near - exact).norm() / exact.norm() < within
    assert runner(model, cache).cache_bytes < runner(model).cache_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_as_a_program_compressed(family: str) -> None:
    steps: list[dict[str, Any]] = [{"layers": "*_proj", "technique": "rtn", "bits": 8}]
    steps += [{"layers": "model.embed_tokens", "technique": "rtn", "bits": 8}]
    model: Any = lower(freeze(compress_model(random(family, tie_word_embeddings=True), steps=steps)).eval())
    assert isinstance(model.model.embed_tokens, KernelEmbedding)
    for found, wanted in zip(
        read(runner(model), [tokens(50)], 20), read(Runner(model, pages=40), [tokens(50)], 20), strict=True
    ):
        assert (found - wanted).norm() / wanted.norm() < 0.03


@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_embedding_is_a_part_of_the_program(tied: bool) -> None:
    steps = [{"technique": "magnitude", "sparsity": 0.5}]
    model: Any = lower(freeze(compress_model(random(tie_word_embeddings=tied), steps=steps)).eval())
    assert isinstance(model.model.embed_tokens, KernelEmbedding)
    (found,), (wanted,) = (read(one, [tokens(50)], 20) for one in (runner(model), Runner(model, pages=40)))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


FORMATS: dict[str, tuple[list[dict[str, Any]], type]] = {
    "int8": ([{"technique": "rtn", "bits": 8}], PanelLinear),
    "int4 in groups, with zeros": ([{"technique": "rtn", "bits": 4, "group": 16, "symmetric": False}], PanelLinear),
    "int3": ([{"technique": "rtn", "bits": 3, "group": 16}], PanelLinear),
    "codebooks": ([{"technique": "kmeans", "bits": 4}], PanelLinear),
    "ternary": ([{"technique": "ternary"}], PanelLinear),
    "binary": ([{"technique": "binary"}], PanelLinear),
    "integer inputs": ([{"technique": "rtn", "bits": 8}, {"technique": "dynamic"}], PanelLinear),
    "turned": ([{"technique": "hadamard"}, {"technique": "rtn", "bits": 4}], TurnedLinear),
    "corrected": ([{"technique": "rtn", "bits": 3}, {"technique": "residual", "rank": 4}], SumLinear),
    "pruned": ([{"technique": "magnitude", "sparsity": 0.5}], MaskedLinear),
    "low rank": ([{"technique": "lowrank", "keep": 0.6}], LowRankLinear),
    "signs": ([{"technique": "nanoquant", "bits": 2.0}], SignsLinear),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_compressed_model_says_what_its_layers_say_in_pytorch(name: str) -> None:
    steps, kind = FORMATS[name]
    data = torch.tensor([tokens(24, seed=seed) for seed in range(4)])
    steps = [{"layers": "*_proj", **step} for step in steps]
    model: Any = lower(freeze(compress_model(random(), data, steps=steps)).eval())
    assert isinstance(model.model.layers[0].mlp.down_proj, kind)
    prompts = [tokens(50), tokens(3)]
    for found, wanted in zip(read(runner(model), prompts, 20), read(Runner(model, pages=40), prompts, 20), strict=True):
        assert (found - wanted).norm() / wanted.norm() < 0.02  # a last bit may round an input of 8 bits the other way


@pytest.mark.parametrize("kernel", native.kernels())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_layers_of_16_bits_are_read_as_they_are(dtype: torch.dtype, kernel: str) -> None:
    model = random()
    for layer in linear(model):
        layer.weight.data = layer.weight.to(dtype).float()
    wanted = model(torch.tensor([tokens(40)])).logits[0, -1]
    for layer in linear(model):
        layer.weight.data = layer.weight.to(dtype)
    (found,) = read(runner(model, kernel=kernel), [tokens(40)], 40)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", native.kernels())
@torch.no_grad()
def test_a_model_of_bfloat16_loses_less_than_in_pytorch(kernel: str) -> None:
    model = random().bfloat16()
    whole = copy.deepcopy(model).float()
    prompts = [tokens(length, seed=length) for length in (1, 20, 75, 130)]
    exact = torch.stack([whole(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    rounded = torch.stack([model(torch.tensor([prompt])).logits[0, -1].float() for prompt in prompts])
    found = torch.stack(read(runner(model, kernel=kernel), prompts, 64))
    assert 0 < (found - exact).norm() < (rounded - exact).norm()


@torch.no_grad()
def test_blocks_may_differ_in_width_heads_and_format() -> None:
    model: Any = random(tie_word_embeddings=True)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    makers = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "gate_proj": 21, "up_proj": 21}
    readers = {"o_proj": 32, "down_proj": 21}
    for name, layer in [*attention.named_children(), *mlp.named_children()]:
        if name in makers:
            layer.weight.data, layer.out_features = layer.weight[: makers[name]].clone(), makers[name]
        if name in readers:
            layer.weight.data = layer.weight[:, : readers[name]].clone()
    attention.num_key_value_groups = 2
    del model.model.layers[0]
    model.config.num_hidden_layers = 2
    (found,) = read(runner(model), [tokens(40)], 11)
    torch.testing.assert_close(
        found, model(torch.tensor([tokens(40)]), use_cache=False).logits[0, -1], rtol=1e-4, atol=1e-4
    )


def test_passes_are_cut_where_they_are_full() -> None:
    pieces = [
        Slice(sequence=sequence(tokens(900)), start=0, count=900),
        Slice(sequence=sequence([1]), start=0, count=1),
    ]
    passes = list(cut(pieces, ROWS))
    assert [[(piece.start, piece.count) for piece in one] for one in passes] == [[(0, 512)], [(512, 388), (0, 1)]]
    assert [piece.completes for one in passes for piece in one] == [False, True, True]


def test_a_layer_without_a_kernel_leaves_the_model_to_pytorch(tokenizer: Any) -> None:
    model: Any = random(vocab_size=2048)
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)
    assert native_runner(model, pages=4, cache="float") is None
    assert native_runner(random(), pages=4, cache="int4") is None
    assert Engine(model, tokenizer, max_tokens_in_cache=64).generate([[1, 2, 3]])[0].generated


def test_the_bundled_model_in_pytorch_and_in_c(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("Once upon a time there was")["input_ids"]
    (found,) = read(runner(model), [prompt], 100)
    (wanted,) = read(Runner(model, pages=40), [prompt], 100)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_random_models_have_norms_that_matter() -> None:
    assert not torch.equal(random().model.norm.weight, random_model("qwen3").model.norm.weight)
