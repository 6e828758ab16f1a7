"""Signs against signs: counted in words, and as the layers run them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.formats import Binary, Dense, Xnor, freeze, matrix_of, unfreeze, wrap
from lissom.formats import xnor as file
from lissom.formats.plane import pack
from lissom.formats.xnor import agreement, popcount, two_valued
from lissom.techniques.quantize.xnor import xnor


def made(o: int, i: int, kept: Tensor | None = None) -> Xnor:
    return Xnor(binary=Binary.of(torch.rand(o, i) < 0.5, torch.rand(o, 1) + 0.5, kept))


def by_hand(x: Tensor) -> Tensor:
    rows = []
    for row in x.tolist():
        mean = sum(row) / len(row)
        k = sum(abs(value - mean) for value in row) / len(row)
        rows.append([mean + k if value >= mean else mean - k for value in row])
    return torch.tensor(rows)


def test_bits_are_counted() -> None:
    words = torch.tensor([[0, -1, 1, 2**31 - 1], [-(2**31), 12345, -12345, 255]], dtype=torch.int32)
    expected = [sum((word & 0xFFFFFFFF).bit_count() for word in row) for row in words.tolist()]
    assert popcount(words).tolist() == expected


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 70])
def test_agreement_is_the_product_of_signs(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s, b, there = (torch.rand(n, columns) < 0.5 for n in (5, 3, 3))
    packed = [pack(bits.to(torch.uint8), 1) for bits in (s, b, there)]
    expected = (s * 2.0 - 1) @ ((b * 2.0 - 1) * there).T
    for at_once in (1, 2**20):  # a row at a time, and all at once
        monkeypatch.setattr(file, "AT_ONCE", at_once)
        assert torch.equal(agreement(*packed), expected)


def test_an_input_keeps_its_mean_its_size_and_the_side_of_each_feature() -> None:
    x = torch.randn(4, 9).relu() + 0.3
    torch.testing.assert_close(two_valued(x), by_hand(x))


def test_the_gradient_of_an_input_is_that_of_the_input_held_in_its_range() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weight = torch.randn(3, 8)
    (two_valued(x) * weight).sum().backward()
    mean = other.mean(1, keepdim=True)
    k = (other - mean).abs().mean(1, keepdim=True)
    (torch.clamp(other, mean - k, mean + k) * weight).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(40, 6), (2, 3, 40), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), 2),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (2, 3, 9, 8), 3),
    "conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 7, 7), 3),
    "conv2d one image": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6), 3),
}


def expected(layer: Any, weight: Xnor, x: Tensor, dims: int) -> Tensor:
    """The torch.nn layer on the binary matrix and the binary input, each token or example by itself."""
    held = by_hand(x.flatten(-dims).reshape(-1, x.shape[-dims:].numel())).reshape(x.shape)
    layer.weight.data = weight.dense().reshape(layer.weight.shape)
    said: Tensor = layer(held)
    return said


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_meets_its_input_as_signs(name: str, trainable: bool) -> None:
    make, shape, dims = LAYERS[name]
    layer: Any = make()
    x, (o, i) = torch.randn(shape), matrix_of(layer).shape
    for kept in (None, torch.rand(o, i) < 0.6):
        weight = made(o, i, kept)
        torch.testing.assert_close(
            wrap(layer, weight, trainable=trainable)(x), expected(layer, weight, x, dims), rtol=1e-4, atol=1e-4
        )


WRONG: dict[str, tuple[str, Any]] = {
    "no mean": ("two_valued", lambda x: torch.where(x >= 0, 1.0, -1.0) * x.abs().mean(1, keepdim=True)),
    "no size": ("two_valued", lambda x: torch.where(x >= x.mean(1, keepdim=True), 1.0, -1.0)),
    "input as it is": ("two_valued", lambda x: x),
    "agreeing signs subtracted": ("agreement", lambda s, b, m: -agreement(s, b, m)),
    "pruned weights counted": ("agreement", lambda s, b, m: agreement(s, b, torch.full_like(m, -1))),
    "words counted as they stand": ("popcount", lambda words: words.sum(-1, dtype=torch.int32)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_definition_catches_what_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = WRONG[wrong]
    layer, x = nn.Linear(40, 6), torch.randn(5, 40) + 0.5
    weight = made(6, 40, torch.rand(6, 40) < 0.6)
    right = expected(layer, weight, x, 1)
    monkeypatch.setattr(file, name, change)
    assert not torch.allclose(wrap(layer, weight)(x), right, rtol=1e-3, atol=1e-3)


def test_half_precision_in_is_half_precision_out() -> None:
    wrapped = wrap(nn.Linear(40, 6, bias=False), made(6, 40))
    assert wrapped(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_each_row_has_its_mean_magnitude() -> None:
    w = torch.randn(5, 12)
    found = xnor(Dense(values=w)).dense()
    torch.testing.assert_close(found, w.sign() * w.abs().mean(1, keepdim=True), rtol=1e-3, atol=0)


def test_a_model_of_signs_learns_and_says_the_same_frozen() -> None:
    """Two layers and a task that one bit of each weight and input can do: on which side of zero two features are."""
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    model: Any = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Hardtanh(), nn.Linear(32, 2))
    for place in (0, 3):
        model[place] = wrap(model[place], xnor(Dense(values=matrix_of(model[place]))), trainable=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first = F.cross_entropy(model(x), y).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    model.eval()
    with torch.no_grad():
        said = model(x)
        torch.testing.assert_close(freeze(model)(x), said, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(unfreeze(model)(x), said, rtol=1e-3, atol=1e-3)
