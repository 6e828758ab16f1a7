"""Local search: a choice improved by what is measured of the whole, not by what is foreseen of its layers.

Evolution of one parent (Sieberling, Kuznedelev, Kurtic, Alistarh, EvoPress, ICML 2025, arXiv:2410.14649, algorithm 1):
each child has some unit in a cheaper form and others in safer ones for what that saves, and the best child takes the
parent's place if it is closer to the original. Unlike there, which children are worth measuring is foreseen first.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from lissom.search.bank import Choice
from lissom.search.joint import Problem

DRAWN, MEASURED, MOVES = 64, 4, 3  # children of a generation, how many of them are measured, units that change


def improved(
    problem: Problem,
    start: Choice,
    measure: Callable[[Choice], float],
    scale: Mapping[str, float],
    *,
    generations: int,
    seed: int = 0,
) -> tuple[dict[str, str], float]:
    """A choice that costs no more than `start` and is no farther from the original, and how far it is."""
    draw, bound = random.Random(seed), problem.cost(start)
    best, closest = dict(start), measure(start)
    seen = {tuple(start.values())}
    for _ in range(generations):
        drawn = {tuple(child.values()): child for child in children(problem, best, bound, draw)}
        new = sorted((child for key, child in drawn.items() if key not in seen), key=lambda c: problem.kl(c, scale))
        for child in new[:MEASURED]:
            seen.add(tuple(child.values()))
            distance = measure(child)
            if distance < closest:
                best, closest = child, distance
    return best, closest


def children(problem: Problem, parent: Choice, bound: float, draw: random.Random) -> Iterator[dict[str, str]]:
    """Choices beside one, none of which costs more than the bound."""
    units = [unit for unit, forms in problem.forms.items() if len(forms) > 1]
    for _ in range(DRAWN if units else 0):
        child = dict(parent)
        for unit in draw.sample(units, min(len(units), draw.randint(1, MOVES))):
            child[unit] = draw.choice(beside(problem, unit, child[unit]))
        if problem.cost(child) > bound:
            cheaper(problem, child, bound, draw)
        if problem.cost(child) <= bound:
            yield child


def cheaper(problem: Problem, child: dict[str, str], bound: float, draw: random.Random) -> None:
    """Take units one step down until the bound is kept, or all were tried."""
    for unit in draw.sample(list(child), len(child)):
        if problem.cost(child) <= bound:
            return
        costs = dict(zip(problem.forms[unit], problem.costs[unit], strict=True))
        down = [form for form in beside(problem, unit, child[unit]) if costs[form] < costs[child[unit]]]
        if down:
            child[unit] = draw.choice(down)


def beside(problem: Problem, unit: str, form: str) -> list[str]:
    """The forms next to one, among those that no other beats in both cost and distance."""
    ordered = sorted(
        zip(problem.costs[unit], problem.kls[unit], problem.forms[unit], strict=True), key=lambda one: one[:2]
    )
    kept, least = [], float("inf")
    for _, kl, name in ordered:
        if kl < least or name == form:
            kept.append(name)
            least = min(least, kl)
    at = kept.index(form)
    return kept[max(0, at - 1) : at] + kept[at + 1 : at + 2] or [form]
