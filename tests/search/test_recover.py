"""Recovery: bolder choices learn, and are compared like any other."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.evaluate import metric
from lissom.progress import quiet
from lissom.search.bank import Bank
from lissom.search.choosing import Choosing
from lissom.search.joint import Problem
from lissom.search.latency import Latencies
from lissom.search.recover import recovered
from lissom.search.split import split
from lissom.search.subject import ModuleSubject
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
