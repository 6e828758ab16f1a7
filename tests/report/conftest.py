from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lissom.estimate import Estimate
    from lissom.report import Report


@dataclass(frozen=True)
class Candidate:
    name: str
    nbytes: int
    bits_per_weight: float
    latency: "Estimate"
    quality: "Estimate"
    drop: "Estimate"
    verdict: str = ""
    note: str = ""


def candidate(name: str, megabytes: float, latency_ms: float, drop: float, verdict: str, note: str = "") -> Candidate:
    return Candidate(
        name=name,
        nbytes=round(megabytes * 1e6),
        bits_per_weight=2 * megabytes,
        latency=_estimate(latency_ms, 0.1, "ms"),
        quality=_estimate(91.5 - 100 * drop, 0.9, "%"),
        drop=_estimate(drop, 0.004, ""),
        verdict=verdict,
        note=note,
    )


def _estimate(value: float, half: float, unit: str) -> Any:
    from lissom.estimate import Estimate

    return Estimate(value=value, low=value - half, high=value + half, n=1000, unit=unit)


@pytest.fixture
def points() -> list[Candidate]:
    """An original of 8 MB, one candidate for each verdict, and one that lost nearly everything."""
    return [
        candidate("original", 8, 4.0, 0.0, ""),
        candidate("gptq 4 bits", 2, 2.0, 0.0032, "PASS"),
        candidate("rtn 4 bits", 2.5, 2.1, 0.0125, "NEED MORE", "412 more examples are needed"),
        candidate("gptq 3 bits", 1.6, 2.3, 0.027, "FAIL"),
        candidate("binary", 0.5, 1.2, 0.515, "FAIL", "drops far more than the budget"),
    ]


@pytest.fixture
def report(points: list[Candidate]) -> "Report":
    """A search that chose gptq at 4 bits, certified under a budget of 1 %."""
    from lissom.estimate import Certificate
    from lissom.report import Report
    from lissom.types import Budget, Recipe, Step

    return Report(
        title="digits",
        points=points,
        chosen="gptq 4 bits",
        budget=Budget(max_drop=0.01),
        metric="accuracy",
        target="cpu",
        certificate=Certificate(
            verdict="PASS",
            drop=points[1].drop,
            n=1438,
            n_more=0,
            confidence=0.95,
            max_drop=0.01,
            method="paired betting test",
        ),
        recipe=Recipe(name="gptq 4 bits", steps=(Step(technique="gptq", knobs={"bits": 4, "group": 128}),)),
        machine={"processor": "two cores"},
        versions={"torch": "2.13.0"},
        hashes={"model.safetensors": "9f86d081884c7d65"},
        made="24 November 2026",
    )


@pytest.fixture
def hostile(report: "Report") -> "Report":
    """A report whose every text tries to be markup."""
    bad = "<script>alert(1)</script> & $x$ {{ 7 * 7 }}"
    points = [*report.points, candidate(bad, 3, 3.0, 0.002, "PASS", bad)]
    return replace(report, title=bad, points=points, metric=bad, target=bad, machine={bad: bad}, hashes={bad: bad})
