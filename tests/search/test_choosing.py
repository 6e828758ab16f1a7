"""Choices of one form everywhere, of which the cache is no part; and what is remembered of those that were compared."""

import copy
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.journal import Journal
from lissom.estimate import Estimate
from lissom.evaluate import metric
from lissom.progress import quiet
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import Choosing, Seen, digest, everywhere
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.joint import Problem
from lissom.search.module import ModuleSubject
from lissom.search.split import split
from lissom.search.subject import Trial
from lissom.types import Budget


def problem(cache: tuple[float, ...]) -> Problem:
    """A layer of three forms, a table of two, and a cache of such costs."""
    own = {"layer": (ORIGINAL, SAFE, "4 bits"), "table": (ORIGINAL, SAFE), CACHE: (ORIGINAL, SAFE)[: len(cache)]}
    costs = {"layer": (1.0, 0.5, 0.3), "table": (1.0, 0.5), CACHE: cache}
    return Problem(forms=own, costs=costs, kls=costs)


@pytest.mark.parametrize(
    ("cache", "held"),
    [((0.2, 0.1), SAFE), ((0.0, 0.1), ORIGINAL), ((0.0, 0.0), ORIGINAL), ((0.2,), ORIGINAL)],
    ids=["faster", "slower", "by size alone", "undone"],
)
def test_the_cache_is_held_as_is_cheapest(cache: tuple[float, ...], held: str) -> None:
    given = problem(cache)
    assert everywhere(given, "4 bits") == {"layer": "4 bits", "table": SAFE, CACHE: held}
    assert given.allows(everywhere(given, SAFE))


def test_what_was_clear_for_one_budget_is_looked_at_to_the_end_for_another(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """A model of chance drops some three quarters: clearly more than 1 %, but not clearly more or less than that."""
    kind, worse = metric("accuracy"), copy.deepcopy(classifier)
    with torch.no_grad():
        for p in worse.parameters():
            p.copy_(torch.randn_like(p))
    lots = split(examples, {kind: Budget(max_drop=0.5)})
    subject, trial = ModuleSubject(classifier, examples, torch.device("cpu")), Mock(spec=Trial, open=lambda: worse)
    with Journal.open(tmp_path / "bank", {}) as journal:
        bank = Bank(journal, subject.units, subject.forms)

        def found(max_drop: float) -> tuple[float, int]:
            budgets = {kind: Budget(max_drop=max_drop)}
            around = Mock(spec=Problem)
            own = Choosing(subject, bank, around, lots, budgets, kind, lambda choice: (), quiet)
            drop = own.compared("key", "name", {}, lambda: trial).figures["accuracy"].drop
            return drop.value, drop.n

        clearly, few = found(0.01)
        whole = len(lots.selection[1])
        assert few < whole
        assert found(0.01) == (clearly, few)
        exactly, all_of_them = found(round(clearly, 2))
        assert all_of_them == whole
        assert found(0.01) == (clearly, few)
        assert found(round(clearly, 2)) == (exactly, whole)


@pytest.mark.parametrize(
    ("cost", "looked"), [(0.81, ["4 bits"]), (0.78, ["4 bits"]), (0.7, []), (1.0, [SAFE, "4 bits"])]
)
def test_one_form_everywhere_is_looked_at_where_it_costs_hardly_more(cost: float, looked: list[str]) -> None:
    """All in the safe form cost 1, and the layer in 4 bits with the table in the safe form 0.8."""
    choosing, seen = Mock(spec=Choosing), list[str]()
    choosing.subject = Mock(layers={"layer": nn.Linear(2, 2), "table": nn.Embedding(2, 2)})
    choosing.problem = Problem(
        forms={"layer": (ORIGINAL, SAFE, "4 bits"), "table": (ORIGINAL, SAFE)},
        costs={"layer": (1.0, 0.5, 0.3), "table": (1.0, 0.5)},
        kls={"layer": (0.0, 0.1, 0.2), "table": (0.0, 0.1)},
    )
    choosing.plain, choosing.measured = set(), lambda choice, name: seen.append(name)
    Choosing.uniform(choosing, cost)
    assert seen == looked


def test_tables_are_tried_in_the_safe_form_too() -> None:
    choosing, seen = Mock(spec=Choosing), dict[str, dict[str, str]]()
    choosing.subject = Mock(layers={"layer": nn.Linear(2, 2), "table": nn.Embedding(2, 2)})
    forms, costs = (ORIGINAL, SAFE, "4 bits"), (1.0, 0.5, 0.3)
    choosing.problem = Problem(
        forms=dict.fromkeys(("layer", "table"), forms),
        costs=dict.fromkeys(("layer", "table"), costs),
        kls=dict.fromkeys(("layer", "table"), (0.0, 0.1, 0.2)),
    )
    choosing.plain, choosing.measured = set(), lambda choice, name: seen.setdefault(name, choice)
    Choosing.uniform(choosing, 1.0)
    assert seen == {
        SAFE: {"layer": SAFE, "table": SAFE},
        "4 bits": {"layer": "4 bits", "table": "4 bits"},
        "4 bits, tables in 8 bits": {"layer": "4 bits", "table": SAFE},
    }


def test_one_form_everywhere_stays_though_a_step_to_it_was_undone() -> None:
    """That it saved nothing may be chance; another choice with that step goes."""
    choosing, kinds = Mock(spec=Choosing), {"layer": "Linear", "other": "Conv2d"}
    choosing.subject = Mock(layers={"layer": nn.Linear(2, 2), "other": nn.Conv2d(2, 2, 1)})
    forms, costs = (ORIGINAL, SAFE, "4 bits"), (1.0, 0.5, 0.3)
    choosing.problem = Problem(
        forms=dict.fromkeys(kinds, forms), costs=dict.fromkeys(kinds, costs), kls=dict.fromkeys(kinds, (0.0, 0.1, 0.2))
    )
    choosing.left = choosing.problem.without(kinds, {("Linear", "4 bits")})
    mixed = {"layer": "4 bits", "other": SAFE}

    def measured(choice: Choice, name: str) -> None:
        known = Estimate(value=0.1, low=0.1, high=0.1, n=9)
        choosing.all[digest(choice)] = Seen(name=name, choice=choice, figures={}, distance=known)

    choosing.plain, choosing.all, choosing.measured = set(), {}, measured
    measured(mixed, "mixed")
    Choosing.uniform(choosing, 0.6)
    found = [one.choice for one in Choosing.seen.fget(choosing)]  # type: ignore[attr-defined]
    assert found == [{"layer": "4 bits", "other": "4 bits"}]
