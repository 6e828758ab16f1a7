"""The frontier as rows of text, and as a table for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from lissom.report.content import Point
from lissom.report.words import NONE, drop, figure, size, times

STYLES = {"PASS": "green", "FAIL": "red", "NEED MORE": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate in words; pairs are a figure and its interval."""

    name: str
    size: str
    smaller: str
    bits: str
    latency: tuple[str, str]
    faster: str
    quality: tuple[str, str]
    drop: tuple[str, str]
    verdict: str
    chosen: bool


def rows(points: Sequence[Point], chosen: str | None) -> list[Row]:
    """The candidates in words; the first point is the original, which the others are compared with."""
    return [_row(point, points[0], point.name == chosen) for point in points]


def _row(point: Point, original: Point, chosen: bool) -> Row:
    return Row(
        name=point.name,
        size=size(point.nbytes),
        smaller=times(original.nbytes, point.nbytes),
        bits=f"{point.bits_per_weight:.2f}",
        latency=figure(point.latency, 3),
        faster=times(original.latency.value, point.latency.value),
        quality=figure(point.quality),
        drop=(NONE, "") if point is original else drop(point.drop),
        verdict=point.verdict or NONE,
        chosen=chosen,
    )


def frontier_table(points: Sequence[Point], chosen: str | None = None, *, metric: str = "quality") -> Table:
    """The frontier, for a terminal of 80 columns or more; `chosen` is the name of the point that won.

    Beside size and latency stand how many times smaller and faster than the original, beside the drop its interval.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("candidate", overflow="fold", min_width=9)
    for heading in ("size", "", "bits", "ms", "", metric, "drop, %", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=4)
    for row in rows(points, chosen):
        table.add_row(*_cells(row), style="bold" if row.chosen else None)
    return table


def _cells(row: Row) -> list[Text]:
    figures = [row.size, row.smaller, row.bits, row.latency[0].removesuffix(" ms"), row.faster, row.quality[0]]
    return [
        Text("\N{BLACK RIGHT-POINTING TRIANGLE}" if row.chosen else " "),
        Text(row.name),
        *(Text(cell) for cell in figures),
        Text(row.drop[0].removesuffix(" %")),
        Text(row.drop[1], style="dim"),
        Text(row.verdict, style=STYLES.get(row.verdict, "dim")),
    ]
