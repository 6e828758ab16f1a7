"""What is known at the end of a run: the rows of every table, and what they were made with."""

from dataclasses import dataclass, field
from typing import Any

from cache import Fields, Task
from table import Row

PEERS = ("llm-compressor", "AutoRound", "llama.cpp", "Torch-Pruning")


@dataclass(slots=True, kw_only=True)
class Run:
    """The rows that were found, and where and how they were measured."""

    command: str
    threads: int
    machine: dict[str, str]
    versions: dict[str, str]
    found: list[tuple[Task, Fields]] = field(default_factory=list)

    def of(self, table: str) -> list[tuple[Task, Fields]]:
        """What is known of one table."""
        return [(task, row) for task, row in self.found if task.table == table]

    def rows(self, table: str) -> list[Row]:
        """The rows of a table that are compared with their original."""
        return [Row.of(task.name, row) for task, row in self.of(table) if "metric" in row]

    def ours(self, table: str) -> list[Row]:
        """Those that lissom made."""
        return [row for row in self.rows(table) if not row.name.startswith(PEERS)]

    def theirs(self, table: str) -> list[Row]:
        """Those that the peers made."""
        return [row for row in self.rows(table) if row.name.startswith(PEERS)]

    def peer_versions(self) -> dict[str, str]:
        """The versions that the peers' rows were made with."""
        found: dict[str, str] = {}
        for task, row in self.found:
            tool = task.name.partition(":")[0].partition(",")[0]
            found |= {f"{name} (of the row {tool})": said for name, said in (row.get("versions") or {}).items()}
        return found

    def dates(self) -> list[str]:
        """The days on which the rows were measured, the first one first."""
        return sorted({row["date"] for _, row in self.found})

    def as_dict(self) -> dict[str, Any]:
        """The run for JSON."""
        named = {name: getattr(self, name) for name in ("command", "threads", "machine", "versions")}
        rows = [Row.of(task.name, row).as_dict() | {"table": task.table} for task, row in self.found if "metric" in row]
        return {"benchmark": "quality", **named, "dates": self.dates(), "rows": rows}
