"""The search: many candidates are made and compared on data for choosing; the certificate decides on data of its own.

Each layer is made in every form that it may take, from one pass over the data (`bank.py`); how long each form takes is
measured in the model, on the target (`latency.py`), or costed where that is not here (`costed.py`); the frontier of all
choices is solved for (`joint.py`), corrected by choices that were measured as a whole, and improved from there
(`choosing.py`, `local.py`). Bolder choices of small models learn (`recover.py`), with fewer channels where time counts
(`narrow.py`). Or the candidates are recipes of the user's own.

What a candidate costs is its bytes times its time (or as is preferred), each as a ratio to the original's; one that
costs no less than the original is dropped. Those that look good enough, and that no other beats in both cost and
closeness to the original (by KL divergence), are certified on examples of their own, each at the full confidence,
until one does not pass; first the one that is expected to be farthest inside the budget, by the data for choosing
(`margins.py`). Testing in an order fixed beforehand and stopping at the first that fails keeps the chance of any false
pass at 1 - confidence (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021, arXiv:2110.01052, section
3.2): that many candidates were tried costs nothing, and of those that passed any may be taken: the cheapest is chosen,
and the smallest and the fastest are told beside it. Of several metrics each is tested at the full confidence, and all
must pass: a model that breaks some budget is passed only if that very one is passed falsely (an intersection-union
test; Berger, Technometrics 1982).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from lissom.artifact.fingerprint import of_code, of_tensors
from lissom.artifact.journal import Journal
from lissom.calibrate.data import each
from lissom.errors import DataError, RecipeError
from lissom.evaluate import METRICS, Budgets, Given, budgets_of
from lissom.hardware import Target, targets_named
from lissom.models.layers import check_module
from lissom.progress import Progress, Tell, quiet
from lissom.search.candidates import by_recipes, joint
from lissom.search.concluding import concluded
from lissom.search.costed import CostedSubject
from lissom.search.costs import AREA
from lissom.search.joint import Prefer, weights_of
from lissom.search.language import PROMPT, LanguageSubject
from lissom.search.module import ModuleSubject
from lissom.search.result import Result
from lissom.search.room import at_once, within
from lissom.search.split import Split, split
from lissom.search.subject import Subject
from lissom.search.trying import ORIGINAL, Terms
from lissom.types import Budget, Recipe


@overload
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
) -> Result: ...
@overload
def optimize(
    model: nn.Module | str | Path,
    data: Any,
    budget: Budget | Given | None = None,
    *,
    target: tuple[str, ...] | list[str],
    prefer: Prefer = "both",
    examples: Any = None,
    clusters: Any = None,
    recipes: Sequence[Recipe] | None = None,
    work: str | Path | None = None,
    max_ram: int | None = None,
    prompt: int | None = None,
    progress: Tell = quiet,
) -> dict[str, Result]: ...
def optimize(
    model: nn.Module | str | Path,
    data: Any,
    budget: Budget | Given | None = None,
    *,
    target: str | tuple[str, ...] | list[str] = "cpu",
    prefer: Prefer = "both",
    examples: Any = None,
    clusters: Any = None,
    recipes: Sequence[Recipe] | None = None,
    work: str | Path | None = None,
    max_ram: int | None = None,
    prompt: int | None = None,
    progress: Tell = quiet,
) -> Result | dict[str, Result]:
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
        target: the hardware to make it for. What is here is measured ("cpu", "cuda"); what is not is costed, and named
            with its device ("cuda:h200", "tpu:v5e", "fpga:xcu250-figd2104-2L-e"). Of several each has a result of its
            own, by its name, from one calibration; their certificates are valid one by one, not all of them together.
        prefer: what cheap means: "size", "latency", or "both", their product; for a language model also "prefill" and
            "decode"; or the exponent of each in the product, such as {"size": 1, "decode": 2}. Of a circuit the size is
            the area that it takes.
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
        LissomError: a target is none that there is.
    """
    targets, module = targets_named(target), isinstance(model, nn.Module)
    check_asked(module, recipes, max_ram, prompt)
    weights = [weights_on(one, prefer, module) for one in targets]
    budgets = budgets_for(budget, module)
    by = next(iter(budgets))
    if not (module or by.logits):
        by = METRICS["perplexity"]  # it reads the logits of windows
    lots = split(data, budgets, examples=examples, clusters=clusters)
    rows, places = any(one.kind == "fpga" for one in targets), {one.place.type: one.place for one in targets}
    here = {name: subject_at(place, model, lots, prompt, rows) for name, place in places.items()}
    first = next(iter(here.values()))
    if isinstance(first, LanguageSubject) and recipes is None:
        works = len(set(first.kinds.values()))
        tokens = within(first.checkpoint, first.forms, works, lots, (*budgets, by), max_ram, progress)
        budgets, by = {at_once(kind, tokens): budget for kind, budget in budgets.items()}, at_once(by, tokens)
    asked: list[Asked] = []
    for one, own in zip(targets, weights, strict=True):
        subject = here[one.place.type] if one.measured else CostedSubject(here[one.place.type], one)
        tell = progress if len(targets) == 1 else partial(told, str(one), progress)
        terms = Terms(budgets=budgets, by=by, target=str(one), how=one.how, weights=own, progress=tell)
        asked.append((subject, terms))
    if recipes is not None:
        found = [concluded(subject, by_recipes(subject, recipes, lots, terms), lots, terms) for subject, terms in asked]
    else:
        found = searched(asked, lots, work, max_ram)
    return found[0] if isinstance(target, str) else {result.target: result for result in found}


Asked = tuple[Subject, Terms]  # what is searched over for a target, and how


def subject_at(
    place: torch.device, model: nn.Module | str | Path, lots: Split, prompt: int | None, rows: bool
) -> Subject:
    """The model as what a search makes smaller, in a place."""
    if isinstance(model, nn.Module):
        check_module(model)
        example = each(lots.calibration, lambda part: part[:2])
        return ModuleSubject(model, example, place, lots.outputs, rows=rows)
    return LanguageSubject(model, place, PROMPT if prompt is None else prompt, rows=rows)


def weights_on(target: Target, prefer: Prefer, module: bool) -> dict[str, float]:
    """How much each part of the cost counts on a target; what is small on an FPGA is its circuit.

    Raises:
        DataError: it is none of the preferences, or names a part that the model has not.
    """
    found = weights_of(prefer, () if module else ("prefill", "decode"))
    return {AREA if target.kind == "fpga" and part == "size" else part: weight for part, weight in found.items()}


def told(target: str, tell: Tell, event: Progress) -> None:
    """Tell what is being done, and for which of several targets."""
    tell(replace(event, text=f"{target}: {event.text}"))


def searched(asked: Sequence[Asked], lots: Split, work: str | Path | None, max_ram: int | None) -> list[Result]:
    """What the joint search finds for each target; what is made on the way stays in the folder `work`, if there is one.

    Every layer in every form is made once for all of them.
    """
    subject, terms = asked[0]
    given = {"model": subject.fingerprint(), "data": of_tensors(lots.tensors), "code": of_code()}
    given["kind of distance"] = "KL" if terms.by.logits else "squared error"
    with (
        tempfile.TemporaryDirectory(prefix="lissom-") as scratch,
        Journal.open(Path(work or scratch), given) as journal,
    ):
        return [concluded(own, joint(own, journal, lots, max_ram, how), lots, how) for own, how in asked]


def budgets_for(given: Budget | Given | None, module: bool) -> Budgets:
    """What was given as budget, by metric."""
    return budgets_of(
        given if isinstance(given, Mapping) else {"accuracy" if module else "perplexity": given or Budget()}
    )


def check_asked(module: bool, recipes: Sequence[Recipe] | None, max_ram: int | None, prompt: int | None) -> None:
    """See that nothing was asked for that goes with something else only.

    Raises:
        DataError: it was.
        RecipeError: the recipes cannot be told from each other.
    """
    if module and max_ram is not None:
        raise DataError("max_ram: a module is in memory already; leave it out")
    if module and prompt is not None:
        raise DataError("prompt: a module answers none; leave it out")
    if recipes is not None and max_ram is not None:
        raise DataError("max_ram: recipes of your own are tried without a bound; leave out one of the two")
    if recipes is not None:
        check_names(recipes)


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
