"""Attention over 8 bits: what it says by its formula, and what the engine's kernel says."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import open_folder
from lissom.engine.bench import engine
from lissom.engine.kernels import native
from lissom.engine.native_runner import NativeRunner
from lissom.engine.sequence import Sampling
from lissom.models.attention import KEYS, attend, attend_in_8_bits


def one(x: Tensor) -> tuple[Tensor, float]:
    """Integers and their scale, the slow way."""
    scale = max(abs(float(value)) for value in x) / 127
    return torch.tensor([round(float(value) / scale) for value in x]).float(), scale


def by_definition(q: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """What one query makes of all tokens."""
    own, scale = one(q)
    k, v = [one(key) for key in keys], [one(value) for value in values]
    p = torch.stack([scaling * scale * s * (own @ codes) for codes, s in k]).softmax(0)
    out = torch.zeros(values.shape[1])
    for start in range(0, len(p), KEYS):
        weights, block = one(torch.stack([p[t] * v[t][1] for t in range(start, min(start + KEYS, len(p)))]))
        out += block * sum(weights[t] * v[start + t][0] for t in range(len(weights)))
    return out


def test_it_is_what_it_says() -> None:
    query, key, value = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 70, 8), torch.randn(1, 2, 70, 8)
    found, _ = attend(nn.Identity(), query, key, value, None, scaling=0.3)
    for head, at in product(range(4), range(2)):
        wanted = by_definition(query[0, head, at], key[0, head // 2], value[0, head // 2], 0.3)
        assert torch.allclose(found[0, at, head], wanted, atol=1e-5)


@pytest.mark.skipif(not native.kernels(), reason="needs the library")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3"])
@torch.no_grad()
def test_the_engine_says_the_same(tiny: Callable[..., Path], family: str) -> None:
    """But for numbers that lie so near the middle between two integers that other sums bring them to the other side."""
    opened = open_folder(tiny(family))
    model: Any = opened.model
    tokens = torch.randint(2048, (8, 100))
    plain = model(tokens).logits[:, -1]
    running = engine(model, opened.tokenizer, 8, 100, 1, cache="int8")
    assert isinstance(running._runner, NativeRunner)
    for prompt in tokens.tolist():
        running.add(prompt, Sampling(max_tokens=1))
    served = torch.from_numpy(running._runner.forward(running.schedule.plan()))
    rounded = attend_in_8_bits(model)(tokens).logits[:, -1]
    off, cost = ((logits - served).norm(dim=1) / served.norm(dim=1) for logits in (rounded, plain))
    assert off.median() < 0.1 * cost.median()
    assert off.min() < 1e-5 < cost.min()
