from dataclasses import replace

import pytest

from lissom.report import Report
from lissom.report.rows import NOTHING, layer_rows, rows, step_rows


def test_layers_come_by_the_loss_that_is_foreseen_of_them(report: Report) -> None:
    down, up = layer_rows(report.layers)
    assert (down.name, down.place, down.percent, down.kl) == ("down", 1, "75 %", "0.00300")
    assert (up.name, up.place, up.before, up.after, up.bits) == ("up", 0, "1.00 MB", "266 kB", "4.25")
    assert down.share + up.share == pytest.approx(1)


def test_where_no_loss_is_foreseen_no_layer_has_a_share(report: Report) -> None:
    rows = layer_rows([replace(layer, kl=0.0) for layer in report.layers])
    assert [(row.name, row.share, row.percent) for row in rows] == [("up", 0.0, "–"), ("down", 0.0, "–")]


def test_steps_say_what_they_save_and_whether_they_were_kept(report: Report) -> None:
    kept, undone, unmeasured = step_rows(report.steps)
    assert (kept.saved, kept.latency, kept.kept) == ("734 kB", ("0.90×", "0.88 to 0.92"), True)
    assert (undone.kept, undone.note) == (False, "not faster")
    assert kept.cost == ("0.75×", "0.73 to 0.77")
    assert unmeasured.latency == unmeasured.cost == NOTHING


def test_beside_what_was_predicted_stands_how_much_more_was_measured(report: Report) -> None:
    row = rows(report.points, report.chosen)[1]
    assert row.predicted_latency == ("1.90 ms", "+5.3 %")
    assert row.predicted_kl == ("0.000704", "−9.1 %")
    assert row.kl == ("0.000640", "0.000576 to 0.000704")
    assert row.parts == [("prefill", ("1.50 ms", "1.40 to 1.60")), ("decode", ("0.500 ms", "0.400 to 0.600"))]


def test_what_was_not_measured_has_no_figure(report: Report) -> None:
    (row,) = rows([replace(report.points[1], kl=None, predicted_latency_ms=None)], None)
    assert (row.kl, row.predicted_latency) == (NOTHING, NOTHING)
    assert row.predicted_kl == ("0.000704", "")
