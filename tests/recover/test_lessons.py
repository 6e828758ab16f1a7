"""Lessons against their formulas, written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.errors import DataError, ModelError
from lissom.recover.feed import Lot, feed
from lissom.recover.lessons import Labels, Original, Remembered, coarse, divergence, finite
from lissom.recover.memory import CHUNK, Memory


def models() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    made = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).eval() for _ in range(2)]
    return made[0], made[1], torch.randn(9, 4)


def kl(p: Tensor, q: Tensor) -> float:
    p, q, total = p.detach(), q.detach(), 0.0
    for a, b in zip(p.softmax(-1).flatten(0, -2), q.softmax(-1).flatten(0, -2), strict=True):
        total += sum(float(x) * (math.log(float(x)) - math.log(float(y))) for x, y in zip(a, b, strict=True))
    return total / p.flatten(0, -2).shape[0]


def test_distillation_is_the_divergence_from_the_original() -> None:
    original, model, x = models()
    assert float(Original(original).loss(model, Lot(x)).detach()) == pytest.approx(kl(original(x), model(x)), rel=1e-4)
    p, q = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    assert float(divergence(p, q, 2.0)) == pytest.approx(4 * kl(p / 2, q / 2), rel=1e-4)
    far = Original(original, "mse").loss(model, Lot(x))
    assert float(far.detach()) == pytest.approx(float((original(x) - model(x)).square().mean().detach()), rel=1e-5)


def test_hidden_outputs_count_as_shares_of_the_originals() -> None:
    original, model, x = models()
    wanted, made = F.relu(original[0](x)).detach(), F.relu(model[0](x)).detach()
    share = float((wanted - made).square().mean() / wanted.square().mean())
    loss = float(Original(original, hidden=("1",), weight=3.0).loss(model, Lot(x)).detach())
    assert loss == pytest.approx(kl(original(x), model(x)) + 3 * share, rel=1e-4)
    with pytest.raises(ModelError, match=r"no module of the original is called 'blocks\.\*'; some are 0, 1, 2"):
        Original(original, hidden=("blocks.*",))
    narrow = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 5))
    with pytest.raises(ModelError, match=r"\[9, 6\] in the original and \[9, 2\] in the model"):
        Original(original, hidden=("1",)).loss(narrow, Lot(x))


def test_labels_are_classes_numbers_or_next_tokens() -> None:
    _, model, x = models()
    y = torch.arange(9) % 5
    assert torch.equal(Labels().loss(model, Lot((x, y))), F.cross_entropy(model(x), y))
    numbers = nn.Linear(4, 4)
    assert torch.equal(Labels().loss(numbers, Lot((x, x))), F.mse_loss(numbers(x), x))
    with pytest.raises(DataError, match="no labels to learn from"):
        Labels().loss(model, Lot(x))
    tokens = torch.randint(0, 7, (2, 5))
    text = nn.Embedding(7, 7)
    said = text(tokens).log_softmax(-1)
    each = [-float(said[n, t, tokens[n, t + 1]].detach()) for n in range(2) for t in range(4)]
    assert float(Labels().loss(text, Lot(tokens)).detach()) == pytest.approx(sum(each) / 8, rel=1e-5)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_what_is_remembered_is_never_above_the_divergence_and_is_it_where_all_is_remembered(
    v: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (2 * torch.randn(3, v, generator=generator) for _ in range(2))
    found = p.log_softmax(-1).topk(min(k, v), -1)
    loss, whole = float(coarse(found.values, found.indices, q)), float(divergence(p, q, 1.0))
    assert -1e-5 <= loss <= whole + 1e-5
    if k >= v:
        assert loss == pytest.approx(whole, abs=1e-5)
    assert float(coarse(found.values, found.indices, p)) == pytest.approx(0, abs=1e-5)


def test_the_original_is_asked_once_and_remembered_in_half_precision() -> None:
    original, model, _ = models()
    x = torch.randn(CHUNK + 9, 4)
    fed, asked = feed(x, batch=8, held=0.1), 0

    def opened() -> nn.Module:
        nonlocal asked
        asked += 1
        return original

    memory = Memory(5)
    memory.fill(fed, opened)  # type: ignore[arg-type]
    memory.fill(fed, opened)  # type: ignore[arg-type]
    assert asked == 1
    for lot in [*fed.held, next(fed.lots(3))]:
        exact = Original(original).loss(model, lot)
        assert torch.allclose(Remembered(memory).loss(model, lot), exact, rtol=1e-2, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(Remembered(memory).loss(model, lot), exact, rtol=3e-2, atol=3e-3)
    with pytest.raises(DataError, match="in one tensor are remembered"):
        Remembered(memory).loss(model, Lot(x[:2]))


def test_a_loss_that_is_none_is_told() -> None:
    assert finite(torch.tensor(2.0)) == 2
    with pytest.raises(DataError, match="the loss has become nan; give a smaller lr"):
        finite(torch.tensor(math.nan))
