"""What an optimization found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lissom.estimate import Certificate, Estimate
from lissom.evaluate import Comparison
from lissom.hardware import MEASURED
from lissom.types import Budget, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate on the frontier, in figures.

    `latency` is in milliseconds, of one batch (for a language model, of a short answer); `drop` is a fraction on the
    scale of the budget, on the data for choosing; `verdict` is that of the certificate where there was one; `note` says
    why a candidate was not taken, and `summary` what was done to the model. `kl` is how far it is from the original,
    `parts` are those of the latency, and what was predicted is of the joint search. Of several metrics, quality and
    drop are those of the first, and `others` has those of the others by their names.
    """

    name: str
    nbytes: int
    bits_per_weight: float
    latency: Estimate
    quality: Estimate
    drop: Estimate
    verdict: str = ""
    note: str = ""
    kl: Estimate | None = None
    parts: Mapping[str, Estimate] = field(default_factory=dict)
    predicted_latency_ms: float | None = None
    predicted_kl: float | None = None
    summary: str = ""
    others: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """What became of a layer: its form, its bytes, and the KL that its form alone is foreseen to cost."""

    name: str
    form: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One form of all units of one kind: what it saves, with it and without, and whether it was kept.

    `latency_ratio` and `cost_ratio` are with over without, the cost being what was preferred.
    """

    name: str
    kind: str
    form: str
    layers: int
    bytes_saved: int
    latency_ratio: Estimate
    cost_ratio: Estimate
    kl: float
    kept: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A compressed model that can be saved: its recipe, its certificate, and how to write it to a folder."""

    point: Point
    recipe: Recipe
    certificate: Certificate
    write: Callable[[Path], Path]

    def save(self, folder: str | Path) -> Path:
        """Write the model, with its recipe, figures and certificate, to a new folder.

        Raises:
            ArtifactError: the name is taken, or the disk cannot hold it.
        """
        return self.write(Path(folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The frontier and what was chosen on it.

    `points` begins with the original. `best` is None where nothing was certified; `certificate` is then that of the
    first candidate that was not, or None where no candidate looked good enough to be certified. `smallest` and
    `fastest` are those of all that are certified, which `best` is the cheapest of by what was preferred: they were
    tested in one order fixed beforehand, so that whichever is taken is certified all the same. `failed` names the
    candidates that could not be compared, and why. `layers` says where the best one's loss comes from, `steps` what
    each form of each kind of layer was seen to save, those that were undone among them. `budgets` has that of each
    metric by its name. `how` says where times come from: measured on the target, or costed where it is not here;
    `refused` are the forms that do not run there as they are, and why.
    """

    points: Sequence[Point]
    best: Candidate | None
    certificate: Certificate | None
    budgets: Mapping[str, Budget]
    target: str
    failed: Mapping[str, str] = field(default_factory=dict)
    layers: Sequence[LayerRow] = ()
    steps: Sequence[StepRow] = ()
    how: str = MEASURED
    refused: Mapping[str, str] = field(default_factory=dict)
    smallest: Candidate | None = None
    fastest: Candidate | None = None

    @property
    def measured(self) -> bool:
        """Whether times were measured."""
        return self.how == MEASURED

    @property
    def metric(self) -> str:
        """The name of the metric, or of the first of several."""
        return next(iter(self.budgets))

    @property
    def budget(self) -> Budget:
        """Its budget."""
        return self.budgets[self.metric]

    @property
    def verdict(self) -> str:
        """PASS, FAIL or NEED MORE."""
        return self.certificate.verdict if self.certificate else "FAIL"
