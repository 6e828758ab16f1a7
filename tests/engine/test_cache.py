"""Keys and values in fewer bits: what is read back, what it costs, and that the engine runs on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from lissom.engine import Engine, Sampling
from lissom.engine.cache import STORES, Cache, hadamard, kind_of_cache
from lissom.engine.pages import PAGE, Pages
from lissom.engine.runner import Runner
from lissom.engine.schedule import Schedule, Slice
from lissom.engine.sequence import Choice, Sequence
from lissom.engine.text import Detokenizer
from lissom.errors import DataError
from lissom.evaluate.agreement import divergence


def rows(t: int = 20, k: int = 3, e: int = 64) -> Tensor:
    """Keys with a few features that are much larger than the others, as models have them."""
    found = torch.randn(t, k, e)
    found[..., 5] *= 12
    return found


def matrix(e: int) -> Tensor:
    """The Hadamard matrix by its definition: (-1) to the number of bits that row and column have in common."""
    return torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(e)] for i in range(e)]) / e**0.5


def test_the_butterflies_are_the_hadamard_matrix() -> None:
    x = torch.randn(7, 2, 16)
    assert torch.allclose(hadamard(x), x @ matrix(16), atol=1e-6)
    assert torch.allclose(hadamard(hadamard(x)), x, atol=1e-6)
    odd = torch.randn(5, 1, 24)  # three blocks of eight
    blocks = torch.block_diag(*[matrix(8)] * 3)
    assert torch.allclose(hadamard(odd), odd @ blocks, atol=1e-6)


def literal(kind: str, row: Tensor) -> Tensor:
    """What a store should make of one token's head, feature by feature."""
    if kind == "float":
        return row
    if kind == "bfloat16":
        return row.bfloat16().float()
    if kind == "int8":
        scale = float((row.abs().max() / 127).half())
        return torch.tensor([round(float(v) / scale) * scale for v in row])
    turned = row @ matrix(len(row))
    low = float(turned.min().half())
    scale = float(((turned.max() - low) / 15).half())
    return torch.tensor([low + min(15, max(0, round((float(v) - low) / scale))) * scale for v in turned])


@pytest.mark.parametrize("kind", STORES)
def test_what_is_read_back_is_what_the_definition_says(kind: str) -> None:
    key, value = rows(), rows()
    slots = torch.randperm(3 * PAGE)[:20]
    for store, written in zip(Cache(3, kind).write(0, slots, key, value), (key, value), strict=True):
        expected = torch.stack([torch.stack([literal(kind, head) for head in token]) for token in written])
        assert torch.allclose(store.at(slots), expected, atol=1e-4)
        pages = store.of_pages(torch.tensor([[0, 1, 2], [2, 0, 1]]))
        assert pages.shape == (2, 3 * PAGE, 3, 64)
        assert torch.equal(pages[0][slots], store.at(slots))
        assert torch.equal(pages[1][:PAGE], store.at(torch.arange(2 * PAGE, 3 * PAGE)))


@pytest.mark.parametrize("kind", STORES)
def test_scores_are_those_of_what_is_held_and_outputs_are_turned_back(kind: str) -> None:
    key, value, query = rows(), rows(), torch.randn(4, 3, 64)
    keys, values = Cache(2, kind).write(0, torch.arange(20), key, value)
    scores = torch.einsum("the,nhe->thn", keys.turn(query), keys.at(torch.arange(20)))
    exact = torch.einsum("the,nhe->thn", query, key)
    assert (scores - exact).norm() / exact.norm() < {"float": 1e-6, "bfloat16": 0.005, "int8": 0.02, "int4": 0.2}[kind]
    back = values.turn(values.at(torch.arange(20)))
    assert (back - value).norm() / value.norm() < {"float": 1e-6, "bfloat16": 0.005, "int8": 0.02, "int4": 0.1}[kind]


def test_turning_pays_for_four_bits() -> None:
    """Without it the large feature takes the range of all the others."""
    value = rows(200)
    _, values = Cache(13, "int4").write(0, torch.arange(200), value, value)
    low, high = value.amin(-1, keepdim=True), value.amax(-1, keepdim=True)
    plain = low + ((value - low) / (high - low) * 15).round() / 15 * (high - low)
    turned = values.turn(values.at(torch.arange(200)))
    assert (turned - value).square().mean() < 0.7 * (plain - value).square().mean()


def test_bytes_are_counted_with_their_scales() -> None:
    sizes = {}
    for kind in STORES:
        cache = Cache(2, kind)
        assert cache.nbytes == 0
        cache.write(3, torch.arange(4), rows(4), rows(4))
        sizes[kind] = cache.nbytes / (2 * PAGE * 3 * 2)  # for each token, head, and key or value
    assert sizes == {"float": 4 * 64, "bfloat16": 2 * 64, "int8": 64 + 2, "int4": 32 + 4}


def test_numbers_without_range_and_large_ones_survive() -> None:
    for kind in STORES:
        for value in (torch.zeros(2, 1, 8), torch.full((2, 1, 8), 3.0), torch.full((2, 1, 8), 60_000.0)):
            keys, _ = Cache(1, kind).write(0, torch.arange(2), value, value)
            assert torch.allclose(keys.turn(keys.at(torch.arange(2))), value, rtol=0.01, atol=1e-5), kind


def test_a_token_is_held_the_same_whatever_comes_with_it() -> None:
    key = rows()
    for kind in STORES:
        alone, _ = Cache(2, kind).write(0, torch.tensor([7]), key[7:8], key[7:8])
        along, _ = Cache(2, kind).write(0, torch.arange(20), key, key)
        assert torch.equal(alone.at(torch.tensor([7])), along.at(torch.tensor([7])))


def test_a_kind_that_there_is_not_and_heads_that_do_not_suit_are_refused() -> None:
    with pytest.raises(DataError, match="cache='int2' is no kind of cache; choose auto, float, bfloat16, int8, int4"):
        kind_of_cache("int2", LlamaConfig())
    with pytest.raises(DataError, match="even width, not 7"):
        Cache(1, "int4").write(0, torch.arange(2), torch.randn(2, 1, 7), torch.randn(2, 1, 7))


def test_a_model_that_was_trained_in_bfloat16_is_served_in_it() -> None:
    assert kind_of_cache("auto", LlamaConfig(dtype="bfloat16")) == "bfloat16"
    assert kind_of_cache("auto", LlamaConfig(dtype="float32")) == "float"
    assert kind_of_cache("int8", LlamaConfig(dtype="bfloat16")) == "int8"


@torch.no_grad()
def logits(model: Any, kind: str, tokens: list[int], prompt: int) -> Tensor:
    """The logits after each token from `prompt` on, the prompt read in chunks of 9."""
    runner, schedule = Runner(model, pages=8, cache=kind), Schedule(Pages(8), max_batch=1, chunk=9)
    sequence = Sequence(
        prompt=tuple(tokens[:prompt]),
        sampling=Sampling(),
        limit=100,
        detokenizer=Detokenizer(lambda _: ""),
        random=np.random.default_rng(0),
    )
    schedule.add(sequence)
    found: list[Tensor] = []
    while prompt + len(found) < len(tokens):
        slices: list[Slice] = schedule.plan()
        out = torch.from_numpy(runner.forward(slices))
        for piece in slices:
            piece.sequence.cached += piece.count
        if any(piece.completes for piece in slices):
            found.append(out[0])
            sequence.accept(Choice(token=tokens[prompt + len(found) - 1], logprob=0.0), end=())
    return torch.stack(found)


def test_the_model_says_nearly_the_same(model: Any, demo_folder: Path, tokenizer: Any) -> None:
    tokens = tokenizer((demo_folder / "stories.txt").read_text()[:600])["input_ids"][:60]
    float_logits = logits(model, "float", tokens, 30)
    kl = {kind: float(divergence(float_logits, logits(model, kind, tokens, 30)).mean()) for kind in ("int8", "int4")}
    assert 0 < kl["int8"] < 1e-3 < kl["int4"] < 0.05


@pytest.mark.parametrize("kind", STORES)
def test_the_engine_writes_text_on_every_kind(model: Any, tokenizer: Any, kind: str) -> None:
    engine = Engine(model, tokenizer, max_tokens_in_cache=64, cache=kind)
    prompt = tokenizer("Once upon a time")["input_ids"]
    (alone,) = engine.generate([prompt], Sampling(max_tokens=8, temperature=0.0))
    together = engine.generate([prompt, prompt[:2]], Sampling(max_tokens=8, temperature=0.0))
    assert len(alone.generated) == 8
    assert together[0].generated == alone.generated
