"""What was measured before: one line of JSON for each row, so that a later run need not measure it again.

A row is known by its key: the recipe, the data, the versions, and the text of the techniques that took part. When any
of these changes, the row is measured anew. The folder may be deleted at any time.
"""

import hashlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from lissom.techniques import TECHNIQUES

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row that can be measured: in which part and table, under which name, and from what it follows."""

    part: str
    table: str
    name: str
    key: Mapping[str, Any]
    measure: Callable[[], Fields]

    @property
    def mark(self) -> str:
        """Equal for rows that must come out alike."""
        said = json.dumps(dict(self.key), sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A folder with a file of lines for each part."""

    folder: Path

    def known(self, part: str) -> dict[str, Fields]:
        """The rows of a part by their marks; of two with one mark the later counts."""
        file = self.folder / f"{part}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return {row["mark"]: row for row in map(json.loads, lines)}

    def keep(self, task: Task, found: Fields) -> Fields:
        """Write a row down."""
        row = {"mark": task.mark, "name": task.name, "date": str(date.today()), "key": dict(task.key), **found}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{task.part}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")
        return row

    def tried(self, task: Task) -> Fields | None:
        """Measure a row and write it down; one that fails is told and left out, for others are to come."""
        try:
            return self.keep(task, task.measure())
        except (Exception, SystemExit):  # whatever it was, hours of other rows do not depend on it
            print(f"{task.part}: {task.name} FAILED\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            return None

    def rows(self, tasks: Iterable[Task], *, measure: bool, fresh: bool = False) -> list[tuple[Task, Fields]]:
        """The rows of the tasks: those that are known, and, if asked, the others too, which takes its time."""
        done: list[tuple[Task, Fields]] = []
        for task in tasks:
            row = None if fresh and measure else self.known(task.part).get(task.mark)
            if row is None and measure:
                print(f"{task.part}: {task.name} ...", file=sys.stderr, flush=True)
                row = self.tried(task)
            if row is not None:
                done.append((task, row))
        return done


def sources(steps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A digest of the text of every technique that a recipe names."""
    names = sorted({str(step["technique"]) for step in steps})
    return {name: hashlib.sha256(source(TECHNIQUES[name]).encode()).hexdigest()[:16] for name in names}


def source(technique: Callable[..., Any]) -> str:
    """The text of the file that a technique is in."""
    return inspect.getsource(sys.modules[technique.__module__])
