"""The search: many candidates are made and compared on data for choosing; the certificate decides on data of its own.

Each layer is made in every form that it may take, from one pass over the data (`bank.py`); how long each form takes is
measured in the model, on the target (`latency.py`); the frontier of all choices is solved for (`joint.py`), corrected
by choices that were measured as a whole, and improved from there (`choosing.py`, `local.py`). Or the candidates are
recipes of the user's own.

What a candidate costs is its bytes times its time (or as is preferred), each as a ratio to the original's; one that
costs no less than the original is dropped. Those that look good enough, and that no other beats in both cost and
closeness to the original, are certified on examples of their own, from the closest (by KL divergence) to the boldest,
each at the full confidence, until one does not pass. Testing in an order fixed beforehand and stopping at the first
that fails keeps the chance of any false pass at 1 - confidence (fixed-sequence testing; Angelopoulos et al., Learn then
Test, 2021, arXiv:2110.01052, section 3.2): that many candidates were tried costs nothing. The cheapest that passed is
chosen. Of several metrics each is tested at the full confidence, and all must pass: a model that breaks some budget is
passed only if that very one is passed falsely (an intersection-union test; Berger, Technometrics 1982).
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lissom.artifact import annotate
from lissom.artifact.fingerprint import of_code, of_json, of_tensors
from lissom.artifact.journal import Journal
from lissom.artifact.manifest import building
from lissom.calibrate import Batch
from lissom.calibrate.data import each
from lissom.errors import DataError, RecipeError
from lissom.estimate import Certificate, Estimate
from lissom.evaluate import METRICS, Budgets, Given, budgets_of, certify_beside, certify_models, grades
from lissom.hardware import check_target
from lissom.progress import FrontierPoint, Progress, Tell, quiet
from lissom.search import trying
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import UNIFORM, Choosing, Seen, digest, yardstick_of
from lissom.search.forms import CACHE, SAFE
from lissom.search.forms import ORIGINAL as NOTHING
from lissom.search.joint import Prefer, Problem, times, weights_of
from lissom.search.latency import Latencies, Run, by_turns, known, measured
from lissom.search.parity import check_parity
from lissom.search.paying import paying
from lissom.search.recover import recovered
from lissom.search.recut import remember
from lissom.search.result import Candidate, LayerRow, Point, Result, StepRow
from lissom.search.room import at_once, within
from lissom.search.split import Split, split
from lissom.search.subject import PROMPT, LanguageSubject, ModuleSubject, Subject, plain
from lissom.search.trying import ORIGINAL, Terms, Tried, cost, noted, standing, timed, worth_certifying
from lissom.types import Budget, Recipe


def optimize(
    model: nn.Module | str | Path,
    data: Any,
    budget: Budget | Given | None = None,
    *,
    target: str = "cpu",
    prefer: Prefer = "both",
    examples: Any = None,
    clusters: Any = None,
    recipes: Sequence[Recipe] | None = None,
    work: str | Path | None = None,
    max_ram: int | None = None,
    prompt: int | None = None,
    progress: Tell = quiet,
) -> Result:
    """Find the cheapest candidate that is certified to stay inside the budget.

    Args:
        model: any module, or the folder (or hub name) of a language model.
        data: labelled examples for a module, as (inputs, classes) or batches of those; windows of tokens, an integer
            tensor (n, t), for a language model. They are shuffled and divided: a fifth calibrates, three tenths choose,
            the rest certifies.
        budget: the accepted drop and the confidence, by default 1 % and 95 %, in "accuracy" for a module and in
            "perplexity" for a language model; or as for `certify_models` one for each of several metrics, {metric:
            budget}, all of which must hold. A metric is a name, a Metric, or a function (model, batch) -> scores
            between 0 and 1, one per example. The tables show the first.
        target: the hardware to measure on.
        prefer: what cheap means: "size", "latency", or "both", their product; for a language model also "prefill" and
            "decode"; or the exponent of each in the product, such as {"size": 1, "decode": 2}.
        examples: what the metrics score, where that is of another kind than what calibrates, as a task's examples are
            for a language model. Of `data` two fifths calibrate then, and on the rest it is seen how far candidates are
            from the original; of the examples three eighths choose, and the rest certifies.
        clusters: an integer for each example that is scored. Those of one belong together, such as questions about one
            text: they come into one lot, and the certificate counts them once.
        recipes: the candidates, in place of those that the search finds.
        work: a folder for what is made on the way. A search that was cut short goes on from there, and `recut` builds
            other points of the frontier from it; without one nothing is kept.
        max_ram: bytes of memory that the process may take, for a language model on disk; by default any.
        prompt: tokens of the prompt of the answer that is timed; by default 64. With a longer one the cache of keys and
            values counts as it does for long texts, and the search takes longer.
        progress: told what is being done, event by event; `print` will do.

    Raises:
        ModelError, DataError, RecipeError, ArtifactError: with what is wrong and what to do.
    """
    place = check_target(target)
    module = isinstance(model, nn.Module)
    if module and max_ram is not None:
        raise DataError("max_ram: a module is in memory already; leave it out")
    if module and prompt is not None:
        raise DataError("prompt: a module answers none; leave it out")
    if recipes is not None and max_ram is not None:
        raise DataError("max_ram: recipes of your own are tried without a bound; leave out one of the two")
    weights = weights_of(prefer, () if module else ("prefill", "decode"))
    budgets = budgets_for(budget, module)
    by = next(iter(budgets))
    if not (module or by.logits):
        by = METRICS["perplexity"]  # it reads the logits of windows
    lots = split(data, budgets, examples=examples, clusters=clusters)
    example = each(lots.calibration, lambda part: part[:2])
    subject: Subject
    if isinstance(model, nn.Module):
        subject = ModuleSubject(model, example, place, lots.outputs)
    else:
        subject = LanguageSubject(model, place, PROMPT if prompt is None else prompt)
        if recipes is None:
            works = len(set(subject.kinds.values()))
            tokens = within(subject.checkpoint, subject.forms, works, lots, (*budgets, by), max_ram, progress)
            budgets, by = {at_once(kind, tokens): budget for kind, budget in budgets.items()}, at_once(by, tokens)
    terms = Terms(budgets=budgets, by=by, target=target, weights=weights, progress=progress)
    if recipes is not None:
        check_names(recipes)
        return concluded(subject, by_recipes(subject, recipes, lots, terms), lots, terms)
    asked = {"model": subject.fingerprint(), "data": of_tensors(lots.tensors), "code": of_code()}
    asked["kind of distance"] = "KL" if by.logits else "squared error"
    with (
        tempfile.TemporaryDirectory(prefix="lissom-") as scratch,
        Journal.open(Path(work or scratch), asked) as journal,
    ):
        return concluded(subject, joint(subject, journal, lots, max_ram, terms), lots, terms)


def budgets_for(given: Budget | Given | None, module: bool) -> Budgets:
    """What was given as budget, by metric."""
    return budgets_of(
        given if isinstance(given, Mapping) else {"accuracy" if module else "perplexity": given or Budget()}
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate and its certificate."""

    tried: Tried
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The candidates, and those that could not be compared and why; with what else the search has found out.

    `layers` tells of a candidate by its name what became of each layer; `remember` is told the verdicts.
    """

    tried: Sequence[Tried]
    failed: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[StepRow] = ()
    layers: Callable[[str], Sequence[LayerRow]] = lambda name: ()
    remember: Callable[[Mapping[str, str]], None] = lambda verdicts: None


def by_recipes(subject: Subject, recipes: Sequence[Recipe], lots: Split, terms: Terms) -> Pool:
    """The user's own candidates, each compressed anew, compared and timed.

    Raises:
        DataError: none of them could be compared.
    """
    tried: list[Tried] = []
    failed: dict[str, str] = {}
    yardstick = yardstick_of(subject, lots, terms.budgets, terms.by)
    for done, recipe in enumerate(recipes):
        terms.progress(Progress(stage="compress", text=f"{recipe.name}: compress", done=done, total=len(recipes)))
        try:
            trial = subject.compress(recipe, lots.calibration)
            figures, far = yardstick.compare(trial.open())
        except DataError as error:  # such as outputs that overflow: this candidate's fault, not the others'
            failed[recipe.name] = str(error)
            continue
        seen = Seen(name=recipe.name, choice={}, figures=figures, distance=far)
        tried.append(timed(subject, trial, seen, terms))
    if not tried:
        raise DataError(f"no candidate could be compared: {next(iter(failed.values()))}")
    return Pool(tried=tried, failed=failed)


def joint(subject: Subject, journal: Journal, lots: Split, max_ram: int | None, terms: Terms) -> Pool:
    """The candidates that the joint search finds."""
    bank = Bank(journal, subject.units, subject.forms)
    terms.progress(Progress(stage="calibrate", text="run the model on the data"))
    subject.fill(bank, lots.calibration, terms.by, max_ram, terms.progress)
    table = latencies(subject, bank, terms)
    choosing = Choosing(
        subject,
        bank,
        Problem.of(bank, subject.kinds, table, terms.weights),
        lots,
        terms.budgets,
        terms.by,
        pays=lambda choice: steps_of(subject, bank, choice, terms),
        tell=terms.progress,
    )
    choosing.walk()
    original = subject.timed()  # stays open while candidates are timed beside it
    tried: list[Tried] = []
    queue = worth_timing(choosing)
    for one in queue:
        parts = table.of(subject.kinds, one.choice)
        told = {
            "predicted_latency_ms": sum(parts.values()),
            "predicted_kl": choosing.problem.kl(one.choice, choosing.scale),
            "summary": summary(bank, one.choice),
        }
        found = timed(subject, subject.assemble(bank, one.choice, one.name), one, terms, told, (len(tried), len(queue)))
        if found.cost < 1:  # what is measured decides whether it is cheaper at all; among such, noise does not choose
            found = replace(found, cost=cost({"size": found.point.nbytes, **times(parts)}, found.before, terms.weights))
        tried.append(found)
    del original
    if not tried:
        raise DataError("no candidate could be compared: every layer is best as it is")
    choices = {one.name: one.choice for one in choosing.all.values()}
    for one, trial in recovered(choosing):
        tried.append(timed(subject, trial, one, terms, {"summary": f"{summary(bank, one.choice)}; distilled"}))
        choices[one.name] = one.choice
    return Pool(
        tried=tried,
        steps=choosing.steps,
        layers=lambda name: layer_rows(subject, bank, choices[name]),
        remember=lambda verdicts: remember(bank, choosing, verdicts, subject),
    )


def steps_of(subject: Subject, bank: Bank, choice: Choice, terms: Terms) -> list[StepRow]:
    """What each step of a choice saves, measured once."""
    name = f"steps {digest(choice)} {of_json([terms.target, dict(terms.weights)])}"
    held = bank.known(
        name, lambda: {"rows": [plain(row) for row in paying(subject, bank, choice, terms.weights, terms.progress)]}
    )
    ratios = ("latency_ratio", "cost_ratio")
    return [StepRow(**{**row, **{ratio: Estimate(**row[ratio]) for ratio in ratios}}) for row in held["rows"]]


def summary(bank: Bank, choice: Choice) -> str:
    """How many layers are in which form."""
    counts = Counter(form for layer, form in bank.by_layer(choice).items() if layer != CACHE)
    parts = [f"{count} x {form}" for form, count in counts.most_common()]
    return " · ".join([*parts, *([f"{CACHE} in {SAFE}"] if choice.get(CACHE) == SAFE else [])])


def layer_rows(subject: Subject, bank: Bank, choice: Choice) -> list[LayerRow]:
    """What becomes of each layer of a choice."""
    rows = []
    for layer, form in bank.by_layer(choice).items():
        if layer == CACHE:
            rows.append(cache_row(bank, form))
            continue
        before, after = bank.option(layer, NOTHING), bank.option(layer, form)
        o, i = subject.shapes[layer]
        rows.append(
            LayerRow(
                name=layer,
                form=form,
                bits_per_weight=8 * after.nbytes / (o * i),
                bytes_before=before.nbytes,
                bytes_after=after.nbytes,
                kl=after.kl,
            )
        )
    return rows


def cache_row(bank: Bank, form: str) -> LayerRow:
    """What becomes of the keys and values of a token, which are no bytes of the folder."""
    before, after = bank.record(f"{CACHE} {NOTHING}"), bank.record(f"{CACHE} {form}")
    return LayerRow(
        name=f"{CACHE}, of each token",
        form=form,
        bits_per_weight=8 * after["token_bytes"] / after["numbers"],
        bytes_before=before["token_bytes"],
        bytes_after=after["token_bytes"],
        kl=after["kl"],
    )


def latencies(subject: Subject, bank: Bank, terms: Terms) -> Latencies:
    """How long each form of each kind of unit takes, measured or remembered."""
    base = dict.fromkeys(bank.units, SAFE)
    counts = Counter(subject.kinds.values())
    first = {kind: next(unit for unit in bank.units if subject.kinds[unit] == kind) for kind in counts}
    variants = {kind: [form for form in bank.options[unit] if form != SAFE] for kind, unit in first.items()}

    def made(kind: str, form: str) -> Run:
        changed = {unit: form for unit in base if subject.kinds[unit] == kind and form in bank.options[unit]}
        return subject.assemble(bank, {**base, **changed}, "").timed()

    def make() -> Latencies:
        run = subject.assemble(bank, base, "").timed()
        return measured(run, variants, counts, made, terms.progress)

    key = [terms.target, {kind: [counts[kind], *forms] for kind, forms in variants.items()}, subject.timing()]
    return known(key, make)


def worth_timing(choosing: Choosing) -> list[Seen]:
    """Those inside the budget on the data for choosing that no other beats, or of one form; the nearest beyond it."""
    seen = [one for one in choosing.seen if set(one.choice.values()) != {NOTHING}]
    inside = [one for one in seen if choosing.inside(one)]
    costs = {one.name: choosing.problem.cost(one.choice) for one in seen}

    def beaten(one: Seen) -> bool:
        return any(
            costs[o.name] <= costs[one.name] and o.distance.value < one.distance.value for o in inside if o is not one
        )

    beyond = sorted((one for one in seen if one not in inside), key=lambda one: one.distance.value)
    return [one for one in inside if one.name in UNIFORM or not beaten(one)] + beyond[:2]


def concluded(subject: Subject, pool: Pool, lots: Split, terms: Terms) -> Result:
    """Certificates, the frontier with verdicts and reasons, and the cheapest candidate that passed."""
    judged = certified(subject, worth_certifying(pool.tried), lots, terms)
    verdicts = {one.tried.point.name: one.certificate.verdict for one in judged}
    points = [pool.tried[0].before, *(noted(one, pool.tried, verdicts) for one in pool.tried)]
    passed = cheapest_first([one for one in judged if one.certificate.verdict == "PASS"], terms)
    shown = passed[0] if passed else judged[0] if judged else None
    pool.remember(verdicts)
    budgets = {kind.name: budget for kind, budget in terms.budgets.items()}
    report = {"metric": next(iter(budgets)), "target": terms.target, "points": [plain(point) for point in points]}
    return Result(
        points=points,
        best=candidate(passed[0], report, points, lots.outputs) if passed else None,
        certificate=shown.certificate if shown else None,
        budgets=budgets,
        target=terms.target,
        failed=pool.failed,
        layers=pool.layers(passed[0].tried.point.name) if passed else (),
        steps=pool.steps,
    )


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
        rounds = by_turns({first: run, name: last[name].tried.trial.timed()}, trying.ROUNDS)
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
