"""The end of a search: certificates from the safest candidate to the boldest, and the cheapest that passed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissom.artifact import annotate
from lissom.artifact.manifest import building
from lissom.calibrate import Batch
from lissom.estimate import Certificate
from lissom.evaluate import Budgets, certify_beside, certify_models, grades
from lissom.files import plain
from lissom.hardware import describe
from lissom.progress import FrontierPoint, Progress
from lissom.search import trying
from lissom.search.candidates import Pool
from lissom.search.choosing import UNIFORM
from lissom.search.joint import times
from lissom.search.latency import by_turns
from lissom.search.margins import margins
from lissom.search.parity import check_parity
from lissom.search.result import Candidate, Point, Result
from lissom.search.split import Split
from lissom.search.subject import Subject
from lissom.search.trying import Terms, Tried, cost, noted, standing, worth_certifying

TURNS = 3  # times as many rounds for those that passed: they may differ by less than what tells them from the original


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate and its certificate."""

    tried: Tried
    certificate: Certificate


def concluded(subject: Subject, pool: Pool, lots: Split, terms: Terms) -> Result:
    """Certificates, the frontier with verdicts and reasons, and the cheapest candidate that passed."""
    judged = certified(subject, worth_certifying(pool.tried, margins_of(pool.tried, terms.budgets)), lots, terms)
    verdicts = {one.tried.point.name: one.certificate.verdict for one in judged}
    points = [pool.tried[0].before, *(noted(one, pool.tried, verdicts) for one in pool.tried)]
    passed = cheapest_first([one for one in judged if one.certificate.verdict == "PASS"], terms)
    shown = passed[0] if passed else judged[0] if judged else None
    pool.remember(verdicts)
    budgets = {kind.name: budget for kind, budget in terms.budgets.items()}
    report = {
        "metric": next(iter(budgets)),
        "target": terms.target,
        "latencies": terms.how,
        "machine": plain(describe()),
        "points": [plain(point) for point in points],
    }
    return Result(
        points=points,
        best=candidate(passed[0], report, points, lots.outputs) if passed else None,
        certificate=shown.certificate if shown else None,
        budgets=budgets,
        target=terms.target,
        failed=pool.failed,
        layers=pool.layers(passed[0].tried.point.name) if passed else (),
        steps=pool.steps,
        how=terms.how,
        refused=pool.refused,
    )


def margins_of(tried: Sequence[Tried], budgets: Budgets) -> list[float]:
    """How far inside the budgets each candidate is."""
    told = zip(*((one.figures, one.distance, one.learned) for one in tried), strict=True)
    return margins(budgets, *told)


def cheapest_first(passed: Sequence[Judged], terms: Terms) -> list[Judged]:
    """Those that passed, first the one that is cheapest as measured: the best, and those of one form, by turns."""
    ordered = sorted(passed, key=lambda one: one.tried.cost)
    if len(passed) < 2 or set(terms.weights) == {"size"}:
        return ordered
    last = {one.tried.point.name: one for n, one in enumerate(ordered) if n < 3 or one.tried.point.name in UNIFORM}
    terms.progress(Progress(stage="time", text="those that passed, by turns"))
    first = next(iter(last))
    run, ratios = last[first].tried.trial.timed(), {first: 1.0}
    for name in (name for name in last if name != first):  # two at a time, for all together may be large
        rounds = by_turns({first: run, name: last[name].tried.trial.timed()}, TURNS * trying.ROUNDS)
        own, others = (measured_cost(last[who].tried, rounds[who], terms) for who in (name, first))
        ratios[name] = own / others
    best = last[min(ratios, key=lambda name: ratios[name])]
    return [best, *(one for one in ordered if one is not best)]


def measured_cost(tried: Tried, rounds: Sequence[Mapping[str, float]], terms: Terms) -> float:
    """What a candidate costs by what it took in some rounds."""
    parts = {part: statistics.median(spent[part] for spent in rounds) for part in rounds[0]}
    return cost({"size": float(tried.point.nbytes), **times(parts)}, tried.before, terms.weights)


def certified(subject: Subject, queue: Sequence[Tried], lots: Split, terms: Terms) -> list[Judged]:
    """Certificates in the order of the queue, up to and with the first that does not pass."""
    judged: list[Judged] = []

    def tell(text: str, frontier: tuple[FrontierPoint, ...] | None) -> None:
        terms.progress(Progress(stage="certify", text=text, done=len(judged), total=len(queue), frontier=frontier))

    kinds, data = terms.budgets, lots.certification
    between = any(kind.against is not None for kind in kinds)  # two models, which must be in memory together
    before = None if between or not queue else grades(subject.original, data, kinds)
    for tried in queue:
        tell(f"{tried.point.name}: certify", None if judged else standing(queue, {}))
        model = tried.trial.open()
        if before is None:
            certificate = certify_models(subject.original, model, data, kinds, clusters=lots.clusters)
        else:
            certificate = certify_beside(before, model, data, kinds, clusters=lots.clusters)
        del model
        judged.append(Judged(tried=tried, certificate=certificate))
        verdicts = {one.tried.point.name: one.certificate.verdict for one in judged}
        tell(f"{tried.point.name}: {certificate.verdict}", standing(queue, verdicts))
        if certificate.verdict != "PASS":
            break
    return judged


def candidate(judged: Judged, report: dict[str, Any], points: Sequence[Point], examples: Batch) -> Candidate:
    """The chosen one, with all that is to be written down beside it.

    What is written is opened in a process of its own and compared on some examples before it takes its name.
    """
    trial, certificate = judged.tried.trial, judged.certificate

    def write(folder: Path) -> Path:
        with building(folder) as empty:
            whole = trial.write(empty / folder.name, {"report": report, "certificate": plain(certificate)})
            annotate(whole, parity=check_parity(whole, trial.open(), examples, trial.language))
            for file in whole.iterdir():
                file.rename(empty / file.name)
            whole.rmdir()
        return folder

    point = next(point for point in points if point.name == judged.tried.point.name)
    return Candidate(point=point, recipe=trial.recipe, certificate=certificate, write=write)
