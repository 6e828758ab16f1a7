"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lissom.estimate import Certificate, Estimate
from lissom.types import Budget, Recipe

# Why a candidate was not chosen, where it has no note of its own.
REASONS = {
    "PASS": "certified too, but larger",
    "FAIL": "certified to break the budget",
    "NEED MORE": "not decided by the examples there are",
    "": "not certified",
}


@runtime_checkable
class Point(Protocol):
    """One candidate on the frontier. A report reads these attributes and asks for nothing else.

    `latency` is in milliseconds; `drop` is a fraction, on the scale of the budget's `max_drop`; `verdict` is PASS,
    FAIL, NEED MORE, or empty where the candidate was not certified; `note` may say why it was rejected.
    """

    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def latency(self) -> Estimate: ...
    @property
    def quality(self) -> Estimate: ...
    @property
    def drop(self) -> Estimate: ...
    @property
    def verdict(self) -> str: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page shows.

    `points` begins with the original model, which sizes and times are compared with. `chosen` is the name of the point
    that won, None where none did. `metric` is what quality means here ("accuracy"). `machine`, `versions` and `hashes`
    (file: sha-256) are printed as they are given; `made` is a date.
    """

    title: str
    points: Sequence[Point]
    chosen: str | None
    budget: Budget
    metric: str
    target: str
    certificate: Certificate | None = None
    recipe: Recipe | None = None
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    made: str = ""

    @property
    def original(self) -> Point:
        """The uncompressed model."""
        return self.points[0]

    @property
    def winner(self) -> Point | None:
        """The point that was chosen."""
        return next((point for point in self.points if point.name == self.chosen), None)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """The candidates that were not chosen, and why."""
        others = [point for point in self.points[1:] if point.name != self.chosen]
        return [(point.name, point.note or REASONS[point.verdict]) for point in others]
