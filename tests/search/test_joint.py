"""The joint problem against all of its choices, and what is learned from measured ones."""

import itertools
import random
from unittest.mock import Mock

import pytest

from lissom.errors import DataError
from lissom.search.bank import Bank
from lissom.search.joint import Problem, weights_of
from lissom.search.latency import Latencies
from lissom.search.local import children, improved


def problem(units: int, forms: int, seed: int) -> Problem:
    """Random costs, and distances that mostly rise as costs fall."""
    draw = random.Random(seed)
    names = [f"form {k}" for k in range(forms)]
    costs, kls = {}, {}
    for unit in map(str, range(units)):
        costs[unit] = sorted((draw.random() for _ in names), reverse=True)
        kls[unit] = sorted(draw.random() ** 4 for _ in names)
    return Problem(forms=dict.fromkeys(costs, names), costs=costs, kls=kls)


def every(one: Problem) -> list[dict[str, str]]:
    return [dict(zip(one.forms, forms, strict=True)) for forms in itertools.product(*one.forms.values())]


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_beats_one_of_the_frontier(seed: int) -> None:
    one = problem(4, 4, seed)
    points = one.frontier(10, {})
    figures = [(one.cost(choice), one.kl(choice, {})) for choice in every(one)]
    for choice in points:
        cost, kl = one.cost(choice), one.kl(choice, {})
        assert not any(c < cost - 1e-5 and k < kl - 1e-12 for c, k in figures)
    kls = [one.kl(choice, {}) for choice in points]
    assert kls == sorted(kls)
    assert [one.cost(choice) for choice in points] == sorted(map(one.cost, points), reverse=True)
    assert kls[0] == pytest.approx(min(k for _, k in figures))
    assert one.cost(points[-1]) == pytest.approx(min(c for c, _ in figures), abs=1e-4)


@pytest.mark.parametrize("prefer", ["size", "latency", "both", "decode"])
def test_a_cost_is_a_share_of_what_all_in_the_safe_form_takes(prefer: str) -> None:
    """Of four units that take 3 of 10 ms together; one without anything saves a fourth of the bytes, and its time.

    Where time alone counts, bytes count for a hundredth.
    """
    option = {form: Mock(nbytes=nbytes, kl=0.0) for form, nbytes in (("8 bits", 100), ("nothing", 0))}
    bank = Mock(spec=Bank, options=dict.fromkeys("abcd", option), units=dict.fromkeys("abcd", ()))
    saved = {"prefill": -0.25, "decode": -0.5}
    table = Latencies(base={"prefill": 4.0, "decode": 6.0}, added={"kind": {"nothing": saved}})
    one = Problem.of(bank, dict.fromkeys("abcd", "kind"), table, weights_of(prefer, ("prefill", "decode")))
    safe = dict.fromkeys("abcd", "8 bits")
    expected = {"size": (1, 0.75), "both": (2, 1.675), "latency": (1.01, 0.9325), "decode": (1.01, 5.5 / 6 + 0.0075)}
    found = (one.cost(safe), one.cost({**safe, "a": "nothing"}))
    assert found == pytest.approx(expected[prefer])
    assert one.without(dict.fromkeys("abcd", "kind"), ()).cost(safe) == one.cost(safe)


def test_a_form_that_moves_the_predictions_more_than_foreseen_is_taken_less_often() -> None:
    one = problem(6, 3, 1)
    before = one.frontier(12, {})
    after = one.frontier(12, {"form 1": 5.0})

    def taken(points: list[dict[str, str]]) -> int:
        return sum(form == "form 1" for choice in points for form in choice.values())

    assert taken(after) < taken(before)


def test_the_scale_of_forms_is_learned_from_choices_that_were_measured() -> None:
    one, draw = problem(12, 3, 2), random.Random(3)
    true = {"form 0": 1.0, "form 1": 3.0, "form 2": 0.5}
    seen = []
    for _ in range(30):
        choice = {unit: draw.choice(forms) for unit, forms in one.forms.items()}
        seen.append((choice, one.kl(choice, true)))
    scale = one.learned(seen)
    assert scale["form 1"] == pytest.approx(3.0, rel=0.1)
    assert scale["form 2"] == pytest.approx(0.5, rel=0.1)
    assert one.learned([]) == dict.fromkeys(true, 1.0)


def test_local_search_finds_what_adding_up_does_not_tell() -> None:
    """Distances that do not add up: two units in the same form cancel. The best of all choices is found."""
    one = problem(5, 3, 4)

    def measure(choice: dict[str, str]) -> float:
        same = sum(choice[str(u)] == choice[str(u + 1)] for u in range(4))
        return one.kl(choice, {}) / (1 + same)

    start = one.frontier(9, {})[4]
    bound = one.cost(start)
    found, distance = improved(one, start, measure, {}, generations=40)
    assert one.cost(found) <= bound
    assert distance == measure(found) < measure(start)
    best = min(measure(choice) for choice in every(one) if one.cost(choice) <= bound)
    assert distance == pytest.approx(best)
    assert improved(one, start, measure, {}, generations=3)[0] == improved(one, start, measure, {}, generations=3)[0]


def test_no_child_costs_more_than_its_parent_may() -> None:
    one, draw = problem(8, 4, 5), random.Random(6)
    parent = one.frontier(7, {})[3]
    born = list(children(one, parent, one.cost(parent), draw))
    assert len(born) > 20
    assert all(one.cost(child) <= one.cost(parent) for child in born)
    assert all(child[unit] in forms for child in born for unit, forms in one.forms.items())


def test_a_preference_is_a_name_or_weights() -> None:
    assert weights_of("both", ()) == {"size": 1, "latency": 1}
    assert weights_of({"size": 1, "decode": 2}, ("prefill", "decode")) == {"size": 1, "decode": 2}
    with pytest.raises(DataError, match="'beauty' is none of size, latency, both"):
        weights_of("beauty", ())
    with pytest.raises(DataError, match="name some of size, latency"):
        weights_of({"decode": 1}, ())
    with pytest.raises(DataError, match="weights above 0"):
        weights_of({"size": 0}, ())
