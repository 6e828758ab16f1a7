"""Structure: models with fewer channels, which learn to say again what the original says.

They are no form of a layer, for channels change several layers together, and what they cost can be told only after
they have learned. But where every form takes about the same time, as in small ResNets in 8 bits, nothing else is
faster. So they are tried where time counts, every layer in the safe form and so much of all multiplications gone; how
much is found by the secant rule, as for other bold choices (`recover.py`).
"""

from collections.abc import Iterator

from lissom.errors import DataError
from lissom.search.choosing import SMALL, Choosing, Seen
from lissom.search.forms import SAFE
from lissom.search.recover import STEP, TRIES, WORTH, Hunt, further, learned, learning
from lissom.search.subject import Trial
from lissom.types import Recipe

GRID = 16  # shares of the multiplications are in such parts of them: other budgets find what has learned for one
FIRST, MOST = 0.125, 0.5  # of the multiplications
POWER = 1.7  # the drop grows as so much of the share: ResNet-20 (docs/log-2026-11-28.md)


def narrowed(choosing: Choosing) -> Iterator[tuple[Seen, Trial]]:
    """Models with fewer channels that may be cheaper than the boldest choice inside the budget.

    Each is bolder than the last where that is surely inside, else less bold. What the safe form does not make faster
    stays in the safest that there is.
    """
    problem, subject = choosing.problem, choosing.subject
    inside = [one for one in choosing.seen if choosing.inside(one)]
    if subject.weights >= SMALL or not inside:
        return
    whole = {unit: SAFE if SAFE in forms else forms[0] for unit, forms in problem.forms.items()}
    enough = (1 - WORTH) * min(problem.cost(one.choice) for one in inside)
    least = max(FIRST, 1 - enough / problem.cost(whole))
    hunt, tried = Hunt(times=(least / FIRST) ** POWER, sure=0.0), set[float]()
    while len(tried) < TRIES:
        share = round(FIRST * hunt.times ** (1 / POWER) * GRID) / GRID
        if share in tried or not least <= share <= MOST:
            return
        tried.add(share)
        steps = subject.narrower(share, choosing.lots.calibration)
        if not steps:
            return
        name = f"{SAFE}, {share:.1%} narrower, distilled"
        recipe = learning(Recipe(name=name, steps=(*steps, *choosing.bank.recipe(whole, name).steps)), choosing.by)
        try:
            seen, trial = learned(choosing, recipe, {})
        except DataError:  # it went astray
            change = STEP[0]
        else:
            yield seen, trial
            change = further(choosing, seen)
        hunt.learn((share / FIRST) ** POWER, change)
