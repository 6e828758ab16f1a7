"""What is told while it works: shown on a terminal, JSON for programs, and to a pipe nothing."""

import json
import math
from io import StringIO

import pytest
from rich.console import Console

from lissom.cli import working as module
from lissom.cli.working import Clock, Display, working
from lissom.errors import DataError
from lissom.progress import FrontierPoint, Progress

POINTS = tuple(
    FrontierPoint(name=f"mixed [{n}]", nbytes=n * 1000, drop=0.5 / n, cost=n / 10, verdict="PASS" if n == 1 else "")
    for n in range(1, 9)
)
FORMS = Progress(stage="latency", text="mlp: 4 bits", done=3, total=8)


class Hand:
    """A clock whose hand is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def at(done: int | None, total: int | None = 10, stage: str = "latency") -> Progress:
    return Progress(stage=stage, text="", done=done, total=total)  # type: ignore[arg-type]


def console_of(terminal: bool) -> tuple[Console, StringIO]:
    written = StringIO()
    return Console(file=written, force_terminal=terminal, width=100, _environ={}), written


def test_what_is_left_is_foreseen_from_what_was_done_since_the_stage_was_first_told_of() -> None:
    hand = Hand()
    clock = Clock(hand)
    assert clock.left(at(4)) is None  # it goes on where an earlier run was stopped
    hand.at += 6
    assert clock.left(at(6)) == 12
    assert clock.left(at(None)) is None
    assert clock.left(at(6, None)) is None
    assert clock.left(at(0, 3, "certify")) is None
    hand.at += 5
    assert clock.left(at(1, 3, "certify")) == 10
    assert clock.left(at(10)) == 0
    assert clock.left(at(2)) is None  # the stage begins again
    hand.at += 1
    assert clock.left(at(3)) == 7
    assert clock.seconds() == 12


def test_a_terminal_shows_stage_times_memory_and_the_cheapest_points() -> None:
    hand = Hand()
    display = Display(Clock(hand))
    console, written = console_of(True)
    display.tell(at(1, 8))
    hand.at += 100
    display.tell(FORMS)
    hand.at += 50
    console.print(display)
    assert "latency" in written.getvalue()
    assert "3 of 8" in written.getvalue()
    assert "mlp: 4 bits" in written.getvalue()
    assert "time 0:02:30, left of this stage 0:03:20, peak memory" in written.getvalue()
    assert "frontier" not in written.getvalue()
    display.tell(Progress(stage="choose", text="compare", done=12, frontier=POINTS))
    display.tell(Progress(stage="choose", text="local search", done=13))
    console.print(display)
    last = written.getvalue().split("local search")[1]
    assert "left of this stage unknown" in last
    assert "mixed [1]" in last  # names are no markup
    assert "1.0 kB" in last
    assert "50.00%" in last
    assert "PASS" in last
    assert "mixed [6]" in last
    assert "mixed [7]" not in last


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_live_on_a_terminal_and_quiet_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console, written = console_of(terminal)
    monkeypatch.setattr(module, "notes", console)
    with working() as tell:
        tell(FORMS)
        print("a table")
    assert capsys.readouterr().out == "a table\n"
    assert ("mlp: 4 bits" in written.getvalue()) == terminal
    assert bool(written.getvalue()) == terminal


def test_a_program_is_told_in_lines_of_json_and_of_the_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    lost = (FrontierPoint(name="lost", nbytes=1, drop=math.nan),)

    def work() -> None:
        with working(json_lines=True) as tell:
            tell(FORMS)
            print("said by a library")
            tell(Progress(stage="choose", text="local search", frontier=lost))
            raise DataError("data: too few;\ngive more")

    with pytest.raises(DataError, match="too few"):
        work()
    printed = capsys.readouterr()
    assert printed.err == "said by a library\n"
    one, other, error = (json.loads(line) for line in printed.out.splitlines())
    assert (one["event"], one["stage"], one["text"], one["done"], one["total"]) == (
        "progress",
        "latency",
        "mlp: 4 bits",
        3,
        8,
    )
    assert one["seconds"] >= 0
    assert one["seconds_left"] is None
    assert one["peak_bytes"] > 2**20
    assert "frontier" not in one
    assert other["frontier"] == [{"name": "lost", "nbytes": 1, "drop": None, "cost": None, "verdict": ""}]
    assert error == {"event": "error", "message": "data: too few; give more"}
