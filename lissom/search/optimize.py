"""The search: every candidate is calibrated, measured and compared on data for choosing; the certificate decides.

What a candidate costs is its bytes times its time, each as a ratio to the original's; one that costs no less than the
original is dropped. Those that look good enough, and that no other beats in both cost and closeness to the original,
are certified on examples of their own, from the closest (by KL divergence) to the boldest, each at the full confidence,
until one does not pass. Testing in an order fixed beforehand and stopping at the first that fails keeps the chance of
any false pass at 1 - confidence (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021, arXiv:2110.01052,
section 3.2): that many candidates were tried costs nothing. The cheapest that passed is chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lissom.calibrate.data import each
from lissom.errors import DataError, RecipeError
from lissom.estimate import Certificate
from lissom.evaluate import Comparison, Metric, certify_models, metric, paired
from lissom.evaluate.metric import Output
from lissom.hardware import check_target
from lissom.hardware.measure import interleave
from lissom.search.result import Candidate, Point, Result
from lissom.search.split import Split, split
from lissom.search.subject import LanguageSubject, ModuleSubject, Subject, Trial, plain
from lissom.types import Budget, Recipe

Progress = Callable[[str], None]
ORIGINAL = "original"  # its name among the candidates
ROUNDS = 15  # of timing each candidate beside the original


def optimize(
    model: nn.Module | str | Path,
    data: Any,
    budget: Budget | None = None,
    *,
    target: str = "cpu",
    prefer: str = "both",
    by: str | Metric | Output | None = None,
    recipes: Sequence[Recipe] | None = None,
    progress: Progress = lambda text: None,
) -> Result:
    """Find the cheapest candidate that is certified to stay inside the budget.

    Args:
        model: any module, or the folder (or hub name) of a language model.
        data: labelled examples for a module, as (inputs, classes) or batches of those; windows of tokens, an integer
            tensor (n, t), for a language model. They are shuffled and divided: a fifth calibrates, three tenths choose,
            the rest certifies.
        budget: the accepted drop and the confidence; by default 1 % and 95 %.
        target: the hardware to measure on.
        prefer: what cheap means: "size", "latency", or "both", their product.
        by: the metric: "accuracy" (the default for modules), "perplexity" (for language models), or a function
            (model, batch) -> scores between 0 and 1, one per example.
        recipes: the candidates; by default the table in `lissom.search.candidates`.
        progress: told what is being done.

    Raises:
        ModelError, DataError, RecipeError: with what is wrong and what to do.
    """
    budget = budget or Budget()
    place = check_target(target)
    if prefer not in PREFERENCES:
        raise DataError(f"prefer: {prefer!r} is none of {', '.join(PREFERENCES)}")
    kind = metric(by or ("accuracy" if isinstance(model, nn.Module) else "perplexity"))
    lots = split(data, kind, budget)
    example = each(lots.calibration, lambda part: part[:2])
    subject = ModuleSubject(model, example, place) if isinstance(model, nn.Module) else LanguageSubject(model, place)
    candidates = subject.recipes() if recipes is None else recipes
    check_names(candidates)
    tried: list[Tried] = []
    failed: dict[str, str] = {}
    for recipe in candidates:
        try:
            tried.append(trying(subject, recipe, lots, kind, target, prefer, progress))
        except DataError as error:  # such as outputs that overflow: this candidate's fault, not the others'
            failed[recipe.name] = str(error)
    if not tried:
        raise DataError(f"no candidate could be compared: {next(iter(failed.values()))}")
    judged = certified(subject, worth_certifying(tried, budget), lots, kind, budget, progress)
    return conclusion(subject, tried, judged, Terms(budget=budget, metric=kind.name, target=target, failed=failed))


def check_names(candidates: Sequence[Recipe]) -> None:
    """See that each candidate can be told from the others and from the original by its name.

    Raises:
        RecipeError: there are none, or one has no name of its own.
    """
    if not candidates:
        raise RecipeError("recipes: no candidates are in it; give some, or leave it out for the table")
    names = [recipe.name for recipe in candidates]
    for name in names:
        if not name or name == ORIGINAL:
            raise RecipeError(f"recipes: a candidate is called {name!r}; each needs a name of its own")
        if names.count(name) > 1:
            raise RecipeError(f"recipes: two candidates are called {name!r}; each needs a name of its own")


PREFERENCES = {"size": (1, 0), "latency": (0, 1), "both": (1, 1)}  # exponents of the two ratios


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A candidate and what choosing needs to know of it; `before` is the original, measured beside it.

    `cost` is relative to the original's; `distance` is how far it is from the original on the data for choosing: the
    KL divergence, or the drop where the metric has no logits.
    """

    trial: Trial
    point: Point
    before: Point
    cost: float
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the search was asked, and the candidates that could not be compared."""

    budget: Budget
    metric: str
    target: str
    failed: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate and its certificate."""

    tried: Tried
    certificate: Certificate


def trying(
    subject: Subject, recipe: Recipe, lots: Split, kind: Metric, target: str, prefer: str, progress: Progress
) -> Tried:
    """Compress, compare on the data for choosing, and time beside the original.

    Raises:
        DataError: the scores of the candidate are not finite.
    """
    progress(f"{recipe.name}: compress")
    trial = subject.compress(recipe, lots.calibration)
    model = trial.open()
    progress(f"{recipe.name}: compare and time")
    figures = Comparison.of(paired(subject.original, model, lots.selection, kind))
    runs = {
        ORIGINAL: subject.timed(lots.selection),
        recipe.name: trial.timed(lots.selection),
    }
    times = interleave(runs, rounds=ROUNDS, target=target)
    no_drop = replace(figures.drop, value=0.0, low=0.0, high=0.0)
    before = subject.point(ORIGINAL, subject.nbytes, times[ORIGINAL], figures.original, no_drop)
    point = subject.point(recipe.name, trial.nbytes, times[recipe.name], figures.compressed, figures.drop)
    size, time = PREFERENCES[prefer]
    cost = (point.nbytes / before.nbytes) ** size * (point.latency.value / before.latency.value) ** time
    distance = figures.drop.value if figures.kl is None else figures.kl.value
    return Tried(trial=trial, point=point, before=before, cost=cost, distance=distance)


def worth_certifying(tried: Sequence[Tried], budget: Budget) -> list[Tried]:
    """Those within the budget on the data for choosing that cost less than the original, none beaten; closest first."""
    good = [one for one in tried if one.point.drop.value <= budget.max_drop and one.cost < 1]
    best = [one for one in good if not any(beats(other, one) for other in good)]
    return sorted(best, key=lambda one: one.distance)


def beats(one: Tried, other: Tried) -> bool:
    """Whether a candidate costs no more and is no farther from the original, and is better in one of the two."""
    ours, theirs = (one.cost, one.distance), (other.cost, other.distance)
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def certified(
    subject: Subject, queue: Sequence[Tried], lots: Split, kind: Metric, budget: Budget, progress: Progress
) -> list[Judged]:
    """Certificates in the order of the queue, up to and with the first that does not pass."""
    judged: list[Judged] = []
    for tried in queue:
        progress(f"{tried.point.name}: certify")
        certificate = certify_models(subject.original, tried.trial.open(), lots.certification, {kind: budget})
        judged.append(Judged(tried=tried, certificate=certificate))
        if certificate.verdict != "PASS":
            break
    return judged


def conclusion(subject: Subject, tried: Sequence[Tried], judged: Sequence[Judged], terms: Terms) -> Result:
    """The frontier with verdicts and reasons, and the cheapest candidate that passed."""
    verdicts = {one.tried.point.name: one.certificate.verdict for one in judged}
    points = [tried[0].before, *(noted(one, tried, verdicts, terms.budget) for one in tried)]
    passed = sorted((one for one in judged if one.certificate.verdict == "PASS"), key=lambda one: one.tried.cost)
    shown = passed[0] if passed else judged[0] if judged else None
    report = {"metric": terms.metric, "target": terms.target, "points": [plain(point) for point in points]}
    return Result(
        points=points,
        best=candidate(passed[0], report, points) if passed else None,
        certificate=shown.certificate if shown else None,
        budget=terms.budget,
        metric=terms.metric,
        target=terms.target,
        failed=terms.failed,
    )


def candidate(judged: Judged, report: dict[str, Any], points: Sequence[Point]) -> Candidate:
    """The chosen one, with all that is to be written down beside it."""
    trial, certificate = judged.tried.trial, judged.certificate

    def write(folder: Path) -> Path:
        return trial.write(folder, {"report": report, "certificate": plain(certificate)})

    point = next(point for point in points if point.name == judged.tried.point.name)
    return Candidate(point=point, recipe=trial.recipe, certificate=certificate, write=write)


def noted(one: Tried, tried: Sequence[Tried], verdicts: Mapping[str, str], budget: Budget) -> Point:
    """The point with its verdict, and why it was not certified where it was not."""
    point = one.point
    if point.name in verdicts:
        return replace(point, verdict=verdicts[point.name])
    if point.drop.value > budget.max_drop:
        return replace(point, note=f"dropped {point.drop.value:.2%} on the data for choosing")
    if one.cost >= 1:
        return replace(point, note=f"costs {one.cost:.2f} times what the original does, bytes and time together")
    better = [other for other in tried if beats(other, one) and other.point.drop.value <= budget.max_drop]
    if better:
        return replace(point, note=f"{better[0].point.name} costs no more and is closer to the original")
    return replace(point, note="bolder than one that did not pass")
