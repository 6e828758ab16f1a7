"""Candidates beside the original: which are worth certifying, why others are not, and what counts as their time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lissom.search.latency import WARMUP
from lissom.search.module import ModuleSubject
from lissom.search.trying import ROUNDS, Tried, noted, quietest, worth_certifying

Make = Callable[..., Tried]


def test_the_surest_is_certified_first_and_none_that_costs_no_less_than_a_surer_one(tried: Make) -> None:
    safe, bold = tried("safe", 0.5, 0.1), tried("bold", 0.2, 0.4)
    idle, dear = tried("idle", 0.6, 0.2), tried("dear", 1.1, 0.0)
    ruined = tried("ruined", 0.1, 0.9, "dropped 50 %")

    def queue(*margins: float, counts_time: bool = False) -> list[str]:
        found = worth_certifying([bold, ruined, idle, safe, dear], margins, counts_time)
        return [one.point.name for one in found]

    assert queue(1, 1, 1, 1, 1) == ["safe", "bold"]  # as sure, and closer
    assert queue(1, 1, 3, 2, 1) == ["idle", "safe", "bold"]
    assert queue(3, 1, 2, 1, 1) == ["bold"]
    idle = tried("8 bits", 0.53, 0.2)
    assert queue(1, 1, 2, 3, 1) == ["safe", "bold"]
    assert queue(1, 1, 2, 3, 1, counts_time=True) == ["safe", "8 bits", "bold"]  # may be as fast


def test_what_is_not_certified_is_told_why(tried: Make) -> None:
    safe, idle, bold = tried("safe", 0.5, 0.1), tried("idle", 0.6, 0.2), tried("bold", 0.2, 0.4)
    told = [noted(one, [safe, bold], {"safe": "NEED MORE"}, {}).note for one in (safe, idle, bold)]
    assert told == ["", "safe is surer to pass and costs no more", "less certain to pass than one that did not"]


def test_a_candidate_is_timed_again_while_something_slows_down_the_original(
    classifier: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    subject = ModuleSubject(classifier, examples[0][:2], torch.device("cpu"), examples)
    found: list[float] = []

    def told_of(*slow: float) -> float:
        """What is told of the candidate, where the original takes so much longer from try to try."""
        rounds = iter([ms for ms in slow for _ in range(ROUNDS + WARMUP)])
        told = iter([4 * ms for ms in slow for _ in range(ROUNDS + WARMUP)])
        runs = {"original": lambda: {"call": 10 * next(rounds)}, "one": lambda: {"call": next(told)}}
        parts = quietest(subject, runs)
        found.append(len(list(rounds)) / (ROUNDS + WARMUP))  # tries that nobody asked for
        return parts["one"][0]["call"]

    assert told_of(1.04, 1.0) == 4.16  # nobody knows better yet
    assert told_of(1.3, 1.2, 1.0, 1.0) == 4.0
    assert told_of(1.0, 1.0) == 4.0
    assert told_of(1.4, 1.3, 1.2, 1.3, 1.4, 1.0) == 4.8  # it may be slower for good
    assert found == [1, 1, 1, 1]
