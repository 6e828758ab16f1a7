"""Speed or revert, on models whose times are made up: what does not pay is undone, and said."""

from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import pytest

from lissom.progress import Progress
from lissom.search.bank import Bank
from lissom.search.forms import ORIGINAL, SAFE
from lissom.search.latency import Costed
from lissom.search.paying import paying
from lissom.search.sensitivity import Option
from lissom.search.subject import Subject

BYTES = {ORIGINAL: 400, SAFE: 100, "4 bits": 50, "3 bits": 40}
MS = {ORIGINAL: 4.0, SAFE: 2.0, "4 bits": 1.0, "3 bits": 2.5}  # three bits are slow here
KINDS = {"a": "linear", "b": "linear", "c": "head"}


def run(bank: Bank, choice: Mapping[str, str]) -> Any:
    """What is timed of a choice, whose times add up."""
    return lambda: {"call": sum(MS[form] for form in choice.values())}


def costed(bank: Bank, choice: Mapping[str, str]) -> Costed:
    """The same, where nothing is timed."""
    return Costed(parts={"call": sum(MS[form] for form in choice.values())})


def steps(weights: Mapping[str, float], run: Any = run) -> dict[str, tuple[bool, float, float]]:
    bank = Mock(spec=Bank, units={unit: (unit,) for unit in KINDS})
    bank.options = {
        unit: {form: Option(steps=(), nbytes=n, error=0.0, kl=1 / n) for form, n in BYTES.items()} for unit in KINDS
    }
    subject = Mock(spec=Subject, kinds=KINDS, beside=10, run=run)
    choice = {"a": "4 bits", "b": "3 bits", "c": SAFE}
    told: list[Progress] = []
    found = paying(subject, bank, choice, weights, told.append)
    assert [(event.done, event.total) for event in told] == [(0, 3), (1, 3), (2, 3)]
    assert [row.layers for row in found] == [1, 1, 1]
    if run is costed:
        assert {row.note.partition(":")[0] for row in found} == {"costed, not measured"}
        assert {row.cost_ratio.n for row in found} == {1}
    else:
        assert all(bool(row.note) != row.kept for row in found)
    return {row.name: (row.kept, round(row.latency_ratio.value, 4), round(row.cost_ratio.value, 4)) for row in found}


def test_a_step_that_is_not_faster_is_undone() -> None:
    assert steps({"latency": 1}) == {
        "4 bits: linear": (True, round(5.5 / 6.5, 4), round(5.5 / 6.5, 4)),
        "3 bits: linear": (False, round(5.5 / 5.0, 4), round(5.5 / 5.0, 4)),
        "8 bits: head": (True, round(5.5 / 7.5, 4), round(5.5 / 7.5, 4)),
    }


def test_where_size_counts_what_is_smaller_stays() -> None:
    found = steps({"size": 1})
    assert all(kept for kept, _, _ in found.values())
    assert found["3 bits: linear"][2] == pytest.approx(200 / 260, abs=1e-4)


def test_where_both_count_the_product_decides() -> None:
    found = steps({"size": 1, "latency": 1})
    assert found["3 bits: linear"] == (True, 1.1, round(1.1 * 200 / 260, 4))


def test_where_nothing_is_measured_costs_decide_and_it_is_said() -> None:
    assert steps({"latency": 1}, costed) == steps({"latency": 1})
