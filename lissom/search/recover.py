"""Recovery: choices bolder than the budget allows, which learn to say again what the original says.

Tried where a model is small enough, and a bolder choice foreseen to be cheaper by so much, that it is worth the time.
What comes of it is kept in the bank, and compared, timed and certified like any other candidate. How bold a choice may
be is found by the secant rule: the drop of what has learned is taken to grow as the distance of the choice that learns.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from lissom.errors import DataError
from lissom.progress import Progress
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import POINTS, SMALL, Choosing, Seen, digest
from lissom.search.margins import half, limit
from lissom.search.subject import Trial
from lissom.types import Recipe, Step

LEARN = Step(technique="distil", knobs={"epochs": 4, "lr": 0.003})
TRIES = 3  # that learn, at most
FIRST, STEP = 8.0, (0.25, 2.0)  # times the distance of the boldest choice inside the budget; by how much it may change
NEAR = 1.5  # times what is known: what is closer to it is not worth another try
SURE = 1.5  # half widths of the drop's interval inside the budget
WORTH = 0.05  # of the cost of the boldest choice: what is to be saved at least


def recovered(choosing: Choosing) -> Iterator[tuple[Seen, Trial]]:
    """Bolder choices with what they have learned: bolder than the last where that is surely inside, else less bold."""
    inside = [one for one in choosing.seen if choosing.inside(one)]
    if choosing.subject.weights >= SMALL or not inside:
        return
    problem, scale = choosing.problem, choosing.scale
    boldest = min(inside, key=lambda one: problem.cost(one.choice))
    enough = (1 - WORTH) * problem.cost(boldest.choice)
    points = [point for point in problem.frontier(POINTS, scale) if problem.cost(point) < enough]
    tried: list[Choice] = []
    times, sure, unsure = FIRST, 1.0, math.inf
    while points and len(tried) < TRIES and NEAR * sure <= times <= unsure / NEAR:
        wanted = times * boldest.distance.value
        choice = min(points, key=lambda point: abs(problem.kl(point, scale) - wanted))
        if choice in tried:
            return
        tried.append(choice)
        try:
            seen, trial = learned(choosing, choice, f"{choosing.name(choice)}, distilled")
        except DataError:  # it went astray
            change = STEP[0]
        else:
            yield seen, trial
            change = further(choosing, seen)
        sure, unsure = (times, unsure) if change > 1 else (sure, times)
        times *= change
        if not sure < times < unsure:
            times = math.sqrt(sure * unsure)


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


def learned(choosing: Choosing, choice: Choice, name: str) -> tuple[Seen, Trial]:
    """A choice that has learned, now or in an earlier search.

    Raises:
        DataError: it says nothing that can be compared.
    """
    subject, key = choosing.subject, learned_key(choice)
    recipe = learning(choosing.bank, choice, name)

    def learn(folder: Path) -> None:
        choosing.tell(Progress(stage="recover", text=f"{name}: learn"))
        subject.compress_into(folder, recipe, choosing.lots.calibration, choice)

    trial = subject.reopened(choosing.bank.folder(key, learn), recipe)
    return choosing.compared(key, name, choice, lambda: trial), trial


def learning(bank: Bank, choice: Choice, name: str) -> Recipe:
    """The steps that make a choice, and the one that learns."""
    return Recipe(name=name, steps=(*bank.recipe(choice, name).steps, LEARN))


def learned_key(choice: Choice) -> str:
    """The name of what a choice has learned, in the bank."""
    return f"learned {digest(choice)}"
