"""The end of a search: certificates from the safest candidate to the boldest, and who of those that passed leads."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissom.artifact import annotate
from lissom.artifact.manifest import building
from lissom.calibrate import Batch
from lissom.estimate import Certificate, median_estimate
from lissom.evaluate import Budgets, certify_beside, certify_models, grades
from lissom.files import plain
from lissom.hardware import describe
from lissom.progress import FrontierPoint, Progress
from lissom.search import trying
from lissom.search.candidates import Pool
from lissom.search.choosing import HARDLY
from lissom.search.joint import times
from lissom.search.latency import Parts, by_turns
from lissom.search.margins import margins
from lissom.search.parity import check_parity
from lissom.search.result import Candidate, Point, Result
from lissom.search.split import Split
from lissom.search.subject import Subject
from lissom.search.trying import Terms, Tried, cost, noted, standing, values, worth_certifying

SMALLEST, FASTEST, CHEAPEST = "smallest", "fastest", "cheapest"  # of those that are certified
ALIKE = 1.02  # times the least cost: what costs more is not taken for being smaller
TURNS = 3  # times as many rounds for those that passed: they may differ by less than what tells them from the original


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate and its certificate."""

    tried: Tried
    certificate: Certificate


def concluded(subject: Subject, pool: Pool, lots: Split, terms: Terms) -> Result:
    """Certificates, the frontier with verdicts and reasons, and the cheapest, smallest and fastest that passed."""
    queue = worth_certifying(pool.tried, margins_of(pool.tried, terms.budgets), terms.counts_time)
    judged = certified(subject, queue, lots, terms)
    verdicts = {one.tried.point.name: one.certificate.verdict for one in judged}
    leading = leaders([one for one in judged if one.certificate.verdict == "PASS"], terms)
    names = {told: one.tried.point.name for told, one in leading.items()}
    points = [pool.tried[0].before, *(noted(one, queue, verdicts, names) for one in pool.tried)]
    best = leading.get(CHEAPEST)
    shown = best or (judged[0] if judged else None)
    pool.remember(verdicts)
    budgets = {kind.name: budget for kind, budget in terms.budgets.items()}
    report = {
        "metric": next(iter(budgets)),
        "target": terms.target,
        "latencies": terms.how,
        "machine": plain(describe()),
        "points": [plain(point) for point in points],
    }
    found = {told: candidate(one, report, points, lots.outputs) for told, one in leading.items()}
    return Result(
        points=points,
        best=found.get(CHEAPEST),
        smallest=found.get(SMALLEST),
        fastest=found.get(FASTEST),
        certificate=shown.certificate if shown else None,
        budgets=budgets,
        target=terms.target,
        failed=pool.failed,
        layers=pool.layers(best.tried.point.name) if best else (),
        steps=pool.steps,
        how=terms.how,
        refused=pool.refused,
    )


def margins_of(tried: Sequence[Tried], budgets: Budgets) -> list[float]:
    """How far inside the budgets each candidate is."""
    told = zip(*((one.figures, one.distance, one.learned) for one in tried), strict=True)
    return margins(budgets, *told)


def leaders(passed: Sequence[Judged], terms: Terms) -> dict[str, Judged]:
    """Of those that passed the smallest, the fastest, and the one that is cheapest by what is preferred.

    All of them are certified, whichever is taken. Those that may be the fastest or the cheapest are timed by turns,
    unless time counts for nothing; then the fastest is told by what was measured beside the original.
    """
    if not passed:
        return {}
    wanted: dict[str, Mapping[str, float]] = {
        SMALLEST: {"size": 1.0},
        FASTEST: {"latency": 1.0},
        CHEAPEST: terms.weights,
    }
    near = {told: may_lead(passed, weights) for told, weights in wanted.items()}
    turns = Turns(list({one.tried.point.name: one for own in near.values() for one in own}.values()), terms)
    return {told: cheapest(near[told], weights, turns) for told, weights in wanted.items()}


def cheapest(near: Sequence[Judged], weights: Mapping[str, float], turns: "Turns") -> Judged:
    """The one that costs least, or the smallest of those that turns with it do not tell from it."""
    costs = [turns.cost(weights, one) for one in near]
    best = near[costs.index(min(costs))]
    alike = [one for one, own in zip(near, costs, strict=True) if own <= ALIKE * min(costs)]
    smaller = [one for one in alike if one.tried.point.nbytes < best.tried.point.nbytes]
    smaller.sort(key=lambda one: one.tried.point.nbytes)
    return next((one for one in smaller if not turns.dearer(weights, one, best)), best)


def may_lead(passed: Sequence[Judged], weights: Mapping[str, float]) -> list[Judged]:
    """Those that may be the cheapest by some weights in truth: all that were measured to be hardly dearer.

    Each beside the original as it was then or at its fastest, whichever tells for it: what was slow may have slowed
    down the original alone, or both.
    """
    fastest = min((one.tried.before for one in passed), key=lambda point: point.latency.value)
    costs = [
        [measured_cost(one.tried, [values(one.tried.point)], weights, before) for before in (one.tried.before, fastest)]
        for one in passed
    ]
    more, least = 1.0 if set(weights) == {"size"} else HARDLY, min(map(max, costs))
    return [one for one, own in zip(passed, costs, strict=True) if min(own) <= more * least]


class Turns:
    """What candidates cost by some weights: each timed by turns with the first, or else beside the original."""

    def __init__(self, near: Sequence[Judged], terms: Terms) -> None:
        self.first, self.timed = near[0], len(near) > 1 and terms.counts_time
        self.spent: dict[tuple[str, str], tuple[Sequence[Parts], Sequence[Parts]]] = {}
        if self.timed:
            terms.progress(Progress(stage="time", text="those that passed, by turns"))
            for one in near[1:]:  # two at a time, for all together may be large
                self.rounds(one, self.first)

    def rounds(self, one: Judged, other: Judged) -> tuple[Sequence[Parts], Sequence[Parts]]:
        """What two took by turns, measured once."""
        names = one.tried.point.name, other.tried.point.name
        if names not in self.spent:
            runs = {name: judged.tried.trial.timed() for name, judged in zip(names, (one, other), strict=True)}
            found = by_turns(runs, TURNS * trying.ROUNDS)
            self.spent[names] = found[names[0]], found[names[1]]
        return self.spent[names]

    def cost(self, weights: Mapping[str, float], one: Judged) -> float:
        """Beside that of the first."""
        if not self.timed:
            return measured_cost(one.tried, [values(one.tried.point)], weights)
        if one is self.first:
            return 1.0
        own, others = self.rounds(one, self.first)
        before = self.first.tried.before  # of both: what slowed the original when one was timed beside it is no merit
        return measured_cost(one.tried, own, weights, before) / measured_cost(self.first.tried, others, weights, before)

    def dearer(self, weights: Mapping[str, float], one: Judged, other: Judged) -> bool:
        """Whether one costs more than another by the whole interval of their turns; never where none were taken."""
        if not self.timed:
            return False
        before = self.first.tried.before
        pairs = zip(*self.rounds(one, other), strict=True)
        costs = [
            [measured_cost(j.tried, [ms], weights, before) for j, ms in zip((one, other), pair, strict=True)]
            for pair in pairs
        ]
        return median_estimate([own / its for own, its in costs]).low > 1


def measured_cost(
    tried: Tried, rounds: Sequence[Parts], weights: Mapping[str, float], before: Point | None = None
) -> float:
    """What a candidate costs by what it took in some rounds, beside the original as it was then, or as told."""
    parts = {part: statistics.median(spent[part] for spent in rounds) for part in rounds[0]}
    return cost({"size": float(tried.point.nbytes), **times(parts)}, before or tried.before, weights)


def certified(subject: Subject, queue: Sequence[Tried], lots: Split, terms: Terms) -> list[Judged]:
    """Certificates in the order of the queue, up to and with the first that does not pass."""
    judged: list[Judged] = []

    def tell(text: str, frontier: tuple[FrontierPoint, ...] | None) -> None:
        terms.progress(Progress(stage="certify", text=text, done=len(judged), total=len(queue), frontier=frontier))

    kinds, data = terms.budgets, lots.certification
    units: Any = {"clusters": lots.clusters, "planned": lots.units}
    between = any(kind.against is not None for kind in kinds)  # two models, which must be in memory together
    before = None if between or not queue else grades(subject.original, data, kinds)
    for tried in queue:
        tell(f"{tried.point.name}: certify", None if judged else standing(queue, {}))
        model = tried.trial.open()
        if before is None:
            certificate = certify_models(subject.original, model, data, kinds, **units)
        else:
            certificate = certify_beside(before, model, data, kinds, **units)
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
