"""Products and sums in layers of every kind: run, exported, stored, loaded and trained."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import load, save
from lissom.compress import compress_model
from lissom.compress.stream import stored_like
from lissom.formats import Affine, Dense, LowRank, Masked, Sum, freeze
from lissom.formats.lowrank import half

RECIPES: dict[str, list[dict[str, Any]]] = {
    "product": [{"technique": "lowrank", "keep": 0.7}],
    "product, rounded": [{"technique": "lowrank", "keep": 0.7}, {"technique": "rtn", "bits": 8}],
    "sum": [{"technique": "rtn", "bits": 4}, {"technique": "residual", "rank": 3}],
    "sum on pruned": [{"technique": "magnitude"}, {"technique": "residual", "rank": 3, "bits": 16}],
    "sum on shared": [{"technique": "kmeans", "bits": 3}, {"technique": "residual", "rank": 3, "bits": 8}],
}


class Own(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(40, 16), nn.Conv1d(16, 12, 3), nn.Linear(12, 20)

    def forward(self, index: Tensor) -> Tensor:
        y = torch.relu(self.conv(self.embedding(index).transpose(1, 2)))
        logits: Tensor = self.head(y.mean(2))
        return logits


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_of_layer_runs_is_stored_and_trains(name: str, tmp_path: Path) -> None:
    index = torch.randint(40, (5, 7))
    model: Any = compress_model(Own(), index, steps=RECIPES[name])
    dense = Own()
    for own in ("embedding", "conv", "head"):
        layer, compressed = getattr(dense, own), getattr(model, own)
        assert isinstance(compressed.weight, LowRank if name.startswith("product") else Sum)
        layer.weight.data = compressed.weight.dense().reshape(layer.weight.shape)
    dense.conv.bias, dense.head.bias = model.conv.bias, model.head.bias
    frozen = freeze(copy.deepcopy(model)).eval()
    with torch.no_grad():
        torch.testing.assert_close(frozen(index), dense(index), rtol=1e-4, atol=1e-5)
        folder = save(model, tmp_path / "saved", example=index)
        longer = torch.randint(40, (9, 7))
        torch.testing.assert_close(load(folder)(longer), frozen(longer), rtol=1e-5, atol=1e-6)
        assert torch.equal(load(folder, model=Own())(longer), frozen(longer))
    model(index).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_factors_are_half_floats_where_that_holds_them() -> None:
    assert half(torch.tensor([[1.0, 1e-7]])).values.dtype == torch.float16  # a small entry beside a large one
    assert half(torch.tensor([[1e5, 1.0]])).values.dtype == torch.float32
    assert half(torch.tensor([[1e-5, 1e-7]])).values.dtype == torch.float32
    assert half(torch.zeros(2, 2)).values.dtype == torch.float16


def test_a_product_counts_its_factors_and_nothing_else() -> None:
    weight = LowRank.of(torch.randn(30, 4), torch.randn(4, 50))
    assert weight.nbytes == 2 * 4 * (30 + 50)
    assert weight.bits_per_weight == 16 * 4 * 80 / 1500
    assert (weight.shape, weight.rank) == ((30, 50), 4)


def test_a_pruned_base_is_stored_in_the_precision_of_the_original() -> None:
    base = Masked.of(torch.randn(4, 6), torch.rand(4, 6) < 0.5)
    correction = LowRank(a=Dense(values=torch.randn(4, 1)), b=Dense(values=torch.randn(1, 6)))
    kept = stored_like(Sum(base=base, correction=correction), torch.bfloat16)
    assert isinstance(kept, Sum)
    assert isinstance(kept.base, Masked)
    assert kept.base.values.dtype == torch.bfloat16
    assert kept.correction is correction


def test_a_factor_may_be_integers() -> None:
    model: Any = compress_model(nn.Sequential(nn.Linear(32, 32)), steps=RECIPES["product, rounded"])
    assert isinstance(model[0].weight.a, Affine)
    assert isinstance(model[0].weight.b, Affine)
