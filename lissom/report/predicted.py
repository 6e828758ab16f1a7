"""What the search predicted against what was measured, as a picture."""

from collections.abc import Sequence
from typing import Literal

import matplotlib

from lissom.report.content import Point
from lissom.report.picture import RULE, SETTINGS, SHAPES, UNJUDGED, blank, mark, svg
from lissom.report.words import told

Figure = Literal["latency", "KL"]
UNITS = {"latency": "ms", "KL": "nats"}


def predicted(points: Sequence[Point], chosen: str | None = None, *, figure: Figure) -> str:
    """An SVG of each point's measured figure, with its interval, against the predicted one; empty if none was.

    On the diagonal both are the same. KL, which spans orders of magnitude, is on logarithmic axes; a point of which
    either is not positive is not on them.
    """
    pairs = {number: pair for number, point in enumerate(points) if (pair := _pair(point, figure))}
    if not pairs:
        return ""
    with matplotlib.rc_context(SETTINGS):
        unit = UNITS[figure]
        drawing, axes = blank(3.6, 3.6, x=f"predicted {figure}, {unit}", y=f"measured {figure}, {unit}")
        every = [value for pair in pairs.values() for value in pair[:2]]
        ends = (min(every) / 1.5, max(every) * 1.5) if figure == "KL" else (0.0, max(every) * 1.15)
        scale = "log" if figure == "KL" else "linear"
        axes.set(xscale=scale, yscale=scale, xlim=ends, ylim=ends)
        axes.set_box_aspect(1)
        axes.plot(ends, ends, color=RULE, linewidth=1, zorder=0)
        for number, (x, y, low, high) in pairs.items():
            shape, colour = SHAPES.get(points[number].verdict, UNJUDGED)
            axes.plot([x, x], [max(low, ends[0]), min(high, ends[1])], color=colour, linewidth=1.4, alpha=0.55)
            mark(axes, x, y, number, shape, colour, chosen=points[number].name == chosen)
    return svg(drawing, f"Measured {figure} against predicted", {number: told(points[number]) for number in pairs})


def _pair(point: Point, figure: Figure) -> tuple[float, float, float, float] | None:
    """What was predicted and what was measured, with its interval."""
    foreseen = point.predicted_latency_ms if figure == "latency" else point.predicted_kl
    found = point.latency if figure == "latency" else point.kl
    if foreseen is None or found is None or min(foreseen, found.value) <= 0:
        return None
    return foreseen, found.value, found.low, found.high
