"""Names beside points, so that they cover neither one another nor what is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

# Where a label may stand, the best place first: points to the right and up, and the side that touches.
SIDES = (
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (9, 10, "left", "bottom"),
    (-9, 10, "right", "bottom"),
    (9, -10, "left", "top"),
    (-9, -10, "right", "top"),
)
COVERED = 0.03  # the part of a name that may be covered, so that it can still be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A name, and the spot that it names in the axes' own coordinates."""

    text: str
    x: float
    y: float
    bold: bool = False


def place(axes: Axes, labels: Sequence[Label], taken: list[Bbox], *, color: str) -> None:
    """Draw each label at the side where it overlaps least; those that come first choose first.

    One that would be covered by a good part everywhere is left out, unless it is bold. `taken` are the boxes, in
    pixels, that labels should not cover. The layout must be final: draw once before.
    """
    taken = taken + [_spot(axes, label) for label in labels]
    for label in labels:
        drawn = axes.annotate(
            label.text,
            (label.x, label.y),
            textcoords="offset points",
            xytext=(0, 0),
            color=color,
            fontsize=8,
            fontweight="bold" if label.bold else "normal",
            parse_math=False,
        )
        costs = {side: _cost(_at(drawn, *side), taken, axes.get_figure(root=True)) for side in SIDES}
        box = _at(drawn, *min(costs, key=costs.__getitem__))
        if min(costs.values()) > COVERED * box.width * box.height and not label.bold:
            drawn.remove()
        else:
            taken.append(box)


def _spot(axes: Axes, label: Label) -> Bbox:
    """What is drawn at the spot; around that of a bold name there is a circle."""
    x, y = axes.transData.transform((label.x, label.y))
    half = 11 if label.bold else 5
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _at(label: Annotation, right: float, up: float, horizontal: Any, vertical: Any) -> Bbox:
    """Move the label; the box that it then covers."""
    label.set_position((right, up))
    label.set(horizontalalignment=horizontal, verticalalignment=vertical)
    return Bbox(label.get_window_extent().get_points())


def _cost(box: Bbox, taken: Sequence[Bbox], figure: Any) -> float:
    """The area that is covered; what lies off the page counts ten times."""
    return sum(_shared(box, other) for other in taken) + 10 * (
        float(box.width * box.height) - _shared(box, figure.bbox)
    )


def _shared(one: BboxBase, other: BboxBase) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)
