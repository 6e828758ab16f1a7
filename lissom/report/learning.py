"""How a model learned, shown: its loss while learning beside that on what was held out, of one algorithm or several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.ticker import EngFormatter
from rich.table import Table

from lissom.files import replacing
from lissom.recover.folder import Learned
from lissom.recover.loop import Curve
from lissom.recover.race import Contender
from lissom.report.page import rendered
from lissom.report.picture import INK, MORE, PASS, RULE, SETTINGS, blank, svg
from lissom.report.words import number

SIZE, SMALL = (6.4, 3.6), (3.4, 2.4)  # of a picture, in inches
TALL = 8  # times as large as the smallest is the largest loss where the axis is logarithmic


def race_table(contenders: Sequence[Contender]) -> Table:
    """The contenders for a terminal, the best first."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("algorithm")
    for heading in ("loss", "", "gap", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in race_rows(contenders):
        table.add_row(*row)
    return table


def race_rows(contenders: Sequence[Contender]) -> list[tuple[str, str, str, str, str]]:
    """Name, loss on what was held out, its interval, how much larger that is than while learning, and the time."""
    return [
        (one.optimizer, number(one.held.value), spread(one), number(one.gap.value), number(one.seconds.value))
        for one in contenders
    ]


def spread(one: Contender) -> str:
    """The interval of its loss, where there was more than one seed."""
    return f"{number(one.held.low)} to {number(one.held.high)}" if len(one.curves) > 1 else ""


def write_learning(path: Path, learned: Learned, *, title: str, command: str = "") -> Path:
    """Write the page, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    curve = learned.curve
    pictures = [drawn([curve], (), "", SIZE)]
    if learned.contenders:
        every = learned.contenders
        pictures = [drawn(one.curves, others(every, one), one.optimizer, SMALL) for one in every]
    html = rendered(
        "learning.html",
        title=title,
        command=command,
        learned=learned,
        before=number(curve.before.held),
        after=number(curve.after.held),
        best=curve.after,
        last=curve.looks[-1],
        pictures=[Markup(picture) for picture in pictures],
        race=race_rows(learned.contenders),
        looks=[
            (look.step, look.seen, "" if look.learned is None else number(look.learned), number(look.held))
            for look in curve.looks
        ],
    )
    with replacing(path) as new:
        new.write_text(html, encoding="utf-8")
    return path


def others(contenders: Sequence[Contender], one: Contender) -> list[Curve]:
    """The first curve of each of the others."""
    return [other.curves[0] for other in contenders if other is not one]


def drawn(curves: Sequence[Curve], beside: Sequence[Curve], name: str, size: tuple[float, float]) -> str:
    """An SVG of losses against what was learned from: solid what was held out, dashed while learning, grey others."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = blank(*size, x="learned from", y="loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        every = [value for curve in [*curves, *beside] for value in losses(curve)]
        if min(every) > 0 and max(every) > TALL * min(every):
            axes.set_yscale("log")
        for other in beside:
            axes.plot(*held(other), color=RULE, linewidth=1)
        for curve in curves:
            seen = [(look.seen, look.learned) for look in curve.looks if look.learned is not None]
            axes.plot(*zip(*seen, strict=True), color=MORE, linewidth=1, linestyle="--")
            axes.plot(*held(curve), color=PASS, linewidth=1.6)
            axes.plot(curve.after.seen, curve.after.held, "o", color=PASS, markersize=6, markeredgewidth=0)
        if name:
            axes.set_title(name, color=INK, loc="left")
    return svg(figure, f"Loss{' of ' if name else ''}{name}", {})


def losses(curve: Curve) -> list[float]:
    """All that are drawn of a curve."""
    return [value for look in curve.looks for value in (look.learned, look.held) if value is not None]


def held(curve: Curve) -> Any:
    """What was learned from at each look, and the loss on what was held out."""
    return [look.seen for look in curve.looks], [look.held for look in curve.looks]
