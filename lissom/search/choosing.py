"""Choosing: from a bank to the few choices that are worth certifying, by what is measured on the data for choosing.

The frontier that is foreseen is walked by bisection to the boldest choice that stays inside the budget; what was
measured on the way corrects what is foreseen, and the frontier is walked again. From its end local search goes on, as
long as the next bolder choice can be brought inside the budget. Whatever was measured is written down in the bank.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, count
from typing import Any

from torch import nn

from lissom.artifact.fingerprint import of_json
from lissom.estimate import Estimate
from lissom.evaluate import Budgets, Comparison, Metric
from lissom.files import plain
from lissom.progress import FrontierPoint, Progress, Tell
from lissom.search.bank import Bank, Choice
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.joint import Problem
from lissom.search.local import improved
from lissom.search.margins import clear, limit
from lissom.search.result import StepRow
from lissom.search.split import Split
from lissom.search.subject import LARGE, Subject, Trial
from lissom.search.yardstick import Enough, Yardstick

POINTS = 40  # of the frontier
SMALL = 50_000_000  # weights of a model that is run in no time
LADDER = {True: (1, 2, 3, 4, 5, 6, 7, 9), False: (1, 2, 4, 7)}  # points so much safer than the boldest, measured too
BOLDER = 3  # points beyond it that local search tries to bring inside the budget
GENERATIONS = {True: 6, False: 2}  # of local search, for small models and for others; large ones have none
HARDLY = 1.1  # times the cost of what was found: a choice of one form everywhere may be as cheap in truth
UNIFORM = (SAFE, "4 bits", "shared 4 bits", "half pruned, 8 bits", "half pruned, 4 bits", "3 bits")
TABLES = {form: f"{form}, tables in {SAFE}" for form in UNIFORM}  # the same, but for what is looked up in
PLAIN = {*UNIFORM, *TABLES.values()}  # how choices are called that all are compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A choice as it was measured on the data for choosing: by each metric, and how far from the original it is."""

    name: str
    choice: Choice
    figures: Mapping[str, Comparison]
    distance: Estimate

    @property
    def drop(self) -> float:
        """By the metric, or the first of several."""
        return next(iter(self.figures.values())).drop.value


class Choosing:
    """What is known of choices, and how more is found out.

    Args:
        subject: the model.
        bank: its layers in all forms.
        problem: what they cost.
        lots: the data.
        budgets: the accepted drop in each metric.
        by: the metric that reads the outputs by which distances are told.
        pays: what each step of a choice saves, measured.
        tell: told what is being done.
    """

    def __init__(
        self,
        subject: Subject,
        bank: Bank,
        problem: Problem,
        lots: Split,
        budgets: Budgets,
        by: Metric,
        pays: Callable[[Choice], Sequence[StepRow]],
        tell: Tell,
    ) -> None:
        self.subject, self.bank, self.problem, self.lots = subject, bank, problem, lots
        self.left = problem  # without the steps that were undone
        self.plain: set[str] = set()  # digests of the choices of one form everywhere, which stay all the same
        self.budgets, self.by, self.pays, self.tell = budgets, by, pays, tell
        self.asked = of_json([by.name, *(kind.name for kind in budgets)])  # what was measured is of these
        self.all: dict[str, Seen] = {}
        self.scale: Mapping[str, float] = {}
        self.steps: Sequence[StepRow] = ()
        self.told: tuple[FrontierPoint, ...] = ()

    @property
    def small(self) -> bool:
        """Whether the model is run in no time."""
        return self.subject.weights < SMALL

    @property
    def seen(self) -> list[Seen]:
        """The choices that were measured, but for those that chose a step that was undone."""
        return [one for key, one in self.all.items() if key in self.plain or self.left.allows(one.choice)]

    def walk(self) -> None:
        """Measure what may be worth certifying, choices of one form everywhere among it."""
        points = self.left.frontier(POINTS, self.scale)
        boldest = self.bisect(points)
        if self.inside(self.measured(points[boldest])):
            self.steps = self.pays(points[boldest])
            vain = {(step.kind, step.form) for step in self.steps if not step.kept}
            self.left = self.left.without(self.subject.kinds, vain)  # they would cost quality for nothing
        self.scale = self.left.learned([(one.choice, one.distance.value) for one in self.seen])
        points = self.left.frontier(POINTS, self.scale)
        boldest = self.bisect(points)
        safe = everywhere(self.left, SAFE)
        if self.left.allows(safe):
            self.measured(safe, SAFE)
        for step in LADDER[self.small]:
            self.measured(points[max(0, boldest - step)])
        self.uniform(self.problem.cost(points[boldest]))
        self.beyond(points, boldest)

    def bisect(self, points: Sequence[Choice]) -> int:
        """The last of the points that stays inside the budget, as if all before it did."""
        low, high = 0, len(points)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.inside(self.measured(points[middle])) else (low, middle)
        self.measured(points[low])
        return low

    def inside(self, seen: Seen) -> bool:
        """Whether a choice stays inside all budgets, as far as the data for choosing tells."""
        return not broken(self.budgets, seen.figures)

    def uniform(self, cost: float) -> None:
        """Measure choices of one form everywhere that would cost hardly more than what was found, or less.

        What is foreseen of each form is a little off, and the frontier collects what is off in its favour; that a step
        was undone may be chance. Tables that are looked up in, a head too where that is the same, are tried in the safe
        form as well, as people do.
        """
        tables = [unit for unit in self.problem.forms if isinstance(self.subject.layers.get(unit), nn.Embedding)]
        for form in UNIFORM:
            plain = everywhere(self.problem, form)
            safer = {**plain, **dict.fromkeys(tables, SAFE)}
            for choice, name in ((plain, form), (safer, TABLES[form])):
                wanted = form in choice.values() and self.problem.allows(choice)
                if wanted and self.problem.cost(choice) < HARDLY * cost and (choice is plain or choice != plain):
                    self.plain.add(digest(choice))
                    self.measured(choice, name)

    def beyond(self, points: Sequence[Choice], boldest: int) -> None:
        """Improve the boldest point, and bolder ones as long as they can be brought inside the budget."""
        if self.subject.weights >= LARGE:
            return
        generations = GENERATIONS[self.small]
        for point in points[boldest : boldest + 1 + BOLDER]:
            self.tell(Progress(stage="choose", text="local search", done=len(self.all)))
            better, _ = improved(self.left, point, self.distance, self.scale, generations=generations)
            if not self.inside(self.measured(better)):
                break

    @cached_property
    def yardstick(self) -> Yardstick:
        """What the original says to the data for choosing."""
        return yardstick_of(self.subject, self.lots, self.budgets, self.by)

    def distance(self, choice: Choice) -> float:
        """How far a choice is from the original."""

        def looked() -> dict[str, Any]:
            return {"value": self.yardstick.distance(self.subject.assemble(self.bank, choice, "").open())}

        return float(self.bank.known(f"distance {digest(choice)} {self.by.name}", looked)["value"])

    def measured(self, choice: Choice, name: str = "") -> Seen:
        """A choice compared with the original on the data for choosing."""
        key = digest(choice)
        if key not in self.all:
            name = name or self.name(choice)
            self.all[key] = self.compared(key, name, choice, lambda: self.subject.assemble(self.bank, choice, name))
            self.tell(self.news_of(self.all[key]))
        return self.all[key]

    def compared(self, key: str, name: str, choice: Choice, made: Callable[[], Trial]) -> Seen:
        """What a choice turned out to be on the data for choosing, or on a part where that is clear; remembered.

        It is looked at anew, and to the end, where what is remembered was clear for another budget only.
        """

        def compare(will_do: Enough) -> dict[str, Any]:
            told = [False]

            def enough(figures: Mapping[str, Comparison]) -> bool:
                told.append(will_do(figures))
                return told[-1]

            self.tell(Progress(stage="choose", text=f"{name}: compare", done=len(self.all)))
            figures, far = self.yardstick.compare(made().open(), enough)
            return {"figures": plain(figures), "distance": plain(far), "part": told[-1]}

        record, clearly = f"compared {key} {self.asked}", partial(clear, self.budgets)
        held = self.bank.known(record, lambda: compare(clearly))
        figures = figures_of(held)
        if held["part"] and not clearly(figures):
            held = self.bank.known(f"{record} to the end", lambda: compare(lambda figures: False))
            figures = figures_of(held)
        return Seen(name=name, choice=choice, figures=figures, distance=Estimate(**held["distance"]))

    def news_of(self, seen: Seen) -> Progress:
        """What a choice turned out to be, with the frontier if that changed it."""
        before, self.told = self.told, self.standing()
        return Progress(
            stage="choose",
            text=f"{seen.name}: drop {seen.drop:.2%}",
            done=len(self.all),
            frontier=self.told if self.told != before else None,
        )

    def standing(self) -> tuple[FrontierPoint, ...]:
        """The choices inside the budget that are closer to the original than all cheaper ones, the cheapest first."""
        inside = [one for one in self.seen if self.inside(one) and set(one.choice.values()) != {ORIGINAL}]
        costs = {one.name: self.problem.cost(one.choice) for one in inside}
        found, nearest = list[FrontierPoint](), math.inf
        for one in sorted(inside, key=lambda one: (costs[one.name], one.distance.value)):
            if one.distance.value < nearest:
                nearest, nbytes = one.distance.value, self.nbytes(one.choice)
                found.append(FrontierPoint(name=one.name, nbytes=nbytes, drop=one.drop))
        return tuple(found)

    def nbytes(self, choice: Choice) -> int:
        """The bytes of the model that a choice makes."""
        return sum(self.bank.options[unit][form].nbytes for unit, form in choice.items()) + self.subject.beside

    def name(self, choice: Choice) -> str:
        """A name that tells how small a choice is."""
        bits = 8 * self.nbytes(choice) / self.subject.weights
        return unused(f"mixed, {bits:.2f} bits", {one.name for one in self.all.values()})


def yardstick_of(subject: Subject, lots: Split, budgets: Budgets, by: Metric) -> Yardstick:
    """What the original says to the data for choosing."""
    return Yardstick(subject.original, lots.selection, budgets, (lots.outputs, by))


def figures_of(held: Mapping[str, Any]) -> dict[str, Comparison]:
    """Figures by metric, from JSON."""
    return {kind: comparison_of(one) for kind, one in held["figures"].items()}


def comparison_of(held: Mapping[str, Any]) -> Comparison:
    """Figures from JSON."""
    read: Any = {name: Estimate(**one) if isinstance(one, dict) else one for name, one in held.items()}
    return Comparison(**read)


def broken(budgets: Budgets, figures: Mapping[str, Comparison]) -> str:
    """The first budget that is broken on the data for choosing, in words; empty where all hold."""
    for kind, budget in budgets.items():
        found = figures[kind.name]
        if not found.drop.value <= limit(budget, kind, found.original.value):
            of = f" of {kind.name}" if len(budgets) > 1 else ""
            return f"dropped {found.drop.value:.2%}{of} on the data for choosing"
    return ""


def everywhere(problem: Problem, form: str) -> dict[str, str]:
    """One form for all layers that can take it, the safe one for others; the cache is held as is cheapest."""
    choice = {unit: form if form in forms else SAFE for unit, forms in problem.forms.items()}
    if CACHE in choice:
        costs = problem.costs[CACHE]
        choice[CACHE] = problem.forms[CACHE][costs.index(min(costs))]
    return choice


def unused(name: str, taken: Collection[str]) -> str:
    """The name, or with a number behind it where it is taken."""
    names = chain([name], (f"{name} ({number})" for number in count(2)))
    return next(one for one in names if one not in taken)


def digest(choice: Choice) -> str:
    """Equal for equal choices."""
    return hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:24]
