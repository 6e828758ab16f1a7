"""Recovery: choices bolder than the budget allows, which learn to say again what the original says.

Tried where a model is small enough for it to be worth the time; what comes of it is kept in the bank, and compared,
timed and certified like any other candidate.
"""

from collections.abc import Iterator
from pathlib import Path

from lissom.errors import DataError
from lissom.progress import Progress
from lissom.search.bank import Bank, Choice
from lissom.search.choosing import POINTS, SMALL, Choosing, Seen, digest
from lissom.search.margins import margins
from lissom.search.subject import Trial
from lissom.types import Recipe, Step

LEARN = Step(technique="distil", knobs={"epochs": 4, "lr": 0.003})
FARTHER = (4.0, 8.0, 16.0)  # times the distance of the boldest choice inside the budget
NEARER = (2.0, 1.0)  # the same, where the first of them is too bold
SURE = 1.5  # half widths of the drop's interval inside the budget


def recovered(choosing: Choosing) -> Iterator[tuple[Seen, Trial]]:
    """Bolder choices with what they have learned: ever bolder ones as long as they are surely inside the budget.

    If the first is not, ever less bold ones until one is.
    """
    inside = [one for one in choosing.seen if choosing.inside(one)]
    if choosing.subject.weights >= SMALL or not inside:
        return
    problem, scale = choosing.problem, choosing.scale
    boldest = min(inside, key=lambda one: problem.cost(one.choice))
    points = [point for point in problem.frontier(POINTS, scale) if problem.cost(point) < problem.cost(boldest.choice)]
    tried: list[Choice] = []
    ahead, found = list(FARTHER if points else ()), False
    while ahead:
        times = ahead.pop(0)
        wanted = times * boldest.distance.value
        choice = min(points, key=lambda point: abs(problem.kl(point, scale) - wanted))
        if choice in tried:
            continue
        tried.append(choice)
        try:
            seen, trial = learned(choosing, choice, f"{choosing.name(choice)}, distilled")
        except DataError:  # it went astray
            sure = False
        else:
            yield seen, trial
            sure = surely(choosing, seen)
        if not sure:
            ahead = [] if found else [nearer for nearer in NEARER if nearer < times]
        elif times in NEARER:
            return
        else:
            found = True


def surely(choosing: Choosing, seen: Seen) -> bool:
    """Whether what has learned is so far inside the budgets on the data for choosing that others will hardly differ."""
    (margin,) = margins(choosing.budgets, [seen.figures], [seen.distance.value], [True])
    return margin >= SURE


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
