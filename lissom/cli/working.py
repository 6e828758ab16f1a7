"""What the command line tells while it works: a live display on a terminal, JSON for programs, elsewhere nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lissom.cli.show import notes, one_line
from lissom.progress import FrontierPoint, Progress, Tell, quiet

if TYPE_CHECKING:
    from lissom.search.result import Result

REFRESHES = 2  # of the display in a second; it shares the machine with what is being timed
MOST = 6  # points of the frontier that are shown
BAR = 24  # columns


@contextmanager
def working(json_lines: bool = False) -> Iterator[Tell]:
    """Whom to tell what is being done.

    With `json_lines` each event becomes a line of JSON on the standard output, also the error that ends it all, and
    whatever else is printed goes to the error stream. Else the events are shown on a terminal as long as it goes on.
    """
    if json_lines:
        with as_json() as tell, redirect_stdout(sys.stderr):
            yield tell
    elif notes.is_terminal:
        display = Display(Clock())
        above = sys.stdout.isatty()  # what is printed meanwhile; but what goes to a pipe or a file goes there
        with Live(display, console=notes, refresh_per_second=REFRESHES, transient=True, redirect_stdout=above):
            yield display.tell
    else:
        yield quiet


@contextmanager
def as_json() -> Iterator[Tell]:
    """Events as lines of JSON; an error is the last of them, and goes on."""
    from lissom.files import plain
    from lissom.hardware import peak_memory

    clock, write = Clock(), partial(print, file=sys.stdout, flush=True)  # which goes elsewhere from now on

    def tell(event: Progress) -> None:
        left = clock.left(event)
        figures = {"stage": event.stage, "text": event.text, "done": event.done, "total": event.total}
        times = {"seconds": round(clock.seconds(), 3), "seconds_left": None if left is None else round(left, 3)}
        shown = {} if event.frontier is None else {"frontier": [plain(point) for point in event.frontier]}
        emit("progress", {**figures, **times, "peak_bytes": peak_memory(), **shown}, write)

    try:
        yield tell
    except Exception as error:
        emit("error", {"message": one_line(error)}, write)
        raise


def emit(event: str, figures: dict[str, Any], write: Callable[[str], None] = print) -> None:
    """Print an event as one line of JSON."""
    from json import dumps

    write(dumps({"event": event, **figures}, allow_nan=False))


def outcome(result: "Result") -> dict[str, Any]:
    """What a search found, as JSON holds it."""
    from lissom.files import plain

    return {
        "target": result.target,
        "latencies": result.how,
        "verdict": result.verdict,
        "certificate": plain(result.certificate),
        "chosen": plain(result.best.point) if result.best else None,
        "smallest": result.smallest.point.name if result.smallest else None,
        "fastest": result.fastest.point.name if result.fastest else None,
        "points": [plain(point) for point in result.points],
        "failed": dict(result.failed),
        "refused": dict(result.refused),
    }


class Clock:
    """How long it has taken, and how long a stage will still take. Times are in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.begun = now, now()
        self.first: dict[str, tuple[float, int]] = {}  # of each stage when it was first told how much was done

    def seconds(self) -> float:
        """Since the beginning."""
        return self.now() - self.begun

    def left(self, event: Progress) -> float | None:
        """What is left of its stage, if each piece takes as long as those since the stage was first told of.

        None where it is not known how much there is to do, or nothing was done since.
        """
        if event.done is None or event.total is None:
            return None
        since, before = self.first.get(event.stage, (0.0, event.done + 1))
        if event.done < before:  # the stage has begun, or has begun again
            since, before = self.first[event.stage] = self.now(), event.done
        if event.done == event.total:
            return 0.0
        if event.done == before:
            return None
        return (event.total - event.done) * (self.now() - since) / (event.done - before)


class Display:
    """What a terminal shows of the last event; drawn anew as often as it is asked for."""

    def __init__(self, clock: Clock) -> None:
        from lissom.hardware import peak_memory  # now: where it is drawn is a thread beside one that imports

        self.clock, self.peak = clock, peak_memory
        self.event = Progress(stage="read", text="")
        self.ends: float | None = None  # when the stage does, by the clock
        self.frontier: tuple[FrontierPoint, ...] = ()

    def tell(self, event: Progress) -> None:
        """Show this from now on."""
        left = self.clock.left(event)
        self.event, self.ends = event, None if left is None else self.clock.seconds() + left
        self.frontier = self.frontier if event.frontier is None else event.frontier

    def __rich__(self) -> Group:
        """The stage with its bar, the times and the memory, and the frontier where there is one."""
        spent = self.clock.seconds()
        left = "unknown" if self.ends is None else clocked(max(0.0, self.ends - spent))
        figures = f"time {clocked(spent)}, left of this stage {left}, peak memory {decimal(self.peak())}"
        return Group(self.line(), Text(figures, style="dim"), *([self.table()] if self.frontier else []))

    def line(self) -> Table:
        """The stage, how far it has come, and what is being done in it."""
        event, line = self.event, Table.grid(padding=(0, 1), expand=True)
        bar = ProgressBar(total=event.total, completed=event.done or 0, width=BAR)
        count = "" if event.done is None else f"{event.done:,}"
        count += "" if event.total is None else f" of {event.total:,}"
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        line.add_row(Text(event.stage, style="bold"), bar, Text(count), Text(event.text))
        return line

    def table(self) -> Table:
        """The cheapest points of the frontier."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        table.add_column("frontier", overflow="ellipsis", no_wrap=True)
        for heading in ("size", "drop", "cost", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        for point in self.frontier[:MOST]:
            figures = (decimal(point.nbytes), f"{point.drop:.2%}", "" if point.cost is None else f"{point.cost:.3f}")
            table.add_row(*map(Text, (point.name, *figures, point.verdict)))
        return table


def clocked(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
