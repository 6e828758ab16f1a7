"""The table of latencies: what forms add, taken in the model, and remembered by all that it hangs on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from lissom.progress import Progress, quiet
from lissom.search.latency import ROUNDS, WARMUP, Costed, Latencies, Run, by_turns, cache_folder, known, measured, paces

TIMES = {"slow": 3.0, "fast": -1.0}


def run(ms: float, order: list[str] | None = None, name: str = "") -> Run:
    def once() -> dict[str, float]:
        if order is not None:
            order.append(name)
        return {"prefill": ms, "decode": 2 * ms}

    return once


def test_runs_take_turns() -> None:
    order: list[str] = []
    found = by_turns({"a": run(1, order, "a"), "b": run(2, order, "b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert found["b"] == [{"prefill": 2, "decode": 4}] * 3


def test_what_is_costed_takes_no_turns() -> None:
    assert by_turns({"a": Costed(parts={"call": 1.0}), "b": Costed(parts={"call": 2.0})}) == {
        "a": [{"call": 1}],
        "b": [{"call": 2}],
    }


def test_what_a_form_adds_is_for_one_unit_and_all_of_a_choice_add_up() -> None:
    variants, counts = {"linear": ["slow", "fast"], "head": []}, {"linear": 2, "head": 1}
    told: list[Progress] = []
    table = measured(lambda: run(10), variants, counts, lambda kind, form: run(10 + 2 * TIMES[form]), told.append)
    assert table.base == {"prefill": 10, "decode": 20}
    assert table.added["linear"] == {"slow": {"prefill": 3, "decode": 6}, "fast": {"prefill": -1, "decode": -2}}
    assert [(str(e), e.done, e.total) for e in told] == [("linear: slow", 0, 2), ("linear: fast", 1, 2)]
    kinds = {"a": "linear", "b": "linear", "c": "head"}
    assert table.of(kinds, {"a": "slow", "b": "fast", "c": "safe"}) == {"prefill": 12, "decode": 24}


def test_a_model_of_one_form_has_its_own_time(tmp_path: Path) -> None:
    table = measured(lambda: run(4), {"linear": []}, {"linear": 1}, lambda kind, form: run(0), quiet)
    assert table == Latencies(base={"prefill": 4, "decode": 8}, added={"linear": {}})


def test_what_one_base_is_slower_than_others_is_in_no_difference() -> None:
    """The first base lies badly in memory; all that were made after it, the base too, do not."""
    bases = itertools.chain([run(11)], itertools.repeat(run(10)))
    variants, counts = {"linear": ["slow", "fast"], "head": ["fast"], "none": []}, {"linear": 2, "head": 1, "none": 1}

    def made(kind: str, form: str) -> Run:
        return run(10 + counts[kind] * TIMES[form])

    table = measured(lambda: next(bases), variants, counts, made, quiet)
    assert table.base == {"prefill": 11, "decode": 22}
    assert table.added["linear"] == {"slow": {"prefill": 3, "decode": 6}, "fast": {"prefill": -1, "decode": -2}}
    assert table.added["head"] == {"fast": {"prefill": -1, "decode": -2}}


def test_a_table_is_measured_once_for_a_key(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], Latencies]:
        def once() -> Latencies:
            made.append(name)
            return Latencies(base={"call": 1.5}, added={"k": {"f": {"call": 0.25}}})

        return once

    first = known(["a"], make("a"), tmp_path)
    assert known(["a"], make("again"), tmp_path) == first
    known(["b"], make("b"), tmp_path)
    assert made == ["a", "b"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISSOM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LISSOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder().name == "lissom"


def test_what_is_foreseen_goes_with_the_machine() -> None:
    """The table was made when all took half as long; what a form adds is a share of the base."""
    pace = paces(lambda: {"prefill": 40.0, "decode": 8.0}, run(2))
    assert pace == {"prefill": 0.05, "decode": 0.5}
    added = {"k": {"f": {"prefill": 0.5, "decode": -1.0}}}
    table = Latencies(base={"prefill": 1.0, "decode": 2.0}, added=added)
    kinds, choice = {"a": "k", "b": "k"}, {"a": "f", "b": "as it is"}
    found = table.beside({"prefill": 40.0, "decode": 8.0}, pace, kinds, choice)
    assert found == pytest.approx({"prefill": 3.0, "decode": 2.0})
    single = Latencies(base={"call": 2.0}, added={"k": {"f": {"call": 1.0}}})
    assert single.beside({"latency": 10.0}, {"call": 0.5}, kinds, choice) == {"call": 7.5}


def test_a_difference_in_a_share_of_a_model_is_known_as_much_better() -> None:
    """Rounds that differ by chance: those of a quarter are repeated until the interval is a quarter as wide."""

    def shaky() -> Run:
        numbers = itertools.cycle((100.0, 100.5, 99.75, 101.0, 99.0))
        return lambda: {"call": next(numbers)}

    asked: dict[float, int] = {}
    for share in (1.0, 0.25):
        calls: list[None] = []

        def variant(counted: list[None] = calls) -> dict[str, float]:
            counted.append(None)
            return {"call": 100.0}

        measured(shaky, {"k": ["f"]}, {"k": 1}, lambda kind, form, v=variant: v, quiet, share)
        asked[share] = len(calls)
    assert asked[1.0] == ROUNDS + WARMUP < asked[0.25]
