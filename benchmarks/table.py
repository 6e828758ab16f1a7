"""Rows of a quality table: what was compared, what it weighs, and both as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lissom.estimate import Estimate
from lissom.evaluate import Comparison, Paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed model beside the original; `nbytes` is what its safetensors files take, `weights` how many it has.

    `seconds` are those that the processor worked on compressing it, None where nothing was compressed.
    """

    name: str
    scores: Paired
    nbytes: int
    weights: int
    seconds: float | None = None

    @property
    def figures(self) -> Comparison:
        """The comparison with the original."""
        return Comparison.of(self.scores)

    @property
    def bits(self) -> float:
        """Bits per weight: all bytes of the tensor files over all weights of the model, embedding included."""
        return 8 * self.nbytes / self.weights

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        plain = {"name": self.name, "bytes": self.nbytes, "bits_per_weight": self.bits, "seconds": self.seconds}
        return {**plain, **asdict(self.figures)}


def size_of(folder: Path) -> int:
    """The bytes of a folder's tensor files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def span(estimate: Estimate | None, spec: str, scale: float = 1) -> str:
    """A value with its interval; nothing where there is none."""
    if estimate is None:
        return ""
    value, low, high = (format(scale * end, spec) for end in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def seconds(row: Row) -> str:
    """The processor seconds of a row."""
    return "" if row.seconds is None else f"{row.seconds:.0f}"


def language_table(rows: Sequence[Row]) -> list[str]:
    """The table of a language model."""
    head = (
        "model",
        "perplexity",
        "change %, paired",
        "KL, nats",
        "same top-1 %",
        "bits per weight",
        "bytes",
        "processor seconds",
    )
    body = [
        (
            row.name,
            span(row.figures.compressed, ".3f"),
            span(row.figures.drop, "+.2f", 100),
            span(row.figures.kl, ".5f"),
            span(row.figures.same_top1, ".2f", 100),
            f"{row.bits:.2f}",
            f"{row.nbytes:,}",
            seconds(row),
        )
        for row in rows
    ]
    return markdown(head, body)


def vision_table(rows: Sequence[Row]) -> list[str]:
    """The table of a classifier."""
    head = ("model", "accuracy %", "drop in points, paired", "flips %", "bits per weight", "bytes", "processor seconds")
    body = [
        (
            row.name,
            span(row.figures.compressed, ".1f", 100),
            span(row.figures.drop, "+.2f", 100),
            span(row.figures.flips, ".1f", 100),
            f"{row.bits:.2f}",
            f"{row.nbytes:,}",
            seconds(row),
        )
        for row in rows
    ]
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
