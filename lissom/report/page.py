"""The report: one HTML page that needs nothing else, on screen or on paper."""

import os
import tempfile
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lissom.errors import ArtifactError
from lissom.report.content import Report
from lissom.report.plot import plot
from lissom.report.table import rows
from lissom.report.words import headline, percent, sentence


def page(report: Report) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("lissom", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template("page.html").render(
        report=report,
        headline=headline(report),
        sentence=sentence(report),
        verdict=report.certificate.verdict if report.certificate else "",
        rows=rows(report.points, report.chosen),
        plots=_plots(report),
        recipe=yaml.safe_dump(report.recipe.as_dict(), sort_keys=False) if report.recipe else "",
    )


def _plots(report: Report) -> list[Markup]:
    budget = report.budget.max_drop
    return [
        Markup(plot(report.points, report.chosen, against="size", max_drop=budget)),
        Markup(plot(report.points, report.chosen, against="latency", max_drop=budget)),
    ]


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    path = Path(path)
    html = page(report)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ArtifactError(f"report: cannot write to {path.parent}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise ArtifactError(f"report: cannot write {path}: {error.strerror}") from error
    return path
