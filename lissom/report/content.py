"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lissom.estimate import Certificate, Estimate
from lissom.evaluate import Comparison
from lissom.types import Budget, Recipe

# Why a candidate was not chosen, where it has no note of its own.
REASONS = {
    "PASS": "certified too, but not the cheapest",
    "FAIL": "certified to break the budget",
    "NEED MORE": "not decided by the examples there are",
    "": "not certified",
}


@runtime_checkable
class Point(Protocol):
    """One candidate on the frontier. A report reads these attributes and asks for nothing else.

    `latency` is in milliseconds, and so are `parts`, such as "prefill" and "decode"; `drop` is a fraction, on the scale
    of the budget's `max_drop`; `kl` is the divergence from the original in nats a prediction, on the data for choosing;
    what was predicted is None where nothing was. `verdict` is PASS, FAIL, NEED MORE, or empty where the candidate was
    not certified; `note` may say why it was rejected, and `summary` what was done to the model, in a line. `others` has
    what `quality` and `drop` are for each further metric, by its name.
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
    @property
    def summary(self) -> str: ...
    @property
    def kl(self) -> Estimate | None: ...
    @property
    def parts(self) -> Mapping[str, Estimate]: ...
    @property
    def predicted_latency_ms(self) -> float | None: ...
    @property
    def predicted_kl(self) -> float | None: ...
    @property
    def others(self) -> Mapping[str, Comparison]: ...


@runtime_checkable
class LayerRow(Protocol):
    """What became of a layer of the chosen model: its form ("gptq 4 bits, group 64"), and the KL foreseen of it."""

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def bytes_before(self) -> int: ...
    @property
    def bytes_after(self) -> int: ...
    @property
    def kl(self) -> float: ...


@runtime_checkable
class StepRow(Protocol):
    """A step that the search took: on how many layers, what it saves, and whether it was kept.

    `latency_ratio` is the time with the step over that without it, measured by turns, and `cost_ratio` is of what was
    asked to be small, such as size times latency; None where it was not measured. `kl` is foreseen; `note` may say why
    the step was undone.
    """

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def bytes_saved(self) -> int: ...
    @property
    def latency_ratio(self) -> Estimate | None: ...
    @property
    def cost_ratio(self) -> Estimate | None: ...
    @property
    def kl(self) -> float: ...
    @property
    def kept(self) -> bool: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page shows.

    `points` begins with the original model, which sizes and times are compared with. `chosen` is the name of the point
    that won, None where none did; `failed` names candidates that could not be compared, and why. `metric` is what
    quality means here ("accuracy"), of several the first, and `budget` is its budget; the certificate has all. `layers`
    are those of the chosen model. `machine`, `versions` and `hashes` (file: sha-256) are printed as they are given;
    `made` is a date. `command` makes all of it again; `folder` is what `lissom recut` can cut anew, empty where it
    cannot. `how` says where times come from: measured on the target, or costed where it is not here; `refused` are the
    forms that do not run there as they are, and why.
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
    failed: Mapping[str, str] = field(default_factory=dict)
    layers: Sequence[LayerRow] = ()
    steps: Sequence[StepRow] = ()
    command: str = ""
    seed: int | None = None
    folder: str = ""
    how: str = "measured"
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether times were measured on the target."""
        return self.how == "measured"

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
        """The candidates that were not chosen, and why; last those that could not be compared."""
        others = [point for point in self.points[1:] if point.name != self.chosen]
        return [*((point.name, point.note or REASONS[point.verdict]) for point in others), *self.failed.items()]

    @property
    def undone(self) -> list[tuple[str, str]]:
        """The steps that were not kept, and why."""
        return [(step.name, step.note or "it was not seen to pay") for step in self.steps if not step.kept]
