"""Stages: run one behind the other they are the model, whatever it is, with the same gradients."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lissom
from lissom.compress.layers import said
from lissom.errors import DataError, ModelError
from lissom.formats import unfreeze
from lissom.models.apart import apart
from lissom.models.families import FAMILIES
from lissom.recover.parallel.stages import chain_of

Tiny = Callable[..., Path]


class Branches(nn.Module):
    """Two branches side by side, of which one goes past several layers, and a size that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(12, 3)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        y = torch.relu(self.first(x))
        a, b = self.left(y), self.right(y * scale)
        both = torch.cat([self.norm(a), b], 1).view(x.size(0), -1)
        return self.last(both) + x.sum(1, keepdim=True)


class Deciding(nn.Module):
    """What it does depends on its input, so its graph cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if bool(x.sum() > 0) else self.inner(-x)


class Named(nn.Module):
    """Arguments by name, and more than one output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, right: Tensor, left: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.one(left) * torch.tanh(self.other(right))
        return (y, left) if mask is None else (y * mask, left)


def through(model: nn.Module, batch: Any, cuts: list[int]) -> Tensor:
    chain = chain_of(model, batch)
    ends = [0, *[min(cut, chain.count - 1) for cut in cuts], chain.count]
    given = tuple(chain.inputs(batch))
    for a, b in pairwise(ends):
        found = chain.stage(a, b)(*given) if b > a else given
        given = found if isinstance(found, tuple) else (found,)
    (last,) = given
    return last


def assert_same(model: nn.Module, batch: Any, expected: Tensor, cuts: list[int]) -> None:
    model.zero_grad()
    expected.square().mean().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert wanted
    model.zero_grad()
    found = through(model, batch, cuts)
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    for name, p in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(p.grad, wanted[name])


@pytest.mark.parametrize("cuts", [[], [1], [1, 2], [2, 4, 5]])
def test_any_module_is_its_stages(cuts: list[int]) -> None:
    x = torch.randn(5, 6)
    for model in (Branches(), nn.Sequential(nn.Linear(6, 6), Deciding(), nn.Tanh(), Deciding()), compressed()):
        model.eval()
        assert_same(model, (x, torch.zeros(5)), model(x), cuts)
    named = Named()
    batch = {"left": torch.randn(5, 4), "right": torch.randn(5, 3), "labels": torch.zeros(5)}
    assert_same(named, batch, named(batch["right"], batch["left"])[0], [min(cut, 2) for cut in cuts])


def compressed() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return unfreeze(lissom.quantize_model(nn.Sequential(nn.Unflatten(1, (1, 6)), model)))


def test_stages_end_where_only_floats_pass() -> None:
    model = Branches().eval()
    chain = chain_of(model, torch.randn(5, 6))
    names = [[node.name for node in unit] for unit in chain.units]  # type: ignore[attr-defined]
    size = next(unit for unit in names if "size" in unit)
    assert "view" in size  # what is no tensor is read where it is made
    assert len(names) > 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_language_model_is_its_stages(tiny: Tiny, name: str) -> None:
    model = apart(transformers.AutoModelForCausalLM.from_pretrained(tiny(name, name != "qwen2")).float()).eval()
    tokens = torch.randint(0, 2048, (2, 9))
    assert_same(model, tokens, said(model, model(tokens, use_cache=False)), [1])


def test_a_stage_has_only_what_it_runs(tiny: Tiny) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", True, 3))
    chain = chain_of(model, torch.zeros(1, 4, dtype=torch.long))
    own = {id(p) for p in chain.stage(1, 2).parameters()}
    assert own == {id(p) for p in model.model.layers[1].parameters()}
    tied = id(model.lm_head.weight)
    assert [tied in {id(p) for p in chain.stage(a, a + 1).parameters()} for a in range(3)] == [True, False, True]


@pytest.mark.parametrize("other", ["", "write"])
def test_inputs_that_are_not_the_arguments_of_a_model_are_named(other: str) -> None:
    batch = {"left": torch.randn(5, 4)} | ({other: torch.randn(5, 3)} if other else {})
    with pytest.raises(DataError, match=r"Named takes right, left, mask \(by default None\); name the inputs"):
        chain_of(Named(), batch)


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ModelError, match="the graph of Deciding cannot be traced"):
        chain_of(Deciding(), torch.randn(2, 6))
