from dataclasses import replace
from io import StringIO

from rich.console import Console
from rich.table import Table

from lissom.report import Report, frontier_table, layer_table, step_table


def printed(table: Table) -> list[str]:
    console = Console(file=StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def shown(report: Report) -> list[str]:
    return printed(frontier_table(report.points, report.chosen, metric=report.metric))


def test_one_candidate_after_the_other(report: Report) -> None:
    lines = shown(report)
    assert lines[0].split() == ["candidate", "size", "bits", "ms", "accuracy", "drop,", "%"]
    assert [line[2:].split()[0] for line in lines if "MB" in line] == ["original", "gptq", "rtn", "gptq"]
    assert all(len(line) <= 80 for line in lines)


def test_the_chosen_one_is_marked_and_complete(report: Report) -> None:
    (line,) = [line for line in shown(report) if line.startswith("▶")]
    for cell in ("gptq", "2.00 MB", "4.0×", " 4.00 ", " 2.00 ", "2.0×", "91.18 %", " 0.32 ", "−0.08 to 0.72", "PASS"):
        assert cell in line


def test_every_metric_has_its_columns(several: Report) -> None:
    console = Console(file=StringIO(), width=140)
    console.print(frontier_table(several.points, several.chosen, metric=several.metric))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split() == ["candidate", "size", "bits", "ms", "accuracy", "drop,", "%", "agreement", "drop,", "%"]
    assert lines[1].split("91.50 %")[1].split() == ["–", "100.0", "%", "–", "–"]
    assert lines[2].split("0.72")[1].split() == ["95.44", "%", "4.56", "4.36", "to", "4.76", "PASS"]


def test_the_original_has_no_drop_and_no_verdict(report: Report) -> None:
    assert shown(report)[1].split("91.50 %")[1].split() == ["–", "–"]


def test_names_are_not_read_as_markup(hostile: Report) -> None:
    assert "<script" in "".join(shown(hostile))


def test_layers_are_listed_by_their_share_of_the_loss(report: Report) -> None:
    lines = printed(layer_table(report.layers))
    assert lines[0].split() == ["layer", "form", "bits", "before", "after", "KL", "of", "all"]
    assert lines[1].split() == ["down", "8", "bits", "8.12", "1.00", "MB", "508", "kB", "0.00300", "75", "%"]
    assert [line.split()[0] for line in lines[2:]] == ["up"]


def test_the_layers_after_so_many_are_one_line(report: Report) -> None:
    lines = printed(layer_table(report.layers, most=1))
    assert len(lines) == 3
    assert lines[2].split() == ["1", "more", "25", "%"]


def test_steps_are_listed_with_what_became_of_them(report: Report) -> None:
    lines = printed(step_table(report.steps))
    assert lines[0].split() == ["step", "layers", "saves", "latency", "cost", "KL"]
    assert lines[1].split()[-9:] == ["734", "kB", "0.90×", "0.75×", "0.73", "to", "0.77", "0.00100", "kept"]
    assert lines[2].split()[-1] == "undone"
    assert lines[3].split() == ["not", "faster"]


def test_names_of_layers_and_steps_are_not_read_as_markup(report: Report) -> None:
    layers = [replace(layer, name="[red]a", form="[b]") for layer in report.layers]
    steps = [replace(step, name="[red]a", note="[b]") for step in report.steps]
    assert "[red]a" in printed(layer_table(layers))[1]
    assert "[b]" in printed(layer_table(layers))[1]
    assert "[red]a" in printed(step_table(steps))[1]
    assert "[b]" in printed(step_table(steps))[2]
