"""Pictures: what matplotlib draws, as SVG for light and dark paper, whose points can be pointed at and chosen.

Each picture is drawn once for light and dark: every colour is a CSS variable with a value for each. Verdicts differ in
shape as well as in colour; the colours are those of Okabe and Ito (2008), which the colour-blind tell apart. A point is
a link to `#point-3`, by its number: the page says there what it is.
"""

import re
from collections.abc import Mapping
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# What matplotlib draws with -> the CSS variable that the browser shows.
INK, RULE, PASS, FAIL, MORE, RING = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", RULE: "--rule", PASS: "--pass", FAIL: "--fail", MORE: "--more", RING: "--ring"}
STYLE = """<style>
.picture { --ink: #33373d; --rule: #c9ccd1; --pass: #0072b2; --fail: #d55e00; --more: #8a8f98; --ring: transparent }
@media (prefers-color-scheme: dark) {
.picture { --ink: #d5d8dd; --rule: #4a4f57; --pass: #56b4e9; --fail: #f08a3c; --more: #8a8f98 } }
@media print { .picture { --ink: #000; --rule: #bbb; --pass: #0072b2; --fail: #d55e00; --more: #777 } }
.picture text { pointer-events: none }
.picture a { pointer-events: all; cursor: pointer; outline: none }
.picture a:is(:hover, :focus-visible, .near) { --ring: #8a8f98 }
.picture a[aria-current] { --ring: var(--ink) }
</style>"""
SETTINGS: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
SHAPES = {"PASS": ("o", PASS), "FAIL": ("X", FAIL)}
UNJUDGED = ("D", MORE)


def blank(width: float, height: float, *, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure of so many inches, with the names of its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    return figure, axes


def mark(axes: Axes, x: float, y: float, number: int, shape: str, colour: str, *, chosen: bool = False) -> None:
    """A point; around it a circle that shows when it is pointed at, and another if it was chosen."""
    axes.plot(x, y, shape, color=colour, markersize=7, markeredgewidth=0, clip_on=False)
    if chosen:
        axes.plot(x, y, "o", color=colour, markersize=14, fillstyle="none", markeredgewidth=1.4, clip_on=False)
    (spot,) = axes.plot(x, y, "o", color=RING, markersize=18, fillstyle="none", markeredgewidth=1.6, clip_on=False)
    spot.set_url(f"#point-{number}")


def svg(figure: Figure, name: str, titles: Mapping[int, str]) -> str:
    """The bare <svg> element, with variables for colours, the page's own fonts, and what each point is told to be."""
    text = StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = text.getvalue()
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn[drawn.index("<svg") :])
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var({variable})")
    drawn = re.sub("font-family: [^;]*;", "font-family: inherit;", drawn)
    drawn = re.sub(r'<a xlink:href="#point-(\d+)"[^>]*>', lambda link: _link(int(link[1]), titles), drawn)
    head, _, rest = drawn.partition(">")
    return f'{head} class="picture" role="group" aria-label="{escape(name)}">{STYLE}{rest}'


def _link(number: int, titles: Mapping[int, str]) -> str:
    return f'<a href="#point-{number}"><title>{escape(titles[number])}</title>'
