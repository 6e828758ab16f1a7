"""A small classifier that has learned something, its examples, searches over it, and candidates that nobody runs."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.evaluate import metric
from lissom.progress import quiet
from lissom.search import Result, optimize
from lissom.search.bank import Bank
from lissom.search.choosing import Choosing
from lissom.search.joint import Problem
from lissom.search.latency import Latencies
from lissom.search.module import ModuleSubject
from lissom.search.split import split
from lissom.search.subject import Trial
from lissom.search.trying import Tried
from lissom.types import Budget, Recipe


@pytest.fixture(scope="package")
def examples() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(11)
    y = torch.randint(4, (2400,), generator=random)
    centres = torch.randn(4, 32, generator=random) * 2
    return centres[y] + torch.randn(2400, 32, generator=random), y


@pytest.fixture(scope="package")
def classifier(examples: tuple[Tensor, Tensor]) -> nn.Module:
    x, y = examples
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="package")
def result(classifier: nn.Module, examples: tuple[Tensor, Tensor]) -> Result:
    """A search among 8 bits, 4 bits, and next to nothing left."""
    steps = {
        "int8": {"technique": "rtn", "bits": 8},
        "int4": {"technique": "gptq", "bits": 4, "group": 32},
        "ruined": {"technique": "magnitude", "sparsity": 0.99},
    }
    recipes = [Recipe.of({"name": name, "steps": [step]}) for name, step in steps.items()]
    return optimize(classifier, examples, Budget(max_drop=0.02), prefer="size", recipes=recipes)


@pytest.fixture
def tried(result: Result) -> Callable[..., Tried]:
    """Candidates of such figures, which nobody runs."""
    recipe = Recipe.of({"name": "int8", "steps": [{"technique": "rtn", "bits": 8}]})

    def made(name: str, cost: float, distance: float, broken: str = "") -> Tried:
        point = dataclasses.replace(result.points[1], name=name)
        trial = Trial(recipe=recipe, nbytes=1, open=nn.Identity, timed=lambda: dict, write=lambda folder, notes: folder)
        told = {"cost": cost, "distance": distance, "broken": broken}
        return Tried(trial=trial, point=point, before=result.points[0], figures={}, **told)  # type: ignore[arg-type]

    return made


@pytest.fixture
def choosing_for(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], tmp_path: Path
) -> Iterator[Callable[[str, float], Choosing]]:
    """A search that counts one part of the cost, within a budget; they share a bank, and no form is faster."""
    kind = metric("accuracy")
    lots = split(examples, {kind: Budget()})
    subject = ModuleSubject(classifier, lots.calibration, torch.device("cpu"))
    with Journal.open(tmp_path / "bank", {}) as journal:
        bank = Bank(journal, subject.units, subject.forms)
        subject.fill(bank, lots.calibration, kind, None, quiet)
        none: dict[str, dict[str, dict[str, float]]] = {own: {} for own in subject.kinds.values()}
        table = Latencies(base={"call": 1.0}, added=none)

        def choosing(part: str, drop: float) -> Choosing:
            problem = Problem.of(bank, subject.kinds, table, {part: 1})
            budgets = {kind: Budget(max_drop=drop)}
            return Choosing(subject, bank, problem, lots, budgets, kind, lambda choice: (), quiet)

        yield choosing
