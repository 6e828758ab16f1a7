from io import StringIO

from rich.console import Console

from lissom.report import Report, frontier_table


def shown(report: Report) -> list[str]:
    console = Console(file=StringIO(), width=80)
    console.print(frontier_table(report.points, report.chosen, metric=report.metric))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_one_candidate_after_the_other(report: Report) -> None:
    lines = shown(report)
    assert lines[0].split() == ["candidate", "size", "bits", "ms", "accuracy", "drop,", "%"]
    assert [line[2:].split()[0] for line in lines if "MB" in line] == ["original", "gptq", "rtn", "gptq"]
    assert all(len(line) <= 80 for line in lines)


def test_the_chosen_one_is_marked_and_complete(report: Report) -> None:
    (line,) = [line for line in shown(report) if line.startswith("▶")]
    for cell in ("gptq", "2.00 MB", "4.0×", " 4.00 ", " 2.00 ", "2.0×", "91.18 %", " 0.32 ", "−0.08 to 0.72", "PASS"):
        assert cell in line


def test_the_original_has_no_drop_and_no_verdict(report: Report) -> None:
    assert shown(report)[1].split("91.50 %")[1].split() == ["–", "–"]


def test_names_are_not_read_as_markup(hostile: Report) -> None:
    assert "<script" in "".join(shown(hostile))
