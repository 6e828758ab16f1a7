from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lissom.report.labels import Label, place


def test_names_of_neighbours_do_not_overlap() -> None:
    figure = Figure()
    axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
    place(axes, [Label(text=f"number {i}", x=5, y=5 + 0.1 * i) for i in range(4)], [], color="#000000")
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(Bbox.intersection(one, other) for one, other in combinations(boxes, 2))


def test_a_name_at_the_edge_stays_on_the_page() -> None:
    figure = Figure()
    axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
    place(axes, [Label(text="a long name at the right edge of the page", x=10, y=5)], [], color="#000000")
    assert axes.texts[0].get_window_extent().x1 <= figure.bbox.x1


def test_a_name_that_finds_no_room_is_left_out_unless_it_is_bold() -> None:
    figure = Figure()
    axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
    crowd = [Label(text=f"number {i}", x=5, y=5 + 0.01 * i, bold=i == 29) for i in range(30)]
    place(axes, crowd, [], color="#000000")
    shown = [text.get_text() for text in axes.texts]
    assert "number 0" in shown
    assert "number 29" in shown
    assert len(shown) < 12
