"""Recovery: choices bolder than the budget allows, which learn to say again what the original says.

Tried where a model is small enough, and a bolder choice foreseen to be cheaper by so much, that it is worth the time.
What comes of it is kept in the bank, and compared, timed and certified like any other candidate. How bold a choice may
be is found by the secant rule: the drop of what has learned is taken to grow as the distance of the choice that learns.
What has learned for other budgets, in the same bank, is looked at first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lissom.artifact.fingerprint import of_json
from lissom.errors import DataError
from lissom.evaluate import Metric
from lissom.files import plain
from lissom.progress import Progress
from lissom.search.bank import Choice
from lissom.search.choosing import POINTS, SMALL, Choosing, Seen, unused
from lissom.search.margins import half, limit
from lissom.search.subject import Trial
from lissom.types import Recipe, Step

RATE = 0.003
CALM = 0.015  # the rate is so much times the root of the nats to go, where that is less: what is near is not shaken up
NEAREST = 1e-6  # nats; what is foreseen to be nearer may be 0, or by rounding less
LEARN = Step(technique="distil", knobs={"epochs": 4, "lr": RATE})
LEARNED = "learned "  # how the names begin of what has, in the bank
TRIES = 3  # that learn, at most
FIRST, STEP = 8.0, (0.25, 2.0)  # times the distance of the boldest choice inside the budget; by how much it may change
NEAR = 1.5  # times what is known: what is closer to it is not worth another try
SURE = 1.5  # half widths of the drop's interval inside the budget
WORTH = 0.05  # of the cost of the boldest choice: what is to be saved at least


@dataclass(slots=True)
class Hunt:
    """How many times farther than the boldest choice one may be that learns: what to try, and what is known."""

    times: float = FIRST
    sure: float = 1.0
    unsure: float = math.inf

    @property
    def worth(self) -> bool:
        """Whether another try may tell more than is known."""
        return NEAR * self.sure <= self.times <= self.unsure / NEAR

    def learn(self, times: float, change: float) -> None:
        """What was so far may be changed by a factor: above 1 where it was surely inside."""
        if change > 1:
            self.sure = max(self.sure, times)
        else:
            self.unsure = min(self.unsure, times)
        self.times = times * change
        if not self.sure < self.times < self.unsure:
            self.times = math.sqrt(self.sure * self.unsure)


def recovered(choosing: Choosing) -> Iterator[tuple[Seen, Trial]]:
    """Bolder choices with what they have learned: bolder than the last where that is surely inside, else less bold."""
    inside = [one for one in choosing.seen if choosing.inside(one)]
    if choosing.subject.weights >= SMALL or not inside:
        return
    problem, scale = choosing.problem, choosing.scale
    boldest = min(inside, key=lambda one: problem.cost(one.choice))
    if not boldest.distance.value > 0:  # it says what the original says, and gives no measure of how far one may go
        return
    enough = (1 - WORTH) * problem.cost(boldest.choice)
    hunt, names = Hunt(), set[str]()
    known = earlier(choosing, enough)
    for choice in chain(known, bolder(choosing, enough, boldest.distance.value, hunt, known)):
        name = unused(f"{choosing.name(choice)}, distilled", names)
        names.add(name)
        try:
            far = problem.kl(choice, {})  # unlearned, so that every search says the same of it
            seen, trial = learned(choosing, learning(choosing.bank.recipe(choice, name), choosing.by, far), choice)
        except DataError:  # it went astray
            change = STEP[0]
        else:
            yield seen, trial
            change = further(choosing, seen)
        hunt.learn(problem.kl(choice, scale) / boldest.distance.value, change)


def earlier(choosing: Choosing, enough: float) -> list[Choice]:
    """Choices cheap enough that learned for other budgets, the closest to the original first.

    None that learned for this one: a search that goes on after it was cut short decides as if it had not been.
    """
    records = [choosing.bank.record(name) for name in choosing.bank.journal.names() if name.startswith(LEARNED)]
    choices = [own["choice"] for own in records if own["choice"] and own["budgets"] != budgets_asked(choosing)]
    problem, scale = choosing.problem, choosing.scale
    known = [one for one in choices if choosing.left.allows(one) and problem.cost(one) < enough]
    return sorted(known, key=lambda one: problem.kl(one, scale))


def bolder(choosing: Choosing, enough: float, unit: float, hunt: Hunt, known: Sequence[Choice]) -> Iterator[Choice]:
    """Points of the frontier that are to learn, as far as the hunt wants; `unit` is the distance that it counts in."""
    problem, scale = choosing.problem, choosing.scale
    points = [point for point in choosing.left.frontier(POINTS, scale) if problem.cost(point) < enough]
    tried = [*known]
    while points and len(tried) - len(known) < TRIES and hunt.worth:
        choice = min(points, key=lambda point: abs(problem.kl(point, scale) - hunt.times * unit))
        if choice in tried:
            return
        tried.append(choice)
        yield choice


def further(choosing: Choosing, seen: Seen) -> float:
    """How many times farther from the original a choice may be for what it learns to be just surely inside the budgets.

    Above 1 where this one is surely inside.
    """
    found = []
    for kind, budget in choosing.budgets.items():
        one = seen.figures[kind.name]
        room = limit(budget, kind, one.original.value) - SURE * half(one.drop)
        found.append(room / one.drop.value if one.drop.value > 0 else math.copysign(math.inf, room))
    return min(max(min(found), STEP[0]), STEP[1])


def learned(choosing: Choosing, recipe: Recipe, choice: Choice) -> tuple[Seen, Trial]:
    """A recipe that learns, and the choice that it makes, if it makes one; from now or from an earlier search.

    Raises:
        DataError: what it makes says nothing that can be compared.
    """
    subject, key = choosing.subject, learned_key(recipe, choice)

    def learn(folder: Path) -> None:
        choosing.tell(Progress(stage="recover", text=f"{recipe.name}: learn"))
        subject.compress_into(folder, recipe, choosing.lots.calibration, choice)

    record = {"choice": dict(choice), "budgets": budgets_asked(choosing)}
    trial = subject.reopened(choosing.bank.folder(key, record, learn), recipe)
    return choosing.compared(key, recipe.name, choice, lambda: trial), trial


def learning(recipe: Recipe, by: Metric, far: float = math.inf) -> Recipe:
    """A recipe, and the step that learns: predictions where a metric reads logits, else the numbers themselves.

    `far` is how far it is foreseen to be from the original before.
    """
    knobs = dict(LEARN.knobs)
    if not by.logits:
        knobs["loss"] = "mse"
    else:
        knobs["lr"] = min(RATE, float(f"{CALM * math.sqrt(max(far, NEAREST)):.2g}"))
    return Recipe(name=recipe.name, steps=(*recipe.steps, replace(LEARN, knobs=knobs)))


def learned_key(recipe: Recipe, choice: Choice) -> str:
    """The name of what a recipe made, in the bank; the choice tells what is of no layer."""
    return f"{LEARNED}{of_json([[step.as_dict() for step in recipe.steps], dict(choice)])[:24]}"


def budgets_asked(choosing: Choosing) -> dict[str, Any]:
    """The budgets, as they are written down."""
    return {kind.name: plain(budget) for kind, budget in choosing.budgets.items()}
