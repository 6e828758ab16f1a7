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
from lissom.search.subject import Trial
from lissom.types import Recipe, Step

LEARN = Step(technique="distil", knobs={"epochs": 2})
FARTHER = (2.0, 4.0, 8.0)  # times the distance of the boldest choice inside the budget


def recovered(choosing: Choosing) -> Iterator[tuple[Seen, Trial]]:
    """Bolder choices with what they have learned, from the less to the more bold, until one leaves the budget."""
    inside = [one for one in choosing.seen if choosing.inside(one)]
    if choosing.subject.weights >= SMALL or not inside:
        return
    problem, scale = choosing.problem, choosing.scale
    boldest = min(inside, key=lambda one: problem.cost(one.choice))
    points = [point for point in problem.frontier(POINTS, scale) if problem.cost(point) < problem.cost(boldest.choice)]
    tried: list[Choice] = []
    for times in FARTHER if points else ():
        wanted = times * boldest.distance.value
        choice = min(points, key=lambda point: abs(problem.kl(point, scale) - wanted))
        if choice in tried:
            continue
        tried.append(choice)
        try:
            seen, trial = learned(choosing, choice, f"{choosing.name(choice)}, distilled")
        except DataError:  # it went astray
            return
        yield seen, trial
        if not choosing.inside(seen):
            return


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
