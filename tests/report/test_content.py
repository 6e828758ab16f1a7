from dataclasses import replace

from lissom.report import Report


def test_the_winner_is_found_by_name(report: Report) -> None:
    assert report.winner is report.points[1]
    assert replace(report, chosen=None).winner is None


def test_whatever_was_not_chosen_has_a_reason(report: Report) -> None:
    assert report.rejected == [
        ("rtn 4 bits", "412 more examples are needed"),
        ("gptq 3 bits", "certified to break the budget"),
        ("binary", "drops far more than the budget"),
        ("ternary", "its outputs overflow"),
    ]
