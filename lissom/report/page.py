"""The report: one HTML page that needs nothing else, on screen or on paper, with scripts or without.

Every text on it is escaped; and a policy on the page itself lets browsers load nothing, and run no script but its own.
"""

import os
import tempfile
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lissom.errors import ArtifactError
from lissom.report.content import Report
from lissom.report.plot import plot
from lissom.report.predicted import predicted
from lissom.report.rows import layer_rows, rows, step_rows
from lissom.report.words import headline, lost, meaning, percent, recut, sentence, together
from lissom.types import Recipe


def page(report: Report) -> str:
    """The page as HTML."""
    certificate, script = report.certificate, _part("page.js")
    points, chosen, budget = report.points, report.chosen, report.budget.max_drop
    return rendered(
        "page.html",
        report=report,
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        headline=headline(report),
        sentence=sentence(report),
        meaning=meaning(certificate) if certificate else "",
        verdict=certificate.verdict if certificate else "",
        parts=certificate.parts.values() if certificate else (),
        rows=rows(points, chosen),
        first=next((number for number, point in enumerate(points) if point.name == chosen), 0),
        recut=[recut(report.folder, point) if report.folder else "" for point in points],
        plots=[
            Markup(plot(points, chosen, against="size", max_drop=budget)),
            Markup(plot(points, chosen, against="latency", max_drop=budget)),
        ],
        predicted=[
            Markup(predicted(points, chosen, figure="latency")),
            Markup(predicted(points, chosen, figure="KL")),
        ],
        layers=layer_rows(report.layers),
        lost=lost(report.layers),
        steps=step_rows(report.steps),
        rejected=together(report.rejected),
        undone=together(report.undone),
        refused=together(list(report.refused.items())),
        recipe=_listed(report.recipe) if report.recipe else "",
    )


def rendered(template: str, **content: Any) -> str:
    """A template of this room, with the style that all pages have."""
    environment = Environment(
        loader=PackageLoader("lissom", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(style=_part("page.css"), **content)


def _listed(recipe: Recipe) -> str:
    """A recipe as it stands in a file, a step in a line."""
    return yaml.safe_dump(recipe.as_dict(), sort_keys=False, default_flow_style=None, width=1000)


def _part(name: str) -> Markup:
    return Markup((files("lissom.report") / name).read_text(encoding="utf-8").strip())


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
