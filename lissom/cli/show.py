"""What the command line prints: figures as lines or as JSON."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from lissom.report.content import Report
    from lissom.search import Result

WIDE = 140  # columns of a table that goes to a file or a pipe
console, notes = Console(width=None if sys.stdout.isatty() else WIDE), Console(stderr=True)


def show(figures: Any, json_lines: bool, more: Any = None) -> None:
    """Print figures, one a line, or as one JSON object."""
    from json import dumps

    from lissom.files import plain

    found = {name: figure for name, figure in figures.items() if figure is not None}
    if json_lines:
        print(dumps({**(more or {}), **plain(found)}))
        return
    for name, figure in {**(more or {}), **found}.items():
        shown = f"{figure:,}" if isinstance(figure, int) else figure
        console.print(f"{name.replace('_', ' '):24} {shown}", highlight=False, markup=False)


def report_of(result: "Result", model: str, out: Path, written: Path | None = None) -> "Report":
    """What the report shows of a result that is, or will be, in `out`; until then it is where it was `written`."""
    import platform
    import shlex
    from datetime import date

    import torch

    from lissom.artifact import MANIFEST
    from lissom.artifact.manifest import package_version
    from lissom.files import read_json
    from lissom.hardware import describe
    from lissom.report.content import Report

    manifest = read_json((written or out) / MANIFEST) if result.best else {}
    kind, files = manifest.get("kind"), manifest.get("files", {})
    return Report(
        title=Path(model).name,
        points=result.points,
        chosen=result.best.point.name if result.best else None,
        budget=result.budget,
        metric=result.metric,
        target=result.target,
        how=result.how,
        refused=result.refused,
        certificate=result.certificate,
        recipe=result.best.recipe if result.best else None,
        machine={name: str(value) for name, value in describe().as_dict().items()},
        versions={"lissom": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        hashes={name: file["sha256"] for name, file in files.items()},
        made=date.today().isoformat(),
        failed=result.failed,
        layers=result.layers,
        steps=result.steps,
        command=shlex.join(["lissom", *sys.argv[1:]]),
        seed=0,
        folder=str(out) if kind == "language_model" else "",  # a cut of a module needs the module too
    )


def one_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
