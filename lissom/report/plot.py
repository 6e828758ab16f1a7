"""The frontier as a picture: the drop in quality against size, and against latency.

The pictures are SVG, drawn once for light and dark: every colour is a CSS variable with a value for each. Verdicts
differ in shape as well as in colour; the colours are those of Okabe and Ito (2008), which the colour-blind tell apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from lissom.report.content import Point
from lissom.report.labels import Label, place
from lissom.report.words import percent

# What matplotlib draws with -> the CSS variable that the browser shows.
INK, RULE, PASS, FAIL, MORE = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", RULE: "--rule", PASS: "--pass", FAIL: "--fail", MORE: "--more"}
STYLE = """<style>
.frontier { --ink: #33373d; --rule: #c9ccd1; --pass: #0072b2; --fail: #d55e00; --more: #8a8f98 }
@media (prefers-color-scheme: dark) {
.frontier { --ink: #d5d8dd; --rule: #4a4f57; --pass: #56b4e9; --fail: #f08a3c; --more: #8a8f98 } }
@media print { .frontier { --ink: #000; --rule: #bbb; --pass: #0072b2; --fail: #d55e00; --more: #777 } }
</style>"""
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "lissom", "font.family": "sans-serif", "font.size": 9}
SHAPES = {"PASS": ("o", PASS), "FAIL": ("X", FAIL)}
UNJUDGED = ("D", MORE)
ORIGINAL = ("s", INK)

Against = Literal["size", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Where the drops lie on the page: those above `top` are drawn at it, as arrows."""

    bottom: float
    top: float


def plot(points: Sequence[Point], chosen: str | None = None, *, against: Against, max_drop: float) -> str:
    """An SVG of every point's drop, with its interval, against its size or its latency.

    The first point is the original; `chosen` is the name of the point that won; `max_drop` is the budget, a fraction.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(5.6, 3.9), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        scale = _scale(points, max_drop)
        _frame(axes, against, scale, max_drop)
        axes.set_xlim(0, 1.25 * max(_x(point, against) for point in points))
        axes.plot(_x(points[0], against), 0, ORIGINAL[0], color=ORIGINAL[1], markersize=6)
        for point in points[1:]:
            _draw(axes, point, _x(point, against), scale, point.name == chosen)
        figure.draw_without_rendering()
        lines = _lines(axes, points, against, scale, max_drop)
        place(axes, _labels(points, against, scale, chosen), lines, color=INK)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _styled(text.getvalue(), against)


def _x(point: Point, against: Against) -> float:
    return point.nbytes / 1e6 if against == "size" else point.latency.value


def _scale(points: Sequence[Point], max_drop: float) -> _Scale:
    """Room for four budgets and for every interval of a point that passed; what lost more would flatten the rest."""
    budget = max(max_drop, 1e-3)
    passed = [point.drop for point in points if point.verdict == "PASS"]
    top = max([4 * budget, *(1.2 * drop.high for drop in passed)])
    lows = [point.drop.low for point in points[1:] if point.drop.value <= top]
    return _Scale(bottom=max(1.2 * min([-budget / 2, *lows]), -top), top=top)


def _frame(axes: Axes, against: Against, scale: _Scale, max_drop: float) -> None:
    axes.set_xlabel("size, MB" if against == "size" else "latency, ms", color=INK)
    axes.set_ylabel("drop in quality", color=INK)
    axes.set_ylim(scale.bottom, scale.top * 1.08)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    axes.axhline(max_drop, color=FAIL, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        f"budget {percent(max_drop)}",
        (1, max_drop),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=FAIL,
        fontsize=8,
    )


def _draw(axes: Axes, point: Point, x: float, scale: _Scale, chosen: bool) -> None:
    shape, colour = SHAPES.get(point.verdict, UNJUDGED)
    if point.drop.value > scale.top:
        axes.plot(x, scale.top, "^", color=colour, markersize=7, clip_on=False)
        return
    low, high = max(point.drop.low, scale.bottom), min(point.drop.high, scale.top * 1.08)
    axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    axes.plot(x, point.drop.value, shape, color=colour, markersize=7, markeredgewidth=0)
    if chosen:
        axes.plot(x, point.drop.value, "o", color=colour, markersize=14, fillstyle="none", markeredgewidth=1.4)


def _labels(points: Sequence[Point], against: Against, scale: _Scale, chosen: str | None) -> list[Label]:
    """A name for every point, with its drop where it is beyond the picture; the chosen one comes first."""
    return [
        Label(
            text=f"{point.name} ({percent(point.drop.value)})" if point.drop.value > scale.top else point.name,
            x=_x(point, against),
            y=min(point.drop.value, scale.top),
            bold=point.name == chosen,
        )
        for point in sorted(points, key=lambda point: point.name != chosen)
    ]


def _lines(axes: Axes, points: Sequence[Point], against: Against, scale: _Scale, max_drop: float) -> list[Bbox]:
    """Where the intervals, the zero line and the budget line are, in pixels."""
    boxes = []
    for point in points[1:]:
        ends = [
            (_x(point, against), min(max(end, scale.bottom), scale.top)) for end in (point.drop.low, point.drop.high)
        ]
        (x, low), (_, high) = axes.transData.transform(ends)
        boxes.append(Bbox.from_extents(x - 2, low, x + 2, high))
    for height in (0.0, max_drop):
        y = axes.transData.transform((0, height))[1]
        boxes.append(Bbox.from_extents(axes.bbox.x0, y - 1, axes.bbox.x1, y + 1))
    return boxes


def _styled(svg: str, against: Against) -> str:
    """The bare <svg> element, with variables for colours and the page's own fonts."""
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = svg[svg.index("<svg") :].replace("sans-serif", "inherit").replace("'inherit'", "inherit")
    head, _, rest = svg.partition(">")
    return f'{head} class="frontier" role="img" aria-label="Drop in quality against {against}">{STYLE}{rest}'
