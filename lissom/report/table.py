"""The tables of a report for the terminal: the frontier, the layers, the steps."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lissom.report.content import LayerRow, Point, StepRow
from lissom.report.rows import Pair, Row, layer_rows, rows, step_rows
from lissom.report.words import percent

STYLES = {"PASS": "green", "FAIL": "red", "NEED MORE": "yellow"}


def frontier_table(
    points: Sequence[Point], chosen: str | None = None, *, metric: str = "quality", measured: bool = True
) -> Table:
    """The frontier, for a terminal of 80 columns or more; `chosen` is the name of the point that won.

    Times that were not `measured` are said to be costed. Beside size and latency stand how many times smaller and
    faster than the original, beside the drop its interval. Of several metrics each has its columns, and the table is as
    much wider.
    """
    table = _table("")
    table.add_column("candidate", overflow="fold", min_width=9)
    _numbers(table, "size", "", "bits", "ms" if measured else "ms, costed", "", metric, "drop, %", "")
    for other in points[0].others:
        _numbers(table, other, "drop, %", "")
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
        *_drop(row.drop),
        *(cell for _, quality, lost in row.others for cell in (Text(quality[0]), *_drop(lost))),
        Text(row.verdict, style=STYLES.get(row.verdict, "dim")),
    ]


def _drop(pair: Pair) -> tuple[Text, Text]:
    return Text(pair[0].removesuffix(" %")), Text(pair[1], style="dim")


def layer_table(layers: Sequence[LayerRow], *, most: int | None = None) -> Table:
    """Where the loss comes from, for a terminal of 80 columns or more: the layers, first those that cost the most.

    KL is what is foreseen, in nats a prediction. With `most`, the layers after so many are one line.
    """
    every = layer_rows(layers)
    shown = every[:most]
    table = _table("layer")
    table.add_column("form", overflow="fold")
    _numbers(table, "bits", "before", "after", "KL", "of all")
    for layer in shown:
        figures = (layer.bits, layer.before, layer.after, layer.kl, layer.percent)
        table.add_row(Text(layer.name), Text(layer.form), *map(Text, figures))
    if rest := every[len(shown) :]:
        share = percent(round(sum(layer.share for layer in rest), 3))
        table.add_row(f"{len(rest):,} more", *[""] * 5, share, style="dim")
    return table


def step_table(steps: Sequence[StepRow]) -> Table:
    """What each step saves, for a terminal of 80 columns or more.

    Latency, and the cost that was asked to be small, are with the step over without it; beside the cost, its interval.
    """
    table = _table("step")
    _numbers(table, "layers", "saves", "latency", "cost", "", "KL")
    table.add_column("")
    for step in step_rows(steps):
        table.add_row(
            Text(step.name),
            *map(Text, (step.layers, step.saved, step.latency[0], step.cost[0])),
            Text(step.cost[1], style="dim"),
            Text(step.kl),
            Text("kept", style="green") if step.kept else Text("undone", style="red"),
        )
        if step.note:
            table.add_row(Text(step.note, style="dim"))
    return table


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    return table


def _numbers(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
