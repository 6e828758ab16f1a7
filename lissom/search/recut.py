"""Re-cut: another point of a frontier that was found before, put together from the bank without calibrating again."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lissom.artifact.fingerprint import of_tensors
from lissom.artifact.journal import HEAD, Journal
from lissom.errors import ArtifactError, DataError, RecipeError
from lissom.estimate import Certificate
from lissom.evaluate import METRICS, Budgets, Given, budgets_of, certify_models
from lissom.files import plain, read_json
from lissom.search.allocate import choose
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import Choosing, Seen
from lissom.search.forms import CACHE
from lissom.search.language import LanguageSubject
from lissom.search.margins import limit
from lissom.search.module import ModuleSubject
from lissom.search.recover import budgets_asked, learned_key
from lissom.search.sensitivity import Option
from lissom.search.split import split
from lissom.search.subject import Subject, Trial
from lissom.types import Budget, Recipe

FRONTIER = "frontier for "  # how the names of its records in the bank begin; the target follows


@dataclass(frozen=True, slots=True, kw_only=True)
class Recut:
    """What was built: its bytes, and the KL and the drops by each metric that are foreseen of it, or were measured.

    `verdict` is that of the certificate, or that of the search where it certified this very choice; else empty.
    """

    folder: Path
    nbytes: int
    kl: float
    drops: Mapping[str, float]
    verdict: str
    certificate: Certificate | None = None


def remember(
    bank: Bank,
    choosing: Choosing,
    verdicts: Mapping[str, str],
    subject: Subject,
    target: str,
    learned: Sequence[tuple[Seen, Trial]] = (),
) -> None:
    """Write down what a later cut for a target is made by: what was measured, and how distances of forms add up."""

    def point(one: Seen) -> dict[str, Any]:
        return {
            "name": one.name,
            "choice": dict(one.choice),
            "kl": one.distance.value,
            "drops": {name: found.drop.value for name, found in one.figures.items()},
            "verdict": verdicts.get(one.name, ""),
        }

    points = [point(one) for one in choosing.all.values()]
    allowed = [one for one in choosing.seen if choosing.inside(one)] or choosing.seen
    cheapest = min(allowed, key=lambda one: choosing.problem.cost(one.choice), default=None)
    head: dict[str, Any] = {"model": subject.fingerprint(), "folder": subject.folder, "beside": subject.beside}
    head["cache"] = None if cheapest is None else cheapest.choice.get(CACHE)
    figures = next(iter(choosing.all.values())).figures
    head["before"] = {name: found.original.value for name, found in figures.items()}
    head["budgets"] = budgets_asked(choosing)
    head["rows"] = subject.rows
    head["refused"] = refused_by_unit(subject, bank)
    head["learned"] = [
        {**point(one), "nbytes": trial.nbytes, "recipe": trial.recipe.as_dict()} for one, trial in learned
    ]
    bank.journal.keep(f"{FRONTIER}{target}", {**head, "scale": dict(choosing.scale), "points": points})


def refused_by_unit(subject: Subject, bank: Bank) -> dict[str, list[str]]:
    """The forms of each unit that the target does not run as they are."""
    refused = subject.refused(bank)
    own = {
        unit: [form for form in forms if (subject.kinds[unit], form) in refused] for unit, forms in bank.options.items()
    }
    return {unit: forms for unit, forms in own.items() if forms}


def frontier_in(journal: Journal, target: str | None) -> dict[str, Any]:
    """The frontier of a search for a target; by default for the only one.

    Raises:
        ArtifactError: the search did not end, or it was for other targets.
    """
    names = [name.removeprefix(FRONTIER) for name in journal.names() if name.startswith(FRONTIER)]
    if not names:
        raise ArtifactError(
            f"{journal.folder}: the search did not end; run the same optimize again, it goes on from there"
        )
    if target is None and len(names) > 1:
        raise ArtifactError(f"{journal.folder}: the search was for {', '.join(names)}; name one as target")
    if target is not None and target not in names:
        raise ArtifactError(f"{journal.folder}: the search was for {', '.join(names)}, not for {target}")
    return journal.read(f"{FRONTIER}{target or names[0]}")


def recut(
    work: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    budget: Budget | Given | None = None,
    model: nn.Module | None = None,
    example: Any = None,
    data: Any = None,
    examples: Any = None,
    clusters: Any = None,
    target: str | None = None,
) -> Recut:
    """Build the closest model of so many bytes, or the smallest that is foreseen to stay inside a budget.

    With the data of the search it is certified too, at the full confidence, on the lot that certified there and had no
    part in choosing; the certificate is written into the folder. Certificates of several cuts are from one lot: each
    is valid by itself, for a cut that was decided on before the others' verdicts were seen, and not all of them
    together, nor the best of them. A point that was distilled in the search is taken as it is, where it is better than
    what can be put together.

    Args:
        work: the folder that `optimize` was given for its work.
        out: the folder to make.
        size: bytes that all tensors may take.
        budget: the accepted drop, in place of a size; as for `optimize`, in metrics that the search measured. With a
            size it is only what is certified; by default that of the search.
        model: the original, where it was a module; a language model is read from where it was.
        example: for a module, a batch that it takes.
        data, examples, clusters: as they were given to `optimize`, to certify with.
        target: whose frontier, where the search was for several.

    Raises:
        RecipeError: size and budget do not go together, or nothing there is small or close enough.
        ArtifactError: the search in that folder did not end, the model or the data has changed, or `out` is taken.
    """
    if (size is None and budget is None) or (size is not None and budget is not None and data is None):
        raise RecipeError("recut: give either a size or a budget; both only with data, to certify the budget")
    if not (Path(work) / HEAD).is_file():
        raise ArtifactError(f"{work} is no work of a search; give the folder that optimize worked in")
    with closing(Journal(Path(work))) as journal:  # whatever was asked wrongly, what is in it stays
        held = frontier_in(journal, target)
        subject = subject_of(held, model, example)
        if subject.fingerprint() != held["model"]:
            raise ArtifactError(f"recut: the model is not that with which {work} was made; give the same")
        units = {unit: layers for unit, layers in subject.units.items() if unit in held["points"][0]["choice"]}
        bank, budgets = Bank(journal, units, subject.forms), of_search(held, budget)
        lots = None if data is None else split(data, budgets, examples=examples, clusters=clusters)
        if lots is not None and of_tensors(lots.tensors) != read_json(Path(work) / HEAD)["data"]:
            raise ArtifactError(
                f"recut: the data is not that with which {work} was made; give the same, in the same order"
            )
        point, trial = chosen(subject, bank, held, size, budgets)
        kl, drops, verdict, certificate = point["kl"], point["drops"], point["verdict"], None
        if lots is not None:
            certificate = certify_models(
                subject.original,
                trial.open(),
                lots.certification,
                budgets,
                clusters=lots.clusters,
                planned=lots.units,
            )
            verdict = certificate.verdict
        notes = {"recut": {"kl": kl, "drops": drops, "verdict": verdict, "measured": point["measured"]}}
        proof = {} if certificate is None else {"certificate": plain(certificate)}
        folder = trial.write(Path(out), {**notes, **proof})
        return Recut(folder=folder, nbytes=trial.nbytes, kl=kl, drops=drops, verdict=verdict, certificate=certificate)


def chosen(
    subject: Subject, bank: Bank, held: Mapping[str, Any], size: int | None, budgets: Budgets
) -> tuple[Mapping[str, Any], Trial]:
    """What is known of the best cut, and the cut: put together, or as it had learned in the search.

    Raises:
        RecipeError: nothing is small or close enough.
    """
    first, measured = next(iter(held["before"])), {"measured": True}
    if size is not None:
        fits = [one for one in held.get("learned", []) if one["nbytes"] <= size]
        learned = min(fits, key=lambda one: float(one["drops"][first]), default=None)
    else:
        fits = [one for one in held.get("learned", []) if kept(held, one["drops"], budgets)]
        learned = min(fits, key=lambda one: int(one["nbytes"]), default=None)
    try:
        choice = of_size(bank, held, size) if size is not None else inside(bank, held, budgets)
    except RecipeError:
        if learned is None:
            raise
        return learned | measured, learned_trial(subject, bank, learned)
    trial = subject.assemble(bank, choice, "recut")
    known = next((point | measured for point in held["points"] if point["choice"] == choice), None)
    if known is None:
        kl = foreseen(bank, held, choice)
        known = {"kl": kl, "drops": drops_at(held, kl), "verdict": "", "measured": False}
    if learned is None:
        return known, trial
    better = learned["drops"][first] < known["drops"][first] if size is not None else learned["nbytes"] < trial.nbytes
    return (learned | measured, learned_trial(subject, bank, learned)) if better else (known, trial)


def learned_trial(subject: Subject, bank: Bank, point: Mapping[str, Any]) -> Trial:
    """A point that has learned in the search."""
    recipe = Recipe.of(point["recipe"])
    return subject.reopened(bank.journal.place(learned_key(recipe, point["choice"])), recipe)


def kept(held: Mapping[str, Any], drops: Mapping[str, float], budgets: Budgets) -> bool:
    """Whether drops are inside all budgets."""
    before = held["before"]
    return all(drops[kind.name] <= limit(own, kind, before[kind.name]) for kind, own in budgets.items())


def of_search(held: Mapping[str, Any], budget: Budget | Given | None) -> Budgets:
    """A budget for each metric: as it is given, or as the search had them.

    Raises:
        DataError: a metric is not one that the search measured, or one of the user's own that is not given again.
    """
    names = list(held["budgets"])
    if budget is None:
        given: Any = {name: Budget(**own) for name, own in held["budgets"].items()}
    elif isinstance(budget, Budget):
        given = {names[0]: budget}
    else:
        given = budget
    lost = [name for name in given if isinstance(name, str) and name in names and name not in METRICS]
    if lost:
        raise DataError(f"recut: the search was for {lost[0]}, a metric of your own; give it, {{metric: Budget()}}")
    budgets = budgets_of(given)
    strange = [kind.name for kind in budgets if kind.name not in names]
    if strange:
        raise DataError(f"recut: the search did not measure {strange[0]}; give a budget in {' or '.join(names)}")
    return budgets


def subject_of(held: Mapping[str, Any], model: nn.Module | None, example: Any) -> Subject:
    """The model of a search.

    Raises:
        ArtifactError: it was a module, which must be given.
    """
    place = torch.device("cpu")
    if held["folder"] is not None:
        return LanguageSubject(held["folder"], place, rows=held.get("rows", False))
    if model is None or example is None:
        raise ArtifactError("recut: the search was of a module; give it as model=, and a batch as example=")
    return ModuleSubject(model, example, place, rows=held.get("rows", False))


def of_size(bank: Bank, held: Mapping[str, Any], size: int) -> Choice:
    """The choice of least distance whose tensors take no more than so many bytes.

    Raises:
        RecipeError: the smallest takes more.
    """
    options = options_of(bank, held)
    sizes = [[option.nbytes for option in own.values()] for own in options.values()]
    kls = [[option.kl * held["scale"].get(form, 1.0) for form, option in own.items()] for own in options.values()]
    least = sum(map(min, sizes)) + held["beside"]
    if size < least:
        raise RecipeError(f"size: {size:,} bytes are too few; the smallest that can be built has {least:,}")
    chosen = choose(sizes, kls, size - held["beside"])
    return {unit: list(own)[k] for (unit, own), k in zip(options.items(), chosen, strict=True)}


def options_of(bank: Bank, held: Mapping[str, Any]) -> dict[str, dict[str, Option]]:
    """The forms of each unit that the target runs; the cache, which has no bytes, stays as the search held it."""
    refused = held.get("refused", {})
    options = {
        unit: {form: option for form, option in own.items() if form not in refused.get(unit, ())}
        for unit, own in bank.options.items()
    }
    if CACHE in options:
        options[CACHE] = {held["cache"]: options[CACHE][held["cache"]]}
    return options


def inside(bank: Bank, held: Mapping[str, Any], budgets: Budgets) -> Choice:
    """The smallest choice that is foreseen to stay inside all budgets: by bytes, halved until the drops fit.

    Raises:
        RecipeError: not even the largest does.
    """
    options = options_of(bank, held)
    low = sum(min(option.nbytes for option in own.values()) for own in options.values()) + held["beside"]
    high = sum(max(option.nbytes for option in own.values()) for own in options.values()) + held["beside"]
    best: Choice | None = None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        choice = of_size(bank, held, middle)
        if kept(held, drops_at(held, foreseen(bank, held, choice)), budgets):
            best, high = choice, middle
        else:
            low = middle
    if best is None:
        limits = " and ".join(f"{budget.max_drop:.2%} of {kind.name}" for kind, budget in budgets.items())
        raise RecipeError(f"budget: nothing in the bank is foreseen to drop less than {limits}")
    return best


def foreseen(bank: Bank, held: Mapping[str, Any], choice: Choice) -> float:
    """The distance of a choice from the original."""
    scale = held["scale"]
    return float(sum(bank.options[unit][form].kl * scale.get(form, 1.0) for unit, form in choice.items()))


def drops_at(held: Mapping[str, Any], kl: float) -> dict[str, float]:
    """The drop by each metric at a distance."""
    return {
        name: drop_at([(point["kl"], point["drops"][name]) for point in held["points"]], kl) for name in held["before"]
    }


def drop_at(measured: Sequence[tuple[float, float]], kl: float) -> float:
    """The drop at a distance, between those of the choices that were measured; beyond them along the last of it."""
    points = sorted(measured)
    kls, drops = (np.array(column) for column in zip(*points, strict=True))
    rising = np.maximum.accumulate(drops)
    if kl > kls[-1]:
        return float(rising[-1] * kl / kls[-1])
    return float(np.interp(kl, kls, rising))
