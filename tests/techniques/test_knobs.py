"""No impossible value of any knob of any technique is taken without a word: all of them are walked, from the table."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lissom.coupling import Coupling, Reader
from lissom.errors import RecipeError
from lissom.formats import Dense, wrap
from lissom.statistics import Gram, Moments
from lissom.techniques import BLOCK, COUPLING, LAYER, MODEL, NORM, SEVERAL, SHAPE, STREAM, TECHNIQUES
from lissom.techniques.contract import check, given, kinds, knobs, needs
from lissom.techniques.knobs import above, at_least, between, fraction, one_of
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.recover.norms import Norm
from lissom.types import Step

INPUTS = 128
NONE = [math.nan, math.inf, -math.inf]  # no number that could be meant
IMPOSSIBLE: dict[str, list[Any]] = {
    "alpha": [-0.1, 1.1, *NONE],
    "base": [0, -4, 1, 9, 32],
    "batches": [0, -1],
    "bits": [0, -1, 9, 10**6],
    "clip": [0.0, -1.0, *NONE],
    "damp": [-0.001, *NONE],
    "damp_out": [-0.001, *NONE],
    "epochs": [0, -1],
    "group": [-1, -32],
    "held": [-0.1, 1.0, *NONE],
    "iterations": [0, -1],
    "keep": [0, -1, 4, 5],
    "kind": ["", "fp3"],
    "loss": ["", "l1"],
    "lr": [0.0, -0.1, *NONE],
    "multiple": [0, -1],
    "of": [0, -4, 1, 2, 5],
    "power": [-0.1, *NONE],
    "rank": [0, -1, INPUTS + 1, 10**6],
    "rounds": [-1],
    "rows": [-1],
    "scale_bits": [0, -8, 7, 32],
    "seed": [-1, 2**64],
    "size": [-1, 3, 2 * INPUTS],
    "sparsity": [-0.1, 1.0, 1.5, *NONE],
    "width": [0, -1, 5, 256],
}
BESIDES: dict[tuple[str, str], list[Any]] = {  # what is impossible in one technique only
    ("lowrank", "keep"): [0.0, -0.5, 1.5, *NONE],
    ("nanoquant", "bits"): [0.0, -1.0, 9.0, *NONE],
    ("nanoquant", "damp"): [0.0, -0.001, *NONE],
    ("residual", "bits"): [0, -1, 1, 9, 32],
    ("tie", "bits"): [0, -1, 1, 9, 32],
    ("tie", "rounds"): [0, -1],
    ("channels", "damp"): [0.0, -0.001, *NONE],
    ("heads", "damp"): [0.0, -0.001, *NONE],
    ("width", "damp"): [0.0, -0.001, *NONE],
}
WITH: dict[str, dict[str, Any]] = {"keep": {"of": 4}, "of": {"keep": 2}}  # what gives a value its meaning
FREE = (bool, type(None))  # types of which every value is possible


def values(technique: str, name: str) -> list[Any]:
    return BESIDES.get((technique, name)) or IMPOSSIBLE[name]


CASES = [
    pytest.param(technique, name, value, id=f"{technique}-{name}={value}")
    for technique in TECHNIQUES
    for name, (types, _) in knobs(technique).items()
    if set(types) - set(FREE)
    for value in values(technique, name)
]


def weight() -> Dense:
    return Dense(values=torch.randn(16, INPUTS, generator=torch.Generator().manual_seed(0)))


def coupling(kind: str) -> Coupling:
    readers = (Reader(matrix=weight().values),)
    return Coupling(channels=INPUTS, makers=(torch.randn(INPUTS, 4),), readers=readers, kind=kind)


def module() -> nn.Module:
    """Two blocks, which have been rounded."""
    layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
    rounded = [rtn(Dense(values=layer.weight.detach()), Moments.blank(8)) for layer in layers]
    return nn.Sequential(*(wrap(a, w, trainable=True) for a, w in zip(layers, rounded, strict=True)))


def run(technique: str, asked: dict[str, Any]) -> Any:
    """A technique of any grain on the least that it can be given."""
    function: Callable[..., Any] = TECHNIQUES[technique]
    if technique in LAYER:
        blank = [weight() if kind not in needs(technique) else kind.blank(size(kind)) for kind in given(technique)]
        return function(*blank, **asked)
    if technique in COUPLING:
        c = replace(coupling("channels"), unit=4, rotates=True)
        return function(c, *(kind.blank(INPUTS) for kind in needs(technique)), **asked)
    if technique in SHAPE:
        return function(coupling(kinds(technique)[0]), (Gram.blank(INPUTS),), **asked)
    if technique in STREAM:
        return function(coupling("width"), **asked)
    if technique in NORM:
        norm = Norm(mean=torch.zeros(16), variance=torch.ones(16))
        return function(norm, weight(), weight(), Gram.blank(INPUTS), **asked)
    if technique in SEVERAL:
        return function([(weight(), Gram.blank(INPUTS))] * 2, **asked)
    assert technique in {**BLOCK, **MODEL}
    model, x = module(), torch.randn(4, 8)
    return function(model, [(lambda: model(x), torch.randn(4, 8))], **asked)


def size(kind: Any) -> int:
    return 16 if kind.__name__ == "Fisher" else INPUTS


@pytest.mark.parametrize(("technique", "name", "value"), CASES)
def test_an_impossible_value_is_named(technique: str, name: str, value: Any) -> None:
    asked = {name: value, **{other: v for other, v in WITH.get(name, {}).items() if other in knobs(technique)}}
    check(Step(technique=technique, knobs=asked))  # it has the knob's type
    with pytest.raises(RecipeError) as told:
        run(technique, asked)
    assert f"{name}={value!r}" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_is_walked_runs_with_what_is_possible(technique: str) -> None:
    possible = {"group": 0, "rank": 2, "iterations": 2, "bits": 4.0 if technique == "nanoquant" else 4}
    asked = {name: value for name, value in possible.items() if name in knobs(technique)}
    assert (run(technique, asked) is None) == (technique in {**BLOCK, **MODEL})  # those change what they are given


@pytest.mark.parametrize(
    ("see", "right", "wrong"),
    [
        (lambda x: at_least(1, x=x), [1, 1.5, 10**9], [0, 0.999, *NONE]),
        (lambda x: above(0, x=x), [1e-30, 1], [0, -1, *NONE]),
        (lambda x: between(2, 8, x=x), [2, 5, 8], [1, 9, *NONE]),
        (lambda x: fraction(x=x), [0, 0.999], [-0.001, 1, *NONE]),
        (lambda x: one_of((16, 8), x=x), [8, 16], [0, 12, 32]),
    ],
)
def test_a_range_ends_where_it_says(see: Callable[[float], None], right: list[float], wrong: list[float]) -> None:
    for value in right:
        see(value)
    for value in wrong:
        with pytest.raises(RecipeError, match=r"^x=.* (must be|is not possible)"):
            see(value)
