"""The laws that every technique of the table keeps, whatever it does."""

from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from lissom.formats import Dense, Weight, read_weight
from lissom.statistics import Gram, Moments
from lissom.techniques import TECHNIQUES
from lissom.techniques.contract import apply, check, knobs, needs
from lissom.types import Step

KNOBS: dict[str, list[dict[str, Any]]] = {
    "magnitude": [{}, {"keep": 2, "of": 4}],
    "wanda": [{}, {"keep": 2, "of": 4}],
    "sparsegpt": [{}, {"keep": 2, "of": 4}],
    "kmeans": [{"rows": 0}, {"bits": 2}],
    "rtn": [{}, {"bits": 3, "group": 32, "symmetric": False}],
    "gptq": [{"group": 32}, {"bits": 2, "group": 64, "symmetric": False, "act_order": False}],
    "binary": [{}],
}
CASES = [pytest.param(name, k, id=f"{name}-{n}") for name, all_knobs in KNOBS.items() for n, k in enumerate(all_knobs)]


def weight(o: int = 24, i: int = 128) -> Dense:
    return Dense(values=torch.randn(o, i, generator=torch.Generator().manual_seed(0)) * 0.1)


def seen(i: int = 128) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, i, generator=generator) @ (torch.eye(i) + 0.1 * torch.randn(i, i, generator=generator))
    found = {kind: kind.zero(i) for kind in (Moments, Gram)}
    for statistic in found.values():
        statistic.see(x)
    return found


def run(technique: str, given: dict[str, Any], w: Weight | None = None) -> Weight:
    step = Step(technique=technique, knobs=given)
    check(step)
    return apply(step, "layer", w or weight(), seen())


def test_every_technique_is_under_the_laws() -> None:
    assert set(KNOBS) == set(TECHNIQUES)


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_input_is_untouched(technique: str, given: dict[str, Any]) -> None:
    w = weight()
    before = w.values.clone()
    run(technique, given, w)
    assert torch.equal(w.values, before)


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_result_is_deterministic(technique: str, given: dict[str, Any]) -> None:
    assert torch.equal(run(technique, given).dense(), run(technique, given).dense())


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_result_is_smaller(technique: str, given: dict[str, Any]) -> None:
    assert run(technique, given).nbytes < weight().nbytes


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_the_result_keeps_shape_and_is_finite(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    assert result.shape == result.dense().shape == weight().shape
    assert result.dense().isfinite().all()


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_all_knobs_have_defaults_of_their_types(technique: str) -> None:
    for types, default in knobs(technique).values():
        assert type(default) in types


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_runs_without_data(technique: str) -> None:
    blank = {kind: kind.blank(128) for kind in needs(technique)}
    assert apply(Step(technique=technique), "layer", weight(), blank).dense().isfinite().all()


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_stored_parts_give_the_weight_back(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    parts = load(save({name or "values": part for name, part in result.parts().items()}))
    again = read_weight(result.spec(), {"" if name == "values" else name: part for name, part in parts.items()})
    assert torch.equal(again.dense(), result.dense())
    assert again.spec() == result.spec()


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_what_was_pruned_stays_zero(technique: str, given: dict[str, Any]) -> None:
    pruned = run("wanda", {"sparsity": 0.5})
    result = run(technique, given, pruned)
    assert (result.dense()[pruned.dense() == 0] == 0).all()
    kept = result.kept()
    assert kept is not None
    assert not kept[pruned.dense() == 0].any()


@pytest.mark.parametrize(("technique", "given"), CASES)
def test_trainable_weights_say_what_is_stored(technique: str, given: dict[str, Any]) -> None:
    result = run(technique, given)
    trainable = result.trainable()
    assert torch.equal(trainable(), result.dense())
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (trainable() - weight().values - 0.05).square().sum().backward()
        optimizer.step()
    assert not torch.equal(trainable(), result.dense())
    assert torch.equal(trainable.weight().dense(), trainable())
    assert trainable.weight().nbytes == result.nbytes
    pruned = result.kept()
    assert pruned is None or (trainable()[~pruned] == 0).all()


@pytest.mark.parametrize("kind", [Moments, Gram])
def test_merged_statistics_are_those_of_one_pass(kind: Any) -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(2))
    whole, one, other = kind.zero(7), kind.zero(7), kind.zero(7)
    whole.see(x)
    one.see(x[:20])
    other.see(x[20:])
    merged = one.merge(other)
    assert merged.n == whole.n == 50
    torch.testing.assert_close(merged.power, whole.power)
    assert merged.merge(kind.zero(7)).n == 50
