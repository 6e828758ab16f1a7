"""What optimize found, for one target or for several: shown, told and written."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.cli.show import console, report_of
from lissom.cli.working import outcome
from lissom.progress import Progress, Tell

if TYPE_CHECKING:
    from lissom.search import Result

Results = Mapping[str, "Result"]  # by the target


def show_result(result: "Result") -> None:
    """The frontier, what could not be compared, what the target does not run, and the certificate."""
    from lissom.report import frontier_table

    if not result.measured:
        console.print(f"{result.target} is not here: times are {result.how}, not measured", highlight=False)
    chosen = result.best.point.name if result.best else None
    console.print(frontier_table(result.points, chosen, metric=result.metric, measured=result.measured))
    for name, reason in result.failed.items():
        console.print(f"{name} could not be compared: {reason}", markup=False)
    for form, reason in result.refused.items():
        console.print(f"{form}: not on {result.target}, {reason}", markup=False, highlight=False)
    if result.smallest and result.fastest:
        ends = f"the smallest is {result.smallest.point.name}, the fastest {result.fastest.point.name}"
        console.print(f"of those that are certified {ends}", markup=False, highlight=False)
    console.print(f"\n{result.certificate or 'no candidate stayed inside the budget on the data for choosing'}")


def places_of(results: Results, out: Path) -> dict[str, Path]:
    """Where the model for each target goes: to OUT, or of several to a folder in it."""
    if len(results) == 1:
        return dict.fromkeys(results, out)
    return {name: out / name.replace(":", "-") for name in results}


def write_results(results: Results, model: str, out: Path, report: Path | None, tell: Tell) -> dict[str, Path]:
    """Write what was chosen for each target, of several all or nothing, and the reports; where those are."""
    from lissom.artifact.manifest import building

    places, several = places_of(results, out), len(results) > 1
    together = building(out) if several and any(one.best for one in results.values()) else nullcontext(out.parent)
    found: dict[str, Path | None] = {}
    with together as whole:
        for name, result in results.items():
            own = report.with_stem(f"{report.stem}-{places[name].name}") if report and several else report
            found[name] = write_result(result, model, places[name], whole / places[name].name, own, tell)
    return {name: page for name, page in found.items() if page is not None}


def write_result(
    result: "Result", model: str, out: Path, written: Path, report: Path | None, tell: Tell
) -> Path | None:
    """Write what was chosen, and the report to where it was asked for or else beside it; where the report is.

    Until all is there, what goes to `out` is `written` elsewhere.
    """
    from lissom.artifact import add_file
    from lissom.report import write_report

    if result.best is not None:
        tell(Progress(stage="write", text=str(out)))
        result.best.save(written)
    page = report or (out / "report.html" if result.best else None)
    if page is not None:
        tell(Progress(stage="write", text=str(page)))
        inside = page.parent == out
        write_report(written / page.name if inside else page, report_of(result, model, out, written))
        if inside:
            add_file(written, page.name)
    return page


def told_of(results: Results, places: Mapping[str, Path], pages: Mapping[str, Path]) -> dict[str, Any]:
    """What was found and where it is, as JSON holds it; of several targets by their names."""
    found = {
        name: {
            **outcome(result),
            "folder": result.best and str(places[name]),
            "report": str(pages[name]) if name in pages else None,
        }
        for name, result in results.items()
    }
    return next(iter(found.values())) if len(found) == 1 else {"targets": found}


def show_places(results: Results, places: Mapping[str, Path], bank: Path, pages: Mapping[str, Path]) -> None:
    """Where everything was written."""
    for name, result in results.items():
        if result.best is not None:
            console.print(f"{places[name]}: {result.best.point.name}, {result.best.point.nbytes:,} bytes of weights")
            console.print(
                f"{bank}: layers in all forms, for `lissom recut {places[name]}`; remove it when you need no other cut"
            )
        if name in pages:
            console.print(f"{pages[name]}: the report")
