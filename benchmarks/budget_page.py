"""The page on budgets: what `budget.py` found, model by model, what it says together, and what was said of it by hand.

The figures of a run are kept beside the page as JSON, a line for each row, so that models may be measured one by one.
What stands between the title of a model's section and its command was written by hand, and stays.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from table import markdown, span

from lissom.estimate import Estimate

Row = dict[str, Any]
Run = dict[str, Any]  # of one model: its command, date, machine and rows

OURS = {"bytes": "lissom, smallest", "time": "lissom, fastest"}
GAIN = 0.85  # of the bytes or of the time, or less
HEAD = """# Within a budget: the search, uniform recipes, and peers

For each model and budget `lissom.optimize` looks for the smallest model and for the fastest that stay inside of the
budget with 95 % confidence. Beside them stand recipes that do the same to every layer, and peers. All choose on the
same examples, are certified on the same others, written to disk, read again, and timed in turns.

- **Drops** are perplexity in percent, accuracy in points, Spearman's correlation in points. An interval is what the
  certificate ruled out at any time, and so may not hold the mean of all. What needs more examples than there are is not
  certified.
- **Bytes** are those of the tensor files.
- **Times** are medians of a batch of 16, or of a language model's answer of 16 tokens to a prompt of 64, with their
  95 % intervals, all of one budget by turns; ratios are of the same turns.
- **Seconds** are those of the search. The searches of a model share what they make; the first takes longest.
- **Peers** run in their own runtime: NNCF's accuracy control in OpenVINO; AutoRound's AutoScheme, which is asked for
  mean bits and not for a drop, in transformers: of 2.5 to 8 bits the smallest that is certified counts.
- What has learned has read the calibration data, which the original never did, so that a drop may be below zero.
"""


def write(file: Path, found: Mapping[str, Run]) -> None:
    """The page with these runs in place of earlier ones of the same models; their figures beside it."""
    figures = file.with_suffix(".json")
    kept = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    runs = {**kept, **found}
    replace(figures, listed(runs))
    replace(file, page(runs, text))


def replace(file: Path, text: str) -> None:
    """A file's text anew, in one step."""
    made = file.with_suffix(".new")
    made.write_text(text, encoding="utf-8")
    made.rename(file)


def listed(runs: Mapping[str, Run]) -> str:
    """Runs as JSON, a line for each row."""
    said = []
    for name, run in runs.items():
        about = json.dumps({key: value for key, value in run.items() if key != "rows"})
        rows = ",\n".join(json.dumps(row) for row in run["rows"])
        said.append(f'{json.dumps(name)}: {about[:-1]}, "rows": [\n{rows}\n]}}')
    return "{\n" + ",\n".join(said) + "\n}\n"


def page(runs: Mapping[str, Run], before: str = "") -> str:
    """The whole page; what was said by hand is taken from the page before."""
    said = [HEAD, *titled("All together", before), *together(runs), ""]
    for name, run in runs.items():
        said += [*titled(name, before), *section(run), ""]
    return "\n".join(said)


def titled(title: str, before: str) -> list[str]:
    """A title, and what was said by hand below it: all up to the first table, list or command."""
    _, _, rest = before.partition(f"\n## {title}\n")
    said = takewhile(lambda line: not line.startswith(("|", "- ", "```", "#")), rest.strip().splitlines())
    text = "\n".join(said).strip()
    return [f"## {title}", "", *([text, ""] if text else [])]


def section(run: Run) -> list[str]:
    """One model: its command, uniform recipes, the best within each budget, the machine."""
    facts = " · ".join(f"{name} {value}" for name, value in run["machine"].items())
    command, rows = ["```text", run["command"], "```"], run["rows"]
    return [*command, "", *uniform(rows), "", *within(rows), "", f"Measured {run['date']}: {facts}."]


def together(runs: Mapping[str, Run]) -> list[str]:
    """A line for each cell: the search beside the best uniform recipe, and beside the peer."""
    head = (
        "model, budget",
        "bytes, of the smallest uniform's",
        "time, of the fastest uniform's",
        "peer",
        "its bytes, of the smallest's",
        "its time, of the fastest's",
    )
    body = []
    for name, run in runs.items():
        for cell in cells(run["rows"]):
            theirs = cell.peer if cell.peer is not None and passed(cell.peer) else None
            body.append(
                (
                    f"{name}, {cell.budget:.1%}",
                    figure(cell.bytes),
                    spread(cell.time, ".2f"),
                    "" if cell.peer is None else f"{cell.peer['name'].split(',')[0]}",
                    "" if theirs is None else figure(over(theirs, cell.ours("bytes"), size)),
                    "" if theirs is None else figure(over(theirs, cell.ours("time"), clock)),
                )
            )
    return [*summary(runs.values()), "", *markdown(head, body)]


class Cell:
    """A model within a budget: all that were tried."""

    def __init__(self, budget: float, rows: Sequence[Row]) -> None:
        self.budget, self.rows = budget, rows
        self.uniform = [row for row in rows if row.get("uniform") and passed(row)]
        named = [row for row in rows if not row.get("uniform") and row["name"] not in OURS.values()]
        self.peer = named[0] if named else None

    def ours(self, what: str) -> Row | None:
        """What the search took for the smallest (`bytes`) or the fastest (`time`), where it is certified."""
        return next((row for row in self.rows if row["name"] == OURS[what] and passed(row)), None)

    def least(self, of: Callable[[Row], float]) -> Row | None:
        """The uniform recipe that is certified and takes least."""
        return min(self.uniform, key=of, default=None)

    @property
    def bytes(self) -> float | None:
        """The bytes of the search's smallest over those of the smallest uniform recipe."""
        return over(self.ours("bytes"), self.least(size), size)

    @property
    def time(self) -> Mapping[str, Any] | None:
        """The time of the search's fastest over that of the fastest uniform recipe, with its interval."""
        fastest = self.ours("time")
        return None if fastest is None else fastest.get("time")


def cells(rows: Sequence[Row]) -> Iterator[Cell]:
    """The cells of one model, from the smallest budget on."""
    for budget in sorted({row["budget"] for row in rows}):
        yield Cell(budget, [row for row in rows if row["budget"] == budget])


def passed(row: Row) -> bool:
    """Whether a contender is within the budget, for certain."""
    return bool(row["verdict"] == "PASS")


def size(row: Row) -> float:
    """Bytes."""
    return float(row["bytes"])


def clock(row: Row) -> float:
    """Milliseconds."""
    return float(row["ms"]["value"])


def over(one: Row | None, other: Row | None, of: Callable[[Row], float]) -> float | None:
    """What one takes over what another takes."""
    return None if one is None or other is None else of(one) / of(other)


def figure(ratio: float | None) -> str:
    """A ratio in a table."""
    return "" if ratio is None else f"{ratio:.2f}"


def uniform(rows: Sequence[Row]) -> list[str]:
    """The recipes that do the same to every layer: what each costs, and within which budgets it is certified."""
    found = list(cells(rows))
    names = dict.fromkeys(row["name"] for row in rows if row.get("uniform"))
    exact = any("exact" in row for row in rows)
    body = []
    for name in names:
        own = {cell.budget: next(row for row in cell.rows if row["name"] == name) for cell in found}
        last = own[found[-1].budget]
        times = [f"PASS, {spread(row['ms'], '.2f')} ms" if passed(row) else row["verdict"] for row in own.values()]
        body.append((name, drop(last), *([shown(last)] if exact else []), f"{last['bytes']:,}", *times))
    budgets = (f"within {cell.budget:.1%}" for cell in found)
    images = ["on exact images"] if exact else []
    return markdown(("the same everywhere", "drop %, examples", *images, "bytes", *budgets), body)


def within(rows: Sequence[Row]) -> list[str]:
    """What is best within each budget: uniform recipes, the peer, and what the search chose."""
    exact = any("exact" in row for row in rows)
    images = ["on exact images"] if exact else []
    ratios = ("bytes", "of the smallest uniform's", "ms", "of the fastest uniform's", "seconds")
    head = ("budget: model", "what it is", "drop %, examples", *images, *ratios)
    body = []
    for cell in cells(rows):
        smallest, fastest = cell.least(size), cell.least(clock)
        named = {"uniform, smallest": smallest, "uniform, fastest": fastest}
        if smallest is fastest:
            named = {"uniform": smallest}
        for row in cell.rows:
            if not row.get("uniform"):
                named[row["name"]] = row
        for name, row in named.items():
            if row is not None:
                what = row["name"] if row.get("uniform") else made(row)
                own = drop(row) if passed(row) else f"{row['verdict']}: {drop(row)}"
                share = figure(over(row, smallest, size) if passed(row) else None)
                held = f"{row['bytes']:,}" if "bytes" in row else ""
                times = spread(row.get("ms"), ".2f"), spread(row.get("time"), ".2f")
                told = (own, *([shown(row)] if exact else []), held, share, *times, f"{row['seconds']:.0f}")
                body.append((f"{cell.budget:.1%}: {name}", what, *told))
    return markdown(head, body)


def made(row: Row) -> str:
    """What a search took, in words."""
    return ": ".join(word for word in (row.get("recipe"), row.get("summary")) if word)


def drop(row: Row) -> str:
    """The drop of a certificate, and the examples that it took."""
    return f"{spread(row['drop'], '+.2f', 100)}, {row['n']}" if "drop" in row else ""


def shown(row: Row) -> str:
    """The drop on the exact images."""
    return spread(row.get("exact"), "+.2f", 100)


def spread(found: Mapping[str, Any] | None, spec: str, scale: float = 1) -> str:
    """An estimate in a row, with its interval."""
    return span(None if found is None else Estimate(**found), spec, scale)


def summary(runs: Iterable[Run]) -> list[str]:
    """In how many cells the search found less than the best uniform recipe takes, and how well it foresaw its time."""
    pairs, slower, off = list[tuple[float, float]](), 0, list[float]()
    alone = {"the search": 0, "uniform recipes": 0}
    for cell in (cell for run in runs for cell in cells(run["rows"])):
        ours = [row for row in (cell.ours(what) for what in OURS) if row is not None]
        off += [row["foreseen_ms"] / row["found_ms"] - 1 for row in ours if row.get("foreseen_ms")]
        if cell.uniform and len(ours) == len(OURS):
            assert cell.bytes is not None
            assert cell.time is not None
            pairs.append((cell.bytes, cell.time["value"]))
            slower += cell.time["low"] > 1  # surely: the whole interval is
        elif cell.uniform or ours:
            alone["uniform recipes" if cell.uniform else "the search"] += 1
    gains = sum(min(pair) <= GAIN for pair in pairs)
    ratios = dict(zip(OURS, zip(*pairs, strict=True), strict=True)) if pairs else {}
    return [
        *(counted(what, part) for what, part in ratios.items()),
        f"- cells where the search is at most {GAIN} in bytes or in time: {gains} of {len(pairs)}; "
        f"where the interval of its time is above 1: {slower}",
        f"- certified where the other is not: {', '.join(f'{n} by {who}' for who, n in alone.items())}",
        f"- the time foreseen of what was chosen, beside the time measured by the search: {apart(off)}",
    ]


def apart(off: Sequence[float]) -> str:
    """Relative errors in words."""
    if not off:
        return "none was kept"
    errors = [abs(one) for one in off]
    return f"median error {np.median(errors):.1%}, largest {max(errors):.1%}, of {len(errors)}"


def counted(what: str, ratios: Sequence[float]) -> str:
    """Ratios to the best uniform recipe's, in words."""
    gains, losses = (sum(test) for test in ([r <= GAIN for r in ratios], [r > 1 for r in ratios]))
    return (
        f"- {what}, of the best uniform recipe's: {gains} of {len(ratios)} cells at most {GAIN}, {losses} above 1; "
        f"median {np.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )
