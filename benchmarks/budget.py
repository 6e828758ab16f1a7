"""What `lissom.optimize` finds within a budget, beside the best uniform recipe and beside peers.

    python benchmarks/budget.py WORK [--only wikilm,stories,resnet20,resnet56,minilm] [--budgets 0.5,1,2,5] [--quick]
                                [--nncf PYTHON] [--autoscheme PYTHON] [--again] [--write FILE]
    python benchmarks/budget.py WORK --cost [--max-ram 3GB]

For each model and budget, `optimize` looks for the smallest model and for the fastest. Beside them stand the uniform
recipes, each certified by itself, and what peers make. All are written to disk, read again, and timed in turns. What
WORK holds of an earlier run is not made again; with --again it is timed again, and peers make theirs anew. Prints the
tables, then one JSON line; --write puts them in the place of the same models' on the page, with the figures beside it
(budget_page.py). It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared` beside
the repository. With --cost it tells instead what the search takes on a checkpoint of random weights in the shape of
Qwen3-0.6B, in a process of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from budget_page import Run, page, passed, write
from contestants import checkpoint
from rivals import NNCF, AutoScheme, Rival, Row, Uniform, proof
from subjects import SUBJECTS, Subject
from table import size_of
from turns import turn

import lissom
from lissom.estimate import median_estimate
from lissom.hardware import describe
from lissom.progress import Progress

HERE = Path(__file__).parent
ROUNDS, QUICK = 15, 3  # turns of each contender
THINNED = 10  # with --quick, one in so many examples
PREFER = {"smallest": "size", "fastest": "latency"}
SHAPE, COST = "qwen3-0.6b", ("--length", "256", "--windows", "64")


def cell(subject: Subject, budget: lissom.Budget, place: Path, rivals: Sequence[Rival], rounds: int) -> list[Row]:
    """All contenders for a model and a budget, timed in turns."""
    rows = {rival.name: {"uniform": isinstance(rival, Uniform), **rival.within(budget)} for rival in rivals}
    turns = {rival.name: rival.turn for rival in rivals if passed(rows[rival.name])}
    for what, prefer in PREFER.items():
        name, folder = f"lissom, {what}", place / what
        rows[name] = searched(subject, budget, folder, prefer=prefer, work=place.parent / "bank")
        if passed(rows[name]):
            turns[name] = partial(turn, subject.timed(folder))
    return in_turns([{"budget": budget.max_drop, "name": name, **row} for name, row in rows.items()], turns, rounds)


def again(rows: Sequence[Row], subject: Subject, place: Path, rivals: Sequence[Rival], rounds: int) -> list[Row]:
    """The same contenders timed again; what a peer makes is held by its process, so that it is made anew."""
    by_name = {rival.name: rival for rival in rivals}
    kept, turns = list[Row](), dict[str, Callable[[], float]]()
    for row in rows:
        name, rival = row["name"], by_name.get(row["name"])
        if rival is None and not name.startswith("lissom"):
            raise SystemExit(f"budget: WORK holds {name!r}, timed by its own tool; give --nncf or --autoscheme")
        if rival is not None and not isinstance(rival, Uniform):
            row = {"budget": row["budget"], "name": name, **rival.within(lissom.Budget(max_drop=row["budget"]))}
        kept.append(row)
        if passed(row):
            turns[name] = partial(turn, subject.timed(place / name.split()[-1])) if rival is None else rival.turn
    return in_turns(kept, turns, rounds)


def in_turns(rows: Sequence[Row], turns: Mapping[str, Callable[[], float]], rounds: int) -> list[Row]:
    """The rows with the times of those that take turns."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, take in turns.items():
            times[name].append(take())
    uniform = [row["name"] for row in rows if row["name"] in times and row.get("uniform")]
    fastest = min(uniform, key=lambda name: median(times[name]), default=None)
    return [{**row, **clocked(times, row["name"], fastest)} for row in rows]


def tell(event: Progress) -> None:
    """What is being done, and when it was begun."""
    print(f"{time.strftime('%X')} {event}", file=sys.stderr, flush=True)


def searched(subject: Subject, budget: lissom.Budget, folder: Path, **asked: Any) -> Row:
    """What `optimize` chose, written to a folder, and the seconds that it took."""
    begun = time.perf_counter()
    result = lissom.optimize(subject.model, subject.data, {subject.by: budget}, progress=tell, **asked)
    row: Row = {"verdict": result.verdict, "seconds": time.perf_counter() - begun}
    if result.certificate is not None:
        row |= proof(result.certificate)
    if result.best is None:
        return row
    shutil.rmtree(folder, ignore_errors=True)
    result.best.save(folder)
    point = result.best.point
    foreseen = {"foreseen_ms": point.predicted_latency_ms, "found_ms": point.latency.value}
    made = {"recipe": point.name, "summary": point.summary, "bytes": size_of(folder), **foreseen}
    return row | made | subject.on_exact(folder)


def clocked(times: Mapping[str, list[float]], name: str, fastest: str | None) -> Row:
    """The time of a contender, and beside that of the fastest uniform recipe in the same turns."""
    if name not in times:
        return {}
    found = {"ms": asdict(median_estimate(times[name], unit="ms"))}
    if fastest is not None:
        ratios = [own / base for own, base in zip(times[name], times[fastest], strict=True)]
        found["time"] = asdict(median_estimate(ratios))
    return found


def run(name: str, asked: argparse.Namespace, shared: Path) -> Run:
    """What was found of one model, by which command, when, and on what machine."""
    rows = measured(name, asked, shared)
    words = [f"…/{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    tools = {tool: number for row in rows for tool, number in row.get("versions", {}).items()}
    facts = {**describe().as_dict(), "threads": torch.get_num_threads(), **tools}
    command = " ".join(["python benchmarks/budget.py", *words])
    return {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": facts, "rows": rows}


def measured(name: str, asked: argparse.Namespace, shared: Path) -> list[Row]:
    """The rows of one model, those that the work folder does not hold made now."""
    place = asked.work / (f"{name}-quick" if asked.quick else name)
    files = {percent: place / f"{percent:g}.json" for percent in asked.budgets}
    if asked.again or not all(file.exists() for file in files.values()):
        place.mkdir(parents=True, exist_ok=True)
        whole = SUBJECTS[name](shared)
        subject = whole.thinned(THINNED) if asked.quick else whole
        rivals = list(compared(subject, asked, place))
        rounds = QUICK if asked.quick else ROUNDS
        for percent, file in files.items():
            if asked.again or not file.exists():
                tell(f"{name}, {percent:g} %")
                own = place / f"{percent:g}"
                if file.exists():
                    rows = again(json.loads(file.read_text(encoding="utf-8")), subject, own, rivals, rounds)
                else:
                    rows = cell(subject, lissom.Budget(max_drop=percent / 100), own, rivals, rounds)
                file.write_text(json.dumps(rows), encoding="utf-8")
    return [row for file in files.values() for row in json.loads(file.read_text(encoding="utf-8"))]


def compared(subject: Subject, asked: argparse.Namespace, place: Path) -> Iterator[Rival]:
    """Every uniform recipe, and the peer that takes such a model if it is there."""
    for recipe in subject.uniform:
        yield Uniform(recipe, subject, place / "uniform" / recipe.name)
    kind, python = (AutoScheme, asked.autoscheme) if isinstance(subject.model, Path) else (NNCF, asked.nncf)
    if python is not None:
        yield kind(python, subject, place / "peer", asked.quick)


def cost(asked: argparse.Namespace) -> Row:
    """What `lissom optimize` takes on a checkpoint of random weights: the clock, the peak of its memory, its result."""
    model, out = checkpoint(asked.work, SHAPE), asked.work / "cost"
    shutil.rmtree(out, ignore_errors=True)
    text = Path(lissom.__file__).parent / "demo" / "stories.txt"
    command = ["-m", "lissom.cli", "optimize", model, "--data", text, "--out", out, *COST]
    command += ["--max-ram", asked.max_ram] if asked.max_ram else []
    spent = [sys.executable, "-S", HERE / "spent.py", sys.executable, *command]
    done = subprocess.run([str(word) for word in spent], capture_output=True, text=True, check=False)
    print(done.stderr[-3000:], file=sys.stderr)
    return {**json.loads(done.stdout), "rc": done.returncode, "bytes": size_of(out), "original": size_of(model)}


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for what is made")
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(SUBJECTS), help="models")
    parser.add_argument(
        "--budgets", type=lambda words: [float(word) for word in words.split(",")], default=[0.5, 1, 2, 5], help="in %%"
    )
    parser.add_argument("--quick", action="store_true", help="fewer examples and turns: to see that it works")
    parser.add_argument("--nncf", type=Path, metavar="PYTHON", help="an interpreter that has NNCF and OpenVINO")
    parser.add_argument("--autoscheme", type=Path, metavar="PYTHON", help="an interpreter that has AutoRound")
    parser.add_argument("--again", action="store_true", help="time again what WORK holds")
    parser.add_argument("--cost", action="store_true", help="what the search takes on a larger checkpoint")
    parser.add_argument("--max-ram", metavar="SIZE", help="the memory that it may take then")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the page if asked."""
    asked = arguments()
    torch.manual_seed(0)
    if asked.cost:
        print(json.dumps({"benchmark": "budget, cost", **cost(asked)}))
        return
    shared = Path(os.environ.get("LISSOM_SHARED", HERE.parents[1] / "shared"))
    found = {name: run(name, asked, shared) for name in asked.only}
    print(page(found))
    print(json.dumps({"benchmark": "budget", "found": found}))
    if asked.write is not None:
        write(asked.write, found)


if __name__ == "__main__":
    main()
