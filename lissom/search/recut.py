"""Re-cut: another point of a frontier that was found before, put together from the bank without calibrating again."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lissom.artifact.journal import Journal
from lissom.errors import ArtifactError, RecipeError
from lissom.search.allocate import choose
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import Choosing
from lissom.search.forms import CACHE
from lissom.search.sensitivity import Option
from lissom.search.subject import LanguageSubject, ModuleSubject, Subject
from lissom.types import Budget

FRONTIER = "frontier"  # the name of its record in the bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Recut:
    """What was built: its bytes, the KL and the drop that are foreseen of it, and its verdict where it has one."""

    folder: Path
    nbytes: int
    kl: float
    drop: float
    verdict: str


def remember(bank: Bank, choosing: Choosing, verdicts: Mapping[str, str], subject: Subject) -> None:
    """Write down what a later cut is made by: what was measured, and how distances of forms add up."""
    points = [
        {
            "name": one.name,
            "choice": dict(one.choice),
            "kl": one.distance.value,
            "drop": next(iter(one.figures.values())).drop.value,
            "verdict": verdicts.get(one.name, ""),
        }
        for one in choosing.all.values()
    ]
    allowed = [one for one in choosing.seen if choosing.inside(one)] or choosing.seen
    cheapest = min(allowed, key=lambda one: choosing.problem.cost(one.choice), default=None)
    held = None if cheapest is None else cheapest.choice.get(CACHE)
    head = {"cache": held, "model": subject.fingerprint(), "folder": subject.folder, "beside": subject.beside}
    bank.journal.keep(FRONTIER, {**head, "scale": dict(choosing.scale), "points": points})


def recut(
    work: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    budget: Budget | None = None,
    model: nn.Module | None = None,
    example: Any = None,
) -> Recut:
    """Build the closest model of so many bytes, or the smallest that is foreseen to stay inside a budget.

    Args:
        work: the folder that `optimize` was given for its work.
        out: the folder to make.
        size: bytes that all tensors may take.
        budget: the accepted drop, in place of a size.
        model: the original, where it was a module; a language model is read from where it was.
        example: for a module, a batch that it takes.

    Raises:
        RecipeError: neither or both of size and budget are given, or nothing there is small or close enough.
        ArtifactError: the search in that folder did not end, the model has changed, or `out` is taken.
    """
    if (size is None) == (budget is None):
        raise RecipeError("recut: give either a size or a budget")
    if not (Path(work) / "journal.json").is_file():
        raise ArtifactError(f"{work} is no work of a search; give the folder that optimize worked in")
    with closing(Journal(Path(work))) as journal:  # whatever was asked wrongly, what is in it stays
        if not journal.has(FRONTIER):
            raise ArtifactError(f"{work}: the search did not end; run the same optimize again, it goes on from there")
        held = journal.read(FRONTIER)
        subject = subject_of(held, model, example)
        if subject.fingerprint() != held["model"]:
            raise ArtifactError(f"recut: the model is not that with which {work} was made; give the same")
        units = {unit: layers for unit, layers in subject.units.items() if unit in held["points"][0]["choice"]}
        bank = Bank(journal, units, subject.forms)
        choice = of_size(bank, held, size) if size is not None else inside(bank, held, budget or Budget())
        trial = subject.assemble(bank, choice, "recut")
        known = next((point for point in held["points"] if point["choice"] == choice), None)
        kl = known["kl"] if known else foreseen(bank, held, choice)
        drop = known["drop"] if known else drop_at(held, kl)
        verdict = known["verdict"] if known else ""
        notes = {"recut": {"kl": kl, "drop": drop, "verdict": verdict, "measured": known is not None}}
        return Recut(folder=trial.write(Path(out), notes), nbytes=trial.nbytes, kl=kl, drop=drop, verdict=verdict)


def subject_of(held: Mapping[str, Any], model: nn.Module | None, example: Any) -> Subject:
    """The model of a search.

    Raises:
        ArtifactError: it was a module, which must be given.
    """
    place = torch.device("cpu")
    if held["folder"] is not None:
        return LanguageSubject(held["folder"], place)
    if model is None or example is None:
        raise ArtifactError("recut: the search was of a module; give it as model=, and a batch as example=")
    return ModuleSubject(model, example, place)


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
    """The forms of each unit; the cache, which has no bytes in a folder, stays as the search held it."""
    options = dict(bank.options)
    if CACHE in options:
        options[CACHE] = {held["cache"]: options[CACHE][held["cache"]]}
    return options


def inside(bank: Bank, held: Mapping[str, Any], budget: Budget) -> Choice:
    """The smallest choice that is foreseen to stay inside a budget: by bytes, halved until the drop fits.

    Raises:
        RecipeError: not even the largest does.
    """
    options = bank.options
    low = sum(min(option.nbytes for option in own.values()) for own in options.values()) + held["beside"]
    high = sum(max(option.nbytes for option in own.values()) for own in options.values()) + held["beside"]
    best: Choice | None = None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        choice = of_size(bank, held, middle)
        if drop_at(held, foreseen(bank, held, choice)) <= budget.max_drop:
            best, high = choice, middle
        else:
            low = middle
    if best is None:
        raise RecipeError(f"budget: nothing in the bank is foreseen to drop less than {budget.max_drop:.2%}")
    return best


def foreseen(bank: Bank, held: Mapping[str, Any], choice: Choice) -> float:
    """The distance of a choice from the original."""
    scale = held["scale"]
    return float(sum(bank.options[unit][form].kl * scale.get(form, 1.0) for unit, form in choice.items()))


def drop_at(held: Mapping[str, Any], kl: float) -> float:
    """The drop at a distance, between those of the choices that were measured; beyond them along the last of it."""
    points = sorted((point["kl"], point["drop"]) for point in held["points"])
    kls, drops = (np.array(column) for column in zip(*points, strict=True))
    rising = np.maximum.accumulate(drops)
    if kl > kls[-1]:
        return float(rising[-1] * kl / kls[-1])
    return float(np.interp(kl, kls, rising))
