"""Rows of a quality table: what was compared, what it weighs, and both as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lissom.estimate import Estimate
from lissom.evaluate import Comparison, Paired
from lissom.evaluate.metric import metric

DRAWS = 2000  # of a bootstrap
PLAIN = ("nbytes", "weights", "seconds", "clock", "vocabulary", "layer_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed model beside the original; `nbytes` is what its safetensors files take, `weights` how many it has.

    `seconds` are those that the processor worked on compressing it and `clock` those that passed meanwhile, None where
    nothing was compressed; `vocabulary` are the bytes of its tokenizer, 0 where `nbytes` counts them already;
    `layer_bits` are the bits per weight of the compressed layers alone.
    """

    name: str
    scores: Paired
    nbytes: int
    weights: int
    seconds: float | None = None
    clock: float | None = None
    vocabulary: int = 0
    layer_bits: float | None = None

    @property
    def figures(self) -> Comparison:
        """The comparison with the original."""
        return Comparison.of(self.scores)

    @property
    def bits(self) -> float:
        """Bits per weight: all bytes of the tensor files over all weights of the model, embedding included."""
        return 8 * self.nbytes / self.weights

    @property
    def file_bytes(self) -> int:
        """What all of it takes in a single file."""
        return self.nbytes + self.vocabulary

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        plain = {"name": self.name, "bytes": self.nbytes, "bits_per_weight": self.bits, "seconds": self.seconds}
        return {**plain, "clock_seconds": self.clock, **asdict(self.figures)}

    def fields(self) -> dict[str, Any]:
        """The row with every score, to be read again with `of`."""
        found = {name: getattr(self, name) for name in PLAIN}
        arrays = {name: getattr(self.scores, name) for name in ("original", "compressed", "kl", "same_top1")}
        listed = {name: None if array is None else array.tolist() for name, array in arrays.items()}
        return {**found, "metric": self.scores.metric.name, "scores": listed}

    @classmethod
    def of(cls, name: str, fields: dict[str, Any]) -> "Row":
        """The row that `fields` stand for."""
        plain = {key: fields[key] for key in PLAIN}
        arrays = {key: None if kept is None else np.array(kept) for key, kept in fields["scores"].items()}
        return cls(name=name, scores=Paired(metric=metric(fields["metric"]), **arrays), **plain)


def size_of(folder: Path) -> int:
    """The bytes of a folder's tensor files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def ratio(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """The mean of one over the mean of the other, paired; the interval by drawing the examples again."""
    drawn = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    low, high = np.quantile(ours[drawn].mean(1) / theirs[drawn].mean(1), (0.025, 0.975))
    return Estimate(value=float(ours.mean() / theirs.mean()), low=float(low), high=float(high), n=len(ours))


def kl_ratio(ours: Row, theirs: Row) -> Estimate:
    """The KL divergence of a row over that of another on the same examples."""
    assert ours.scores.kl is not None
    assert theirs.scores.kl is not None
    return ratio(ours.scores.kl, theirs.scores.kl)


def span(estimate: Estimate | None, spec: str, scale: float = 1) -> str:
    """A value with its interval; nothing where there is none."""
    if estimate is None:
        return ""
    value, low, high = (format(scale * end, spec) for end in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def plain(number: float | None) -> str:
    """Seconds; nothing where there are none."""
    return "" if number is None else f"{number:.0f}"


def language_table(rows: Sequence[Row]) -> list[str]:
    """The table of a language model."""
    head = ("model", "perplexity", "change %, paired", "KL, nats", "same top-1 %", "bits per weight")
    body = [
        (
            row.name,
            span(row.figures.compressed, ".3f"),
            span(row.figures.drop, "+.2f", 100),
            span(row.figures.kl, ".5f"),
            span(row.figures.same_top1, ".2f", 100),
            f"{row.bits:.2f}",
            "" if row.layer_bits is None else f"{row.layer_bits:.2f}",
            f"{row.nbytes:,}",
            plain(row.seconds),
            plain(row.clock),
        )
        for row in rows
    ]
    return markdown((*head, "of the layers", "bytes", "processor seconds", "clock seconds"), body)


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
            plain(row.seconds),
        )
        for row in rows
    ]
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
