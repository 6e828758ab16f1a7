"""Whose turn it is, by hand and in a schedule."""

from collections import Counter
from typing import Any

import pytest

from lissom.engine import Engine, Sampling
from lissom.engine.fairness import Fairness


def test_reading_counts_one_and_writing_two() -> None:
    fairness = Fairness()
    fairness.join("a", [])
    fairness.count("a", read=10, written=3)
    assert fairness.of("a") == 16
    fairness.join("b", ["a"])  # who comes later starts where the others are
    assert fairness.of("b") == 16
    fairness.count("b", read=100, written=0)
    fairness.join("a", ["b"])  # and by having been away one saves nothing up
    assert fairness.of("a") == 116
    fairness.join("b", ["a"])
    assert fairness.of("b") == 116


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Engine:
    return Engine(model, tokenizer, max_tokens_in_cache=512, max_batch=2)


def finished(engine: Engine) -> list[str]:
    """The owners of sequences in the order in which these end."""
    order = list[str]()
    while engine.busy:
        order += [one.owner for one in engine.step() if one.finish is not None]
    return order


def test_one_who_asks_for_much_does_not_keep_another_waiting(engine: Engine) -> None:
    sampling = Sampling(temperature=0, max_tokens=4, ignore_eos=True)
    for owner, count in (("many", 12), ("few", 3)):
        for number in range(count):
            engine.enqueue(engine.prepare([5, 6, 7 + number], sampling, owner=owner))
    order = finished(engine)
    assert Counter(order) == {"many": 12, "few": 3}
    # two of the first were begun before the other is looked at; then both take turns
    assert max(place for place, owner in enumerate(order) if owner == "few") < 9


def test_the_lower_priority_comes_first(engine: Engine) -> None:
    sampling = Sampling(temperature=0, max_tokens=4, ignore_eos=True)
    for owner, priority in (("later", 1), ("later", 1), ("later", 1), ("now", 0), ("now", 0)):
        engine.enqueue(engine.prepare([5, 6, 7], sampling, owner=owner, priority=priority))
    assert finished(engine) == ["now", "now", "later", "later", "later"]


def test_order_of_coming_decides_where_all_else_is_equal(engine: Engine) -> None:
    sampling = Sampling(temperature=0, max_tokens=4, ignore_eos=True)
    sequences = [engine.prepare([5, 6, 7 + number], sampling) for number in range(6)]
    for sequence in sequences:
        engine.enqueue(sequence)
    ended = list[Any]()
    while engine.busy:
        ended += [one for one in engine.step() if one.finish is not None]
    assert ended == sequences
