"""Recovery: bolder choices learn, and are compared like any other."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.errors import DataError
from lissom.estimate import Estimate
from lissom.evaluate import metric
from lissom.search import recover
from lissom.search.choosing import Choosing, Seen, digest
from lissom.search.recover import CALM, LEARN, further, learning, recovered
from lissom.search.subject import Trial
from lissom.types import Budget, Recipe


def test_what_was_too_bold_comes_closer(
    choosing_for: Callable[[str, float], Choosing], examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing = choosing_for("size", 0.02)
    problem = choosing.problem
    points = problem.frontier(40, {})
    choosing.measured(points[len(points) // 2])
    (best,) = choosing.seen
    found = list(recovered(choosing))
    assert found
    for seen, trial in found:
        assert seen.name.endswith(", distilled")
        assert trial.recipe.steps[-1].technique == "distil"
        assert problem.cost(seen.choice) < problem.cost(best.choice)
        untrained = choosing.distance(seen.choice)
        assert seen.distance.value <= 1.05 * untrained + 1e-9
    anew: list[str] = []
    learn = choosing.subject.compress_into
    monkeypatch.setattr(
        choosing.subject, "compress_into", lambda *given: (anew.append(digest(given[-1])), learn(*given))
    )
    for (seen, trial), (again, same) in zip(found, recovered(choosing), strict=True):
        assert again == seen
        assert (same.nbytes, same.recipe) == (trial.nbytes, trial.recipe)
        assert torch.equal(same.open()(examples[0]), trial.open()(examples[0]))
    assert anew == []  # what was learned is there
    other = choosing_for("size", 0.05)
    other.measured(best.choice)
    known = [seen.choice for seen, _ in recovered(other)]  # learned under the other budget, and not anew
    assert {digest(seen.choice) for seen, _ in found} <= set(map(digest, known)) - set(anew)
    assert len({seen.name for seen, _ in recovered(other)}) == len(known)
    choosing.subject = SimpleNamespace(weights=10**9)  # type: ignore[assignment]
    assert list(recovered(choosing)) == []


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (90.0, (8.0, 16.0, 32.0)),  # never more than twice as far as before
        (40.0, (8.0, 16.0, 32.0)),
        (18.0, (8.0, 16.0)),  # 18 is not worth another try
        (12.0, (8.0, 12.0)),
        (8.0, (8.0, 2.0, 4.0)),  # what goes astray says not by how much
        (3.04, (8.0, 3.0)),
        (0.5, (8.0, 2.0)),
    ],
)
def test_how_bold_it_may_be_is_found_from_what_was_tried(
    limit: float, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices are numbers, as far from the original and as much cheaper, and drop by what they are; 8 may go astray."""
    problem = SimpleNamespace(
        frontier=lambda points, scale: [1.0, *(n / 10 for n in range(11, 400))],
        cost=lambda n: 100 - n,
        kl=lambda n, scale: n,
    )
    best = Mock(spec=Seen, choice=1.0, distance=SimpleNamespace(value=1.0))
    bank = Mock(journal=SimpleNamespace(names=list))
    bank.recipe = lambda choice, name: Recipe(name=name)
    around: dict[str, Any] = {
        "problem": problem,
        "left": problem,
        "subject": SimpleNamespace(weights=1),
        "scale": {},
        "bank": bank,
    }
    budgets = {metric("accuracy"): Budget(max_drop=limit / 100)}
    around |= {"by": metric("accuracy"), "budgets": budgets}
    choosing = Mock(spec=Choosing, seen=[best], inside=lambda one: True, **around)
    choosing.name = str
    monkeypatch.setattr(recover, "WORTH", 0.0)
    tried: list[float] = []

    def learned(choosing: Any, recipe: Any, choice: float) -> tuple[Any, Any]:
        tried.append(choice)
        if choice == limit == 8.0:
            raise DataError("outputs: some are no numbers")
        drop = Estimate(value=choice / 100, low=choice / 100, high=choice / 100, n=9)
        figures = {"accuracy": Mock(original=drop, drop=drop)}
        return Mock(spec=Seen, choice=choice, figures=figures), Mock(spec=Trial)

    monkeypatch.setattr(recover, "learned", learned)
    found = [seen.choice for seen, _ in recovered(choosing)]
    assert tried == list(expected)
    assert found == [choice for choice in tried if not choice == limit == 8.0]
    tried.clear()
    monkeypatch.setattr(recover, "WORTH", 0.5)  # none is so much cheaper
    assert list(recovered(choosing)) == []
    assert tried == []


def test_what_is_near_learns_slowly() -> None:
    def rate(by: str, far: float) -> Any:
        return learning(Recipe(name="x"), metric(by), far).steps[-1].knobs["lr"]

    assert rate("accuracy", 0.01) == pytest.approx(CALM * 0.1)
    assert rate("perplexity", 0.0025) == pytest.approx(CALM * 0.05)
    assert rate("accuracy", 0.0) == rate("accuracy", -1e-9) > 0
    assert rate("accuracy", 1.0) == rate("accuracy", math.inf) == LEARN.knobs["lr"]
    assert learning(Recipe(name="x"), replace(metric("accuracy"), logits=False), 1e-4).steps[-1].knobs == {
        **LEARN.knobs,
        "loss": "mse",
    }


def test_what_is_inside_by_chance_is_not_surely_inside() -> None:
    budgets = {metric("accuracy"): Budget(max_drop=0.02)}

    def seen(drop: float, half: float) -> Any:
        own = Estimate(value=drop, low=drop - half, high=drop + half, n=9)
        return Mock(spec=Seen, figures={"accuracy": Mock(original=Mock(value=0.9), drop=own)})

    asked = Mock(spec=Choosing, budgets=budgets)
    assert further(asked, seen(0.01, 0.004)) == pytest.approx(1.4)
    assert further(asked, seen(0.01, 0.01)) == pytest.approx(0.5)
    assert further(asked, seen(-0.01, 0.02)) == 0.25  # too little is known
    assert further(asked, seen(-0.01, 0.01)) == 2.0


def test_what_is_no_prediction_is_learned_as_numbers() -> None:
    """A module that gives one number for each example, under a metric of the user's own."""
    torch.manual_seed(4)
    layers = nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    model, x = nn.Sequential(*layers).eval(), torch.randn(800, 32)

    def close(scored: nn.Module, batch: Any) -> Tensor:
        with torch.inference_mode():
            return torch.exp(-9 * (scored(batch) - model(batch)).abs())

    result = lissom.optimize(model, x, {close: Budget(max_drop=0.05)}, prefer="size")
    learned = [one for one in result.points if one.name.endswith(", distilled")]
    assert learned
    assert result.verdict == "PASS"
