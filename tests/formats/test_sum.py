"""Sums whose base is one object: held, trained, frozen, stored and loaded as one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lissom.artifact import load, save
from lissom.compress import compress_model, quantize_model
from lissom.formats import Affine, Dense, LowRank, Sum, Weight, freeze, unfreeze
from lissom.models import compressible, replace
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.share.residual import written

SIZE, RANK = 16, 2


def sums(base: Weight, count: int, bits: int = 8) -> list[Sum]:
    def factor(o: int, i: int) -> Weight:
        return written(torch.randn(o, i), torch.ones(i), bits)

    return [Sum(base=base, correction=LowRank(a=factor(SIZE, RANK), b=factor(RANK, SIZE))) for _ in range(count)]


def tied(bits: int = 8, *, trainable: bool) -> tuple[Any, list[Sum]]:
    """Three layers, of which the first two have one base."""
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE))
    base, other = (rtn(Dense(values=torch.randn(SIZE, SIZE)), Moments.blank(SIZE), bits=4) for _ in range(2))
    weights = sums(base, 2, bits) + sums(other, 1, bits)
    replace(model, dict(zip("023", weights, strict=True)), compressible(model), trainable=trainable)
    return model, weights


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model).eval()(x)
    return found


def same_base(model: Any) -> bool:
    """Whether the first two layers have one base and the third another, whatever holds them."""
    if isinstance(model[0].weight.base, Affine) and hasattr(model[0].matrix, "base"):
        first, second, third = (model[n].matrix.base for n in (0, 2, 3))
    else:
        first, second, third = (model[n].weight.base.plane.words for n in (0, 2, 3))
    return first is second and first is not third


def test_a_sum_runs_its_base_and_its_correction_and_never_the_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sums(Dense(values=torch.randn(SIZE, SIZE)), 1)[0]
    x = torch.randn(5, SIZE)
    expected = x @ weight.dense().T
    monkeypatch.setattr(Sum, "dense", None)
    monkeypatch.setattr(LowRank, "dense", None)
    torch.testing.assert_close(weight.linear(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_base_stays_one_however_it_is_held(bits: int) -> None:
    model, _ = tied(bits, trainable=True)
    before = answers(model, x := torch.randn(3, SIZE))
    assert same_base(model)
    for change in (freeze, copy.deepcopy, unfreeze, freeze, unfreeze):
        model = change(model)
        assert same_base(model)
        torch.testing.assert_close(answers(model, x), before, rtol=1e-4, atol=1e-4)


def test_layers_train_their_base_together() -> None:
    model, weights = tied(trainable=True)
    assert len({id(p) for n in (0, 2) for p in model[n].matrix.base.parameters()}) == 2  # latent weights, and scales
    model(torch.randn(4, SIZE)).square().mean().backward()
    grads = [p.grad for p in model[0].matrix.base.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.step()
    first, second = model[0].weight, model[2].weight
    assert torch.equal(first.base.dense(), second.base.dense())
    assert not torch.equal(first.base.dense(), weights[0].base.dense())
    assert not torch.equal(first.correction.dense(), second.correction.dense())


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("example", [False, True])
def test_a_shared_base_is_stored_once_and_loaded_as_one(trainable: bool, example: bool, tmp_path: Path) -> None:
    model, weights = tied(trainable=trainable)
    x = torch.randn(3, SIZE)
    before = answers(freeze(copy.deepcopy(model)), x)
    folder = save(model, tmp_path / "saved", example=x if example else None)
    stored = load_file(folder / "model.safetensors")
    assert sum(name.endswith("_base_packed") for name in stored) == 2
    parts = sum(tensor.nbytes for name, tensor in stored.items() if ".weight" in name)
    assert parts == sum(weight.nbytes for weight in weights) - weights[0].base.nbytes
    loaded: Any = load(folder)
    assert torch.equal(loaded(x), before)
    assert same_base(loaded)
    again: Any = load(save(loaded, tmp_path / "again"), trainable=True)
    assert same_base(again)
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == (folder / "model.safetensors").stat().st_size


class Own(nn.Module):
    """A class of the user's own, which is stored with its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x)))
        return found


def test_a_graph_runs_on_a_base_that_is_stored_once(tmp_path: Path) -> None:
    model, x = Own(), torch.randn(3, SIZE)
    weights = sums(rtn(Dense(values=torch.randn(SIZE, SIZE)), Moments.blank(SIZE), bits=4), 2)
    replace(model, dict(zip(("first", "second"), weights, strict=True)), compressible(model), trainable=False)
    folder = save(model, tmp_path / "saved", example=x)
    assert sum(name.endswith("_base_packed") for name in load_file(folder / "model.safetensors")) == 1
    assert torch.equal(load(folder)(x), answers(model, x))
    assert torch.equal(load(folder, model=Own())(x), answers(model, x))


def test_quantizing_a_model_of_products_rounds_the_factors() -> None:
    model = compress_model(nn.Sequential(nn.Linear(64, 64)), steps=[{"technique": "lowrank", "keep": 0.5}])
    narrow: Any = quantize_model(model, torch.randn(40, 64), bits=4)
    weight = narrow[0].weight
    assert isinstance(weight, LowRank)
    assert isinstance(weight.b, Affine)
    assert (weight.rank, weight.b.bits, weight.b.group) == (16, 4, 64)
