"""The candidates of a search: recipes of the user's own, or choices among all forms of all layers; each timed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from lissom.artifact.fingerprint import of_json
from lissom.artifact.journal import Journal
from lissom.errors import DataError
from lissom.estimate import Estimate
from lissom.files import plain
from lissom.progress import Progress, Tell
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import PLAIN, Choosing, Seen, digest, yardstick_of
from lissom.search.costed import CostedSubject
from lissom.search.forms import CACHE, SAFE
from lissom.search.forms import ORIGINAL as NOTHING
from lissom.search.joint import Problem, times
from lissom.search.latency import Latencies, Parts, Run, known, measured, paces
from lissom.search.narrow import narrowed
from lissom.search.paying import paying
from lissom.search.recover import recovered
from lissom.search.recut import remember
from lissom.search.result import LayerRow, Point, StepRow
from lissom.search.split import Split
from lissom.search.subject import Subject, Trial
from lissom.search.trying import Terms, Tried, cost, timed, values
from lissom.types import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The candidates, and those that could not be compared and why; with what else the search has found out.

    `layers` tells of a candidate by its name what became of each layer; `remember` is told the verdicts. `refused` are
    the forms that the target does not run, and why.
    """

    tried: Sequence[Tried]
    failed: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[StepRow] = ()
    layers: Callable[[str], Sequence[LayerRow]] = lambda name: ()
    remember: Callable[[Mapping[str, str]], None] = lambda verdicts: None
    refused: Mapping[str, str] = field(default_factory=dict)


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
    table, refused = latencies(subject, bank, terms), subject.refused(bank)
    choosing = Choosing(
        subject,
        bank,
        Problem.of(bank, subject.kinds, table, terms.weights).without(subject.kinds, refused),
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
    pace = paces(original, subject.run(bank, dict.fromkeys(bank.units, SAFE))) if queue else {}
    for one in queue:
        told = {
            "predicted_kl": choosing.problem.kl(one.choice, choosing.scale),
            "summary": summary(bank, one.choice),
        }
        found = timed(subject, subject.assemble(bank, one.choice, one.name), one, terms, told, (len(tried), len(queue)))
        if terms.measured:
            beside = partial(table.beside, pace=pace, kinds=subject.kinds, choice=one.choice)
            found = foreseen(found, (tried or [found])[0].before, beside, terms)
        tried.append(found)
    del original
    if not tried:
        raise DataError("no candidate could be compared: every layer is best as it is")
    choices = {one.name: one.choice for one in choosing.all.values()}
    learned: list[tuple[Seen, Trial]] = []
    for one, trial in recovered(choosing):
        tried.append(timed(subject, trial, one, terms, {"summary": f"{summary(bank, one.choice)}; distilled"}))
        choices[one.name] = one.choice
        learned.append((one, trial))
    for one, trial in narrowed(choosing) if terms.measured and terms.counts_time else ():
        tried.append(timed(subject, trial, one, terms, {"summary": "channels gone; distilled"}))
        learned.append((one, trial))
    return Pool(
        tried=tried,
        steps=choosing.steps,
        layers=lambda name: layer_rows(subject, bank, choices.get(name, {})),
        remember=lambda verdicts: remember(bank, choosing, verdicts, subject, terms.target, learned),
        refused=by_form(refused, bank, subject.kinds),
    )


def by_form(refused: Mapping[tuple[str, str], str], bank: Bank, kinds: Mapping[str, str]) -> dict[str, str]:
    """Why the target does not run forms: of a form that it never runs once, of another for each kind of layer."""
    options = {(kinds[unit], form) for unit, forms in bank.options.items() for form in forms}
    never = {form for _, form in refused if all(place in refused for place in options if place[1] == form)}
    return {form if form in never else f"{form}: {kind}": reason for (kind, form), reason in refused.items()}


def foreseen(found: Tried, once: Point, beside: Callable[[Parts], Parts], terms: Terms) -> Tried:
    """A candidate with the times that are foreseen of it; what costs less is chosen by them, for they have no noise.

    They are foreseen beside the original as it was then, to be compared with what was measured, and beside the original
    as it was once, the same for all, to be compared with each other. What is measured decides whether a candidate is
    cheaper than the original at all.
    """
    then, always = (beside(values(point)) for point in (found.before, once))
    found = replace(found, point=replace(found.point, predicted_latency_ms=sum(then.values())))
    if found.cost >= 1:
        return found
    return replace(found, cost=cost({"size": found.point.nbytes, **times(always)}, once, terms.weights))


def steps_of(subject: Subject, bank: Bank, choice: Choice, terms: Terms) -> list[StepRow]:
    """What each step of a choice saves, measured once."""
    name = f"steps {digest(choice)} {of_json([terms.target, terms.how, dict(terms.weights)])}"
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
    """How long each form of each kind of unit takes, measured, remembered, or costed."""
    if isinstance(subject, CostedSubject):
        return subject.latencies(bank)
    counts = Counter(subject.kinds.values())
    first = {kind: next(unit for unit in bank.units if subject.kinds[unit] == kind) for kind in counts}
    variants = {kind: [form for form in bank.options[unit] if form != SAFE] for kind, unit in first.items()}
    key = [terms.target, {kind: [counts[kind], *forms] for kind, forms in variants.items()}, subject.timing()]
    return known(key, lambda: measured_in(subject, bank, variants, terms.progress))


def measured_in(subject: Subject, bank: Bank, variants: Mapping[str, Sequence[str]], tell: Tell) -> Latencies:
    """The table of a model, measured in a part of it if that is enough; of the whole only the base is timed."""
    part = subject.shallow()
    base = dict.fromkeys(part.units, SAFE)
    counts: dict[str, float] = dict(Counter(part.kinds.values()))
    if CACHE in counts:  # the one unit of it that is in every block
        counts[CACHE] *= part.share

    def made(kind: str, form: str) -> Run:
        changed = {unit: form for unit in base if part.kinds[unit] == kind and form in bank.options[unit]}
        return part.assemble(bank, {**base, **changed}, "").timed()

    def again() -> Run:
        return part.assemble(bank, base, "").timed()

    found = measured(again, variants, counts, made, tell, part.share)
    if part is subject:
        return found
    whole = subject.assemble(bank, dict.fromkeys(subject.units, SAFE), "").timed()
    pace = paces(again(), whole)
    return replace(found, base={name: ms * pace[name] for name, ms in found.base.items()})


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
    return [one for one in inside if one.name in PLAIN or not beaten(one)] + beyond[:2]
