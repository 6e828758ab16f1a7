"""A race: several training algorithms learn from the same beginning for equally long, from several seeds each."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lissom.errors import RecipeError
from lissom.estimate import Estimate, mean_estimate
from lissom.formats import unfreeze
from lissom.models.apart import apart
from lissom.progress import Progress, Tell, quiet
from lissom.recover.feed import feed
from lissom.recover.loop import Curve
from lissom.recover.memory import Memory
from lissom.recover.model import AS_SAID, begin_near, lesson_of, recovered
from lissom.recover.training import RATES, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A training algorithm, and how its loss went from each seed."""

    optimizer: str
    curves: tuple[Curve, ...]

    @property
    def held(self) -> Estimate:
        """The least loss on what was held out, over seeds."""
        return mean_estimate([curve.after.held for curve in self.curves])

    @property
    def gap(self) -> Estimate:
        """How much larger the loss is on what was held out than while learning, at the end."""
        last = [curve.looks[-1] for curve in self.curves]
        return mean_estimate([look.held - (look.held if look.learned is None else look.learned) for look in last])

    @property
    def seconds(self) -> Estimate:
        """How long it took."""
        return mean_estimate([curve.looks[-1].seconds for curve in self.curves])


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """All contenders, the best first; and the model of the best run of all, with how its loss went."""

    contenders: tuple[Contender, ...]
    model: nn.Module
    curve: Curve
    training: Training


def race(
    model: nn.Module,
    data: Any,
    training: Training = AS_SAID,
    *,
    optimizers: Sequence[str],
    seeds: int = 3,
    original: nn.Module | None = None,
    held: Any = 0.05,
    progress: Tell = quiet,
) -> Race:
    """Let copies of a compressed model learn with each optimizer, from each seed, all for as long as `training` says.

    The seed changes the order of the examples, not which of them are held out. Each optimizer has the rate that does
    for it, unless `training` gives one for all.

    Raises:
        RecipeError: there are fewer than two optimizers, one is there twice, or there is no seed.
        As for `recover_model`.
    """
    if len(optimizers) < 2 or len({*optimizers}) < len(optimizers):
        raise RecipeError(f"recover: {', '.join(optimizers)}: name two or more training algorithms, each once")
    if seeds < 1:
        raise RecipeError(f"recover: seeds={seeds} must be 1 or more")
    each = {name: replace(training, optimizer=name, knobs={}) for name in optimizers}
    memory = Memory(training.top_k)
    curves: dict[str, list[Curve]] = {name: [] for name in optimizers}
    best: tuple[Curve, nn.Module, Training] | None = None
    runs = [(name, seed) for seed in range(seeds) for name in optimizers]
    for done, (name, seed) in enumerate(runs):
        progress(Progress(stage="recover", text=f"{name}, seed {seed}", done=done, total=len(runs)))
        own = replace(each[name], seed=training.seed + seed)
        student = unfreeze(apart(copy.deepcopy(model)))
        fed = feed(data, batch=own.batch, held=held, seed=own.seed, split=training.seed)
        lesson = lesson_of(own, fed, None if original is None else lambda: original, memory)
        if original is not None:
            begin_near(student, original)
        curve, _ = recovered(student, fed, own, lesson)
        curves[name].append(curve)
        if best is None or curve.after.held < best[0].after.held:
            best = curve, student, own
    assert best is not None
    contenders = [Contender(optimizer=name, curves=tuple(found)) for name, found in curves.items()]
    ranked = sorted(contenders, key=lambda one: one.held.value)
    return Race(contenders=tuple(ranked), curve=best[0], model=best[1], training=best[2])


def named(listed: str) -> list[str]:
    """Names of optimizers, given with commas between them; `all` is every one there is."""
    return [*RATES] if listed == "all" else [name.strip() for name in listed.split(",")]
