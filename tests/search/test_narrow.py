"""Structure in a search: models with fewer channels learn, where nothing else is faster."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from lissom.errors import DataError
from lissom.estimate import Estimate
from lissom.evaluate import metric
from lissom.search import narrow
from lissom.search.choosing import Choosing, Seen
from lissom.search.joint import Problem
from lissom.search.narrow import narrowed
from lissom.types import Budget, Recipe, Step


def test_channels_go_and_what_is_left_learns(
    choosing_for: Callable[[str, float], Choosing], examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing = choosing_for("latency", 0.05)
    assert list(narrowed(choosing)) == []  # nothing is known yet to begin from
    choosing.measured(dict.fromkeys(choosing.bank.units, "8 bits"), "8 bits")
    found = list(narrowed(choosing))
    assert 2 <= len(found) <= 3
    for seen, trial in found:
        assert seen.name.endswith(" narrower, distilled")
        assert trial.recipe.steps[-1].technique == "distil"
        assert all(weight.spec()["bits"] == 8 for weight in trial.weights().values())
    first, second = (trial.weights()["0"].shape[0] for _, trial in found[:2])
    assert (first, 64 - first) == (56, 8)  # an eighth
    assert second < first
    monkeypatch.setattr(choosing.subject, "compress_into", None)  # what was learned is there
    for (seen, trial), (again, other) in zip(found, narrowed(choosing), strict=True):
        assert again == seen
        assert torch.equal(other.open()(examples[0]), trial.open()(examples[0]))


@pytest.mark.parametrize(
    ("limit", "known", "expected"),
    [
        (0.9, 1.0, (0.125, 0.1875, 0.3125)),  # never much bolder than before
        (0.125, 1.0, (0.125,)),  # too bold, and less gains too little
        (0.2, 1.0, (0.125, 0.1875)),
        (0.4, 0.8, (0.25, 0.3125, 0.375)),  # something else is faster already
        (0.9, 0.4, ()),
        (-1.0, 1.0, (0.125,)),  # it goes astray
    ],
)
def test_how_narrow_it_may_be_is_found_from_what_was_tried(
    limit: float, known: float, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lost a share of its channels drops by as much."""
    problem = Problem(forms={"0": ["as it is", "8 bits"]}, costs={"0": [known - 1, 0.0]}, kls={"0": [0, 0]}, always=1.0)
    best = Mock(spec=Seen, choice={"0": "as it is"})
    subject = Mock(weights=1)
    subject.narrower = lambda share, data: (Step(technique="channels", knobs={"sparsity": share}),)
    bank = Mock()
    bank.recipe = lambda choice, name: Recipe(name=name)
    budgets = {metric("accuracy"): Budget(max_drop=max(limit, 0.0))}
    around = {"problem": problem, "subject": subject, "bank": bank, "lots": Mock(), "budgets": budgets}
    around["by"] = metric("accuracy")
    choosing = Mock(spec=Choosing, seen=[best], inside=lambda one: True, **around)
    tried: list[float] = []

    def learned(choosing: Any, recipe: Any, choice: Any) -> tuple[Any, Any]:
        tried.append(recipe.steps[0].knobs["sparsity"])
        if limit < 0:
            raise DataError("outputs: some are no numbers")
        drop = Estimate(value=tried[-1], low=tried[-1], high=tried[-1], n=9)
        return Mock(spec=Seen, figures={"accuracy": Mock(original=drop, drop=drop)}), Mock()

    monkeypatch.setattr(narrow, "learned", learned)
    assert len(list(narrowed(choosing))) == (len(expected) if limit > 0 else 0)
    assert tried == list(expected)
    choosing.problem = Problem(forms={"0": ["as it is"]}, costs={"0": [0.0]}, kls={"0": [0]}, always=1.0)
    tried.clear()
    list(narrowed(choosing))
    assert tried[0] == 0.125  # where the safe form was undone, for it is no faster
    subject.narrower = lambda share, data: ()
    assert list(narrowed(choosing)) == []
    subject.weights = 10**9
    assert list(narrowed(choosing)) == []
