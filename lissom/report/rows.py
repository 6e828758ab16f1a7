"""Candidates, layers and steps in words: the rows of the tables, in the terminal and on the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from lissom.estimate import Estimate
from lissom.report.content import LayerRow, Point, StepRow
from lissom.report.words import NONE, drop, error, figure, number, percent, size, times

Pair = tuple[str, str]  # a figure, and what stands below it: its interval, or how far it is from another
NOTHING: Pair = (NONE, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate in words; below what was predicted stands how much more was measured.

    `others` has the name, the quality and the drop of each further metric.
    """

    name: str
    size: str
    smaller: str
    bits: str
    latency: Pair
    parts: Sequence[tuple[str, Pair]]
    faster: str
    quality: Pair
    drop: Pair
    kl: Pair
    predicted_latency: Pair
    predicted_kl: Pair
    verdict: str
    chosen: bool
    others: Sequence[tuple[str, Pair, Pair]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer in words; `share` is its part of the loss that is foreseen of all layers, `place` its place in them."""

    name: str
    place: int
    form: str
    bits: str
    before: str
    after: str
    kl: str
    share: float
    percent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step in words."""

    name: str
    layers: str
    saved: str
    latency: Pair
    cost: Pair
    kl: str
    kept: bool
    note: str


def rows(points: Sequence[Point], chosen: str | None) -> list[Row]:
    """The candidates in words; the first point is the original, which the others are compared with."""
    return [_row(point, points[0], point.name == chosen) for point in points]


def _row(point: Point, original: Point, chosen: bool) -> Row:
    kl = point.kl
    return Row(
        name=point.name,
        size=size(point.nbytes),
        smaller=times(original.nbytes, point.nbytes),
        bits=f"{point.bits_per_weight:.2f}",
        latency=figure(point.latency, 3),
        parts=[(name, figure(part, 3)) for name, part in point.parts.items()],
        faster=times(original.latency.value, point.latency.value),
        quality=figure(point.quality),
        drop=NOTHING if point is original else drop(point.drop),
        kl=NOTHING if kl is None else (number(kl.value), f"{number(kl.low)} to {number(kl.high)}"),
        predicted_latency=_predicted(point.predicted_latency_ms, point.latency.value, " ms"),
        predicted_kl=_predicted(point.predicted_kl, None if kl is None else kl.value),
        verdict=point.verdict or NONE,
        chosen=chosen,
        others=[
            (name, figure(other.compressed), NOTHING if point is original else drop(other.drop))
            for name, other in point.others.items()
        ],
    )


def _predicted(predicted: float | None, measured: float | None, unit: str = "") -> Pair:
    if predicted is None:
        return NOTHING
    return f"{number(predicted)}{unit}", "" if measured is None else error(predicted, measured)


def layer_rows(layers: Sequence[LayerRow]) -> list[Layer]:
    """The layers in words; first those that the most loss is foreseen of."""
    total = sum(layer.kl for layer in layers)
    return [
        Layer(
            name=layer.name,
            place=place,
            form=layer.form,
            bits=f"{layer.bits_per_weight:.2f}",
            before=size(layer.bytes_before),
            after=size(layer.bytes_after),
            kl=number(layer.kl),
            share=layer.kl / total if total > 0 else 0.0,
            percent=percent(round(layer.kl / total, 3)) if total > 0 else NONE,
        )
        for place, layer in sorted(enumerate(layers), key=lambda placed: -placed[1].kl)
    ]


def step_rows(steps: Sequence[StepRow]) -> list[Step]:
    """The steps in words, in their order."""
    return [
        Step(
            name=step.name,
            layers=f"{step.layers:,}",
            saved=size(step.bytes_saved),
            latency=_ratio(step.latency_ratio),
            cost=_ratio(step.cost_ratio),
            kl=number(step.kl),
            kept=step.kept,
            note=step.note,
        )
        for step in steps
    ]


def _ratio(estimate: Estimate | None) -> Pair:
    if estimate is None:
        return NOTHING
    return f"{estimate.value:.2f}×", f"{estimate.low:.2f} to {estimate.high:.2f}"
