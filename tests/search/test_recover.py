"""Recovery: bolder choices learn, and are compared like any other."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.errors import DataError
from lissom.evaluate import metric
from lissom.progress import quiet
from lissom.search import recover
from lissom.search.bank import Bank
from lissom.search.choosing import Choosing, Seen
from lissom.search.joint import Problem
from lissom.search.latency import Latencies
from lissom.search.recover import recovered
from lissom.search.split import split
from lissom.search.subject import ModuleSubject, Trial
from lissom.types import Budget


def test_what_was_too_bold_comes_closer(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, kind = Budget(max_drop=0.02), metric("accuracy")
    lots = split(examples, {kind: budget})
    subject = ModuleSubject(classifier, lots.calibration, torch.device("cpu"))
    with Journal.open(tmp_path / "bank", {}) as journal:
        bank = Bank(journal, subject.units, subject.forms)
        subject.fill(bank, lots.calibration, kind, None, quiet)
        none: dict[str, dict[str, dict[str, float]]] = {own: {} for own in subject.kinds.values()}
        table = Latencies(base={"call": 1.0}, added=none)
        problem = Problem.of(bank, subject.kinds, table, {"size": 1})
        choosing = Choosing(subject, bank, problem, lots, {kind: budget}, kind, lambda choice: (), quiet)
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
        monkeypatch.setattr(subject, "compress_into", None)  # what was learned is there
        for (seen, trial), (again, other) in zip(found, recovered(choosing), strict=True):
            assert again == seen
            assert (other.nbytes, other.recipe) == (trial.nbytes, trial.recipe)
            assert torch.equal(other.open()(examples[0]), trial.open()(examples[0]))
        choosing.subject = SimpleNamespace(weights=10**9)  # type: ignore[assignment]
        assert list(recovered(choosing)) == []


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100.0, (4.0, 8.0, 16.0)), (10.0, (4.0, 8.0, 16.0)), (6.0, (4.0, 8.0)), (3.0, (4.0, 2.0)), (0.5, (4.0, 2.0, 1.0))],
)
def test_bolder_ones_learn_until_one_is_not_surely_inside_and_less_bold_ones_until_one_is(
    limit: float, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices are numbers, as far from the original and as much cheaper; those below a limit are surely inside."""
    numbers = [1.0, 1.01, 2.0, 4.0, 8.0, 16.0]
    problem = SimpleNamespace(frontier=lambda points, scale: numbers, cost=lambda n: -n, kl=lambda n, scale: n)
    best = Mock(spec=Seen, choice=1.0, distance=SimpleNamespace(value=1.0))
    around = {"problem": problem, "subject": SimpleNamespace(weights=1), "scale": {}}
    choosing = Mock(spec=Choosing, seen=[best], inside=lambda one: True, **around)
    choosing.name = str
    tried: list[float] = []

    def learned(choosing: Any, choice: float, name: str) -> tuple[Any, Any]:
        tried.append(choice)
        if choice == 16.0:
            raise DataError("outputs: some are no numbers")
        return Mock(spec=Seen, choice=choice), Mock(spec=Trial)

    monkeypatch.setattr(recover, "learned", learned)
    monkeypatch.setattr(recover, "surely", lambda choosing, seen: seen.choice < limit)
    found = [seen.choice for seen, _ in recovered(choosing)]
    close = {1.0: 1.01}  # the closest choice that is cheaper than the best
    assert tried == [close.get(times, times) for times in expected]
    assert found == [choice for choice in tried if choice != 16.0]
