from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lissom.estimate import Estimate
    from lissom.evaluate import Comparison
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
    summary: str = ""
    kl: "Estimate | None" = None
    parts: "Mapping[str, Estimate]" = field(default_factory=dict)
    predicted_latency_ms: float | None = None
    predicted_kl: float | None = None
    others: "Mapping[str, Comparison]" = field(default_factory=dict)


@dataclass(frozen=True)
class OneLayer:
    name: str
    form: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    kl: float


@dataclass(frozen=True)
class OneStep:
    name: str
    layers: int
    bytes_saved: int
    latency_ratio: "Estimate | None"
    cost_ratio: "Estimate | None"
    kl: float
    kept: bool
    note: str = ""


def candidate(name: str, megabytes: float, latency_ms: float, drop: float, verdict: str, note: str = "") -> Candidate:
    """Figures that follow from a few; what was predicted is 5 % too little, of KL 10 % too much."""
    return Candidate(
        name=name,
        nbytes=round(megabytes * 1e6),
        bits_per_weight=2 * megabytes,
        latency=_estimate(latency_ms, 0.1, "ms"),
        quality=_estimate(91.5 - 100 * drop, 0.9, "%"),
        drop=_estimate(drop, 0.004, ""),
        verdict=verdict,
        note=note,
        summary=f"{name} in all layers",
        kl=_estimate(drop / 5, drop / 50, ""),
        parts={"prefill": _estimate(0.75 * latency_ms, 0.1, "ms"), "decode": _estimate(0.25 * latency_ms, 0.1, "ms")},
        predicted_latency_ms=0.95 * latency_ms,
        predicted_kl=1.1 * drop / 5,
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
        failed={"ternary": "its outputs overflow"},
        layers=[
            OneLayer("up", "gptq 4 bits, group 128", 4.25, 1_000_000, 265_625, 0.0010),
            OneLayer("down", "8 bits", 8.125, 1_000_000, 507_812, 0.0030),
        ],
        steps=[
            OneStep(
                "gptq 4 bits of up", 1, 734_375, _estimate(0.90, 0.02, ""), _estimate(0.75, 0.02, ""), 0.0010, True
            ),
            OneStep(
                "binary of down",
                1,
                960_000,
                _estimate(1.02, 0.01, ""),
                _estimate(0.99, 0.02, ""),
                0.2,
                False,
                "not faster",
            ),
            OneStep("k-means of down", 1, 700_000, None, None, 0.0020, False),
        ],
        command="lissom optimize digits --data digits.npz --out small",
        seed=7,
        folder="small models",
    )


@pytest.fixture
def hostile(report: "Report") -> "Report":
    """A report whose every text tries to be markup."""
    from lissom.types import Recipe, Step

    bad = "<script>alert(1)</script> & $x$ {{ 7 * 7 }}"
    told = dict.fromkeys(("title", "metric", "target", "how", "made", "command", "folder"), bad)
    listed = {name: {bad: bad} for name in ("machine", "versions", "hashes", "failed", "refused")}
    return replace(
        report,
        points=[*report.points, replace(candidate(bad, 3, 3.0, 0.002, "PASS", bad), summary=bad)],
        recipe=Recipe(name=bad, steps=(Step(technique=bad, layers=bad),)),
        layers=[OneLayer(bad, bad, 4.0, 2, 1, 0.1)],
        steps=[OneStep(bad, 1, 1, None, None, 0.1, kept, bad) for kept in (True, False)],
        **told,
        **listed,
    )


@pytest.fixture
def several(report: "Report") -> "Report":
    """The same, of two metrics."""
    from lissom.estimate import Estimate, joint
    from lissom.evaluate import Comparison

    def agreement(drop: float) -> Comparison:
        found = Estimate(value=1 - drop, low=0.9 - drop, high=1 - drop / 2, n=1000)
        return Comparison(metric="agreement", original=found, compressed=found, drop=_estimate(drop, 0.002, ""))

    points = [
        replace(point, others={"agreement": agreement(drop)})  # type: ignore[type-var]
        for point, drop in zip(report.points, (0, 0.0456, 0.05, 0.08, 0.7), strict=True)
    ]
    assert report.certificate is not None
    other = replace(report.certificate, max_drop=0.05, relative=True)
    both = joint({"accuracy": report.certificate, "agreement": other})
    return replace(report, points=points, certificate=both)
