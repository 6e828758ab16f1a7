"""The end of a search: who leads of those that passed, and that certifying stops where it must."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.estimate import Certificate, Verdict
from lissom.evaluate import metric
from lissom.progress import Progress, quiet
from lissom.search import Result, concluding, trying
from lissom.search.concluding import Judged, certified, leaders
from lissom.search.module import ModuleSubject
from lissom.search.split import split
from lissom.search.trying import Terms, Tried
from lissom.types import Budget

Make = Callable[..., Tried]
Pass = Callable[..., Judged]


@pytest.fixture
def passed(result: Result, tried: Make) -> Pass:
    """Candidates that passed, of so many bytes: the milliseconds beside the original, and those of their turns."""

    def made(name: str, nbytes: int, beside: float, ms: float) -> Judged:
        assert result.certificate is not None
        one = tried(name, 0.5, 0.1)
        latency = dataclasses.replace(one.point.latency, value=beside)
        trial = dataclasses.replace(one.trial, timed=lambda: lambda: {"call": ms})
        point = dataclasses.replace(one.point, nbytes=nbytes, latency=latency)
        return Judged(tried=dataclasses.replace(one, trial=trial, point=point), certificate=result.certificate)

    return made


def test_of_those_that_passed_the_fastest_is_the_fastest_and_the_smallest_the_smallest(
    passed: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was preferred and foreseen: the surest of them, tested first, may be slow."""
    monkeypatch.setattr(trying, "ROUNDS", 3)
    told: list[Progress] = []
    given = {"by": metric("accuracy"), "target": "cpu", "progress": told.append}

    def names(**weights: float) -> list[str]:
        found = leaders(queue, Terms(budgets={}, weights=weights, **given))  # type: ignore[arg-type]
        return [found[what].tried.point.name for what in ("smallest", "fastest", "cheapest")]

    queue = [passed(*one) for one in (("sure", 90, 9, 9), ("small", 40, 8, 8), ("a", 60, 5, 5.2), ("b", 64, 5.2, 5))]
    assert names(size=1) == ["small", "a", "small"]  # nothing is timed again
    assert told == []
    assert names(latency=1) == ["small", "b", "b"]
    assert [str(event) for event in told] == ["those that passed, by turns"]
    assert names(size=1, latency=1) == ["small", "b", "a"]
    queue.append(passed("c", 50, 5.3, 5.05))
    assert names(latency=1) == ["small", "b", "b"]  # c is smaller, but slower
    queue.append(passed("d", 55, 5.3, 5))
    assert names(latency=1) == ["small", "d", "d"]  # as fast as b, and smaller
    assert leaders([], Terms(budgets={}, weights={"size": 1}, **given)) == {}  # type: ignore[arg-type]


def test_what_slowed_the_original_is_no_merit_of_who_was_timed_beside_it(
    passed: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of the candidate, which was timed by turns with it: at 4.5 milliseconds it is far ahead beside that one."""
    monkeypatch.setattr(trying, "ROUNDS", 3)
    terms = Terms(budgets={}, weights={"latency": 1}, by=metric("accuracy"), target="cpu", progress=quiet)
    for ms in (6.5, 4.5):
        slow, fast = passed("slow", 90, ms, 6.5), passed("fast", 60, 3.5, 5.0)
        latency = dataclasses.replace(slow.tried.before.latency, value=2 * slow.tried.before.latency.value)
        stalled = dataclasses.replace(slow.tried.before, latency=latency)
        slow = dataclasses.replace(slow, tried=dataclasses.replace(slow.tried, before=stalled))
        assert leaders([slow, fast], terms)["fastest"].tried.point.name == "fast"


def test_certifying_stops_at_the_first_that_does_not_pass(
    result: Result,
    tried: Make,
    classifier: nn.Module,
    examples: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With PASS, FAIL, PASS to come the third is not even looked at: a second chance would have to be paid for."""
    assert result.certificate is not None
    verdicts: Iterator[Verdict] = iter(("PASS", "FAIL", "PASS"))
    opened: list[str] = []

    def verdict(*given: Any, **told: Any) -> Certificate:
        assert result.certificate is not None
        return dataclasses.replace(result.certificate, verdict=next(verdicts))

    def opening(name: str) -> Tried:
        def opens() -> nn.Module:
            opened.append(name)
            return classifier

        one = tried(name, 0.5, 0.1)
        return dataclasses.replace(one, trial=dataclasses.replace(one.trial, open=opens))

    accuracy = metric("accuracy")
    subject = ModuleSubject(classifier, examples, torch.device("cpu"))
    queue = [opening(name) for name in "abc"]
    monkeypatch.setattr(concluding, "certify_beside", verdict)
    budgets = {accuracy: Budget(max_drop=0.02)}
    lots = split(examples, budgets)
    told: list[Progress] = []
    terms = Terms(budgets=budgets, by=accuracy, target="cpu", weights={"size": 1}, progress=told.append)
    judged = certified(subject, queue, lots, terms)
    assert [one.certificate.verdict for one in judged] == ["PASS", "FAIL"]
    assert opened == ["a", "b"]
    assert [(str(event), event.done) for event in told] == [
        ("a: certify", 0),
        ("a: PASS", 1),
        ("b: certify", 1),
        ("b: FAIL", 2),
    ]
    frontiers = [[point.verdict for point in event.frontier] for event in told if event.frontier is not None]
    assert frontiers == [["", "", ""], ["PASS", "", ""], ["PASS", "FAIL", ""]]
