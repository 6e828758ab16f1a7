"""Recovery: choices bolder than the budget allows, which learn to say again what the original says.

Tried where a model is small enough for it to be worth the time; what comes of it is compared, timed and certified like
any other candidate.
"""

from collections.abc import Iterator

from lissom.errors import DataError
from lissom.progress import Progress
from lissom.search.bank import Choice
from lissom.search.choosing import POINTS, SMALL, Choosing, Seen
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
            return
        tried.append(choice)
        name = f"{choosing.name(choice)}, distilled"
        choosing.tell(Progress(stage="recover", text=f"{name}: learn"))
        recipe = choosing.bank.recipe(choice, name)
        try:
            trial = choosing.subject.compress(
                Recipe(name=name, steps=(*recipe.steps, LEARN)), choosing.lots.calibration, choice
            )
            figures, far = choosing.yardstick.compare(trial.open())
        except DataError:  # it went astray
            return
        seen = Seen(name=name, choice=choice, figures=figures, distance=far)
        yield seen, trial
        if not choosing.inside(seen):
            return
