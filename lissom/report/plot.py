"""The frontier as a picture: the drop in quality against size, and against latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from lissom.report.content import Point
from lissom.report.labels import Label, place
from lissom.report.picture import FAIL, INK, MORE, RULE, SETTINGS, SHAPES, UNJUDGED, blank, mark, svg
from lissom.report.words import percent, told

Against = Literal["size", "latency"]
AXES = {"size": "size, MB", "latency": "latency, ms"}


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
        figure, axes = blank(5.6, 3.9, x=AXES[against], y="drop in quality")
        scale = _scale(points, max_drop)
        _frame(axes, scale, max_drop)
        axes.set_xlim(0, 1.2 * max(_x(point, against) for point in points))
        best = frontier(points, against, top=scale.top)
        axes.step(*best, where="post", color=MORE, linewidth=1.2, alpha=0.6, zorder=0)
        mark(axes, _x(points[0], against), 0, 0, "s", INK)
        for number, point in enumerate(points[1:], 1):
            _draw(axes, point, _x(point, against), scale, number, point.name == chosen)
        figure.draw_without_rendering()
        lines = [*_lines(axes, points, against, scale, max_drop), *_stairs(axes, *best)]
        place(axes, _labels(points, against, scale, chosen), lines, color=INK)
    titles = {number: told(point) for number, point in enumerate(points)}
    return svg(figure, f"Drop in quality against {against}", titles)


def _x(point: Point, against: Against) -> float:
    return point.nbytes / 1e6 if against == "size" else point.latency.value


def _scale(points: Sequence[Point], max_drop: float) -> _Scale:
    """Room for every interval of a point that passed, for others up to four budgets; more would flatten the rest."""
    budget = max(max_drop, 1e-3)
    passed = [point.drop for point in points if point.verdict == "PASS"]
    highest = max([1.4 * budget, *(1.1 * point.drop.high for point in points[1:])])
    top = max([min(4 * budget, highest), *(1.2 * drop.high for drop in passed)])
    lows = [point.drop.low for point in points[1:] if point.drop.value <= top]
    return _Scale(bottom=max(1.2 * min([-budget / 2, *lows]), -top), top=top)


def _frame(axes: Axes, scale: _Scale, max_drop: float) -> None:
    axes.set_ylim(scale.bottom, scale.top * 1.08)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
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


def frontier(points: Sequence[Point], against: Against, *, top: float) -> tuple[list[float], list[float]]:
    """Where the points below `top` lie than which no other is better in both, from the cheapest on."""
    xs: list[float] = []
    drops: list[float] = []
    for x, drop in sorted((_x(point, against), point.drop.value) for point in points[1:]):
        if drop < min([top, *drops]):
            xs.append(x)
            drops.append(drop)
    return xs, drops


def _draw(axes: Axes, point: Point, x: float, scale: _Scale, number: int, chosen: bool) -> None:
    shape, colour = SHAPES.get(point.verdict, UNJUDGED)
    if point.drop.value > scale.top:
        mark(axes, x, scale.top, number, "^", colour)
        return
    low, high = max(point.drop.low, scale.bottom), min(point.drop.high, scale.top * 1.08)
    axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    mark(axes, x, point.drop.value, number, shape, colour, chosen=chosen)


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


def _stairs(axes: Axes, xs: Sequence[float], drops: Sequence[float]) -> list[Bbox]:
    """Where the steps of the frontier are, in pixels."""
    ends = [((x, drop), (end, drop)) for x, end, drop in zip(xs, xs[1:], drops, strict=False)]
    return [Bbox(axes.transData.transform(end)).padded(1) for end in ends]


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
