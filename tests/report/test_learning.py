"""The page on how a model learned."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lissom.recover.folder import Learned
from lissom.recover.loop import Curve, Look
from lissom.recover.race import Contender
from lissom.report.learning import race_table, write_learning


def curve(*held: float) -> Curve:
    looks = [
        Look(step=10 * n, seen=100 * n, seconds=float(n), learned=loss + 0.25 if n else None, held=loss)
        for n, loss in enumerate(held)
    ]
    return Curve(looks=tuple(looks), best=min(range(len(held)), key=lambda n: held[n]))


def test_one_run_has_one_picture_and_all_that_was_seen(tmp_path: Path) -> None:
    learned = Learned(curve=curve(3.0, 1.5, 2.0))
    page = write_learning(tmp_path / "page.html", learned, title="<b>", command="lissom recover x").read_text("utf-8")
    assert page.count("<svg") == 1
    assert "went from 3.00 to 1.50" in page
    assert "&lt;b&gt;" in page
    assert "<b> ·" not in page
    assert page.count('<tr class="chosen">') == 1
    assert "after 10 of 20 steps" in page
    assert "default-src 'none'" in page
    assert "algorithm</th>" not in page


def test_a_race_has_a_picture_for_each_and_the_best_first(tmp_path: Path) -> None:
    contenders = (
        Contender(optimizer="lion", curves=(curve(9.0, 0.5), curve(9.0, 0.7))),
        Contender(optimizer="sgd", curves=(curve(9.0, 2.0), curve(9.0, 3.0))),
    )
    assert contenders[0].held.value == pytest.approx(0.6)
    assert contenders[0].gap.value == pytest.approx(-0.25)
    learned = Learned(curve=contenders[0].curves[0], contenders=contenders)
    page = write_learning(tmp_path / "page.html", learned, title="race").read_text("utf-8")
    assert page.count("<svg") == 2
    assert page.index('"name">lion') < page.index('"name">sgd')
    console = Console(width=100, record=True, file=StringIO())
    console.print(race_table(contenders))
    shown = console.export_text()
    assert "0.600" in shown
    assert shown.index("lion") < shown.index("sgd")
