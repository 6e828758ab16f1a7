from io import StringIO

from rich.console import Console

from lissom.report import Report, frontier_table


def shown(report: Report) -> list[str]:
    console = Console(file=StringIO(), width=140)
    console.print(frontier_table(report.points, report.chosen, metric=report.metric))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_one_line_per_candidate(report: Report) -> None:
    lines = shown(report)
    assert len(lines) == 1 + len(report.points)
    assert lines[0].split()[:3] == ["candidate", "size", "bits/weight"]


def test_the_chosen_one_is_marked_and_complete(report: Report) -> None:
    (line,) = [line for line in shown(report) if line.startswith("▶")]
    for cell in (
        "gptq 4 bits",
        "2.00 MB",
        "4.0×",
        "4.00",
        "2.00 ms",
        "2.0×",
        "91.18 %",
        "0.32 % (−0.08 to 0.72)",
        "PASS",
    ):
        assert cell in line


def test_the_original_has_no_drop(report: Report) -> None:
    assert "%" not in shown(report)[1].split("91.50 %")[1]


def test_names_are_not_read_as_markup(hostile: Report) -> None:
    assert any("<script>alert(1)</script> & $x$" in line for line in shown(hostile))
