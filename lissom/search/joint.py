"""The joint problem: one form for each unit, so that all together cost least at each distance from the original.

    min Σ_u cost(u, f_u)  for each  Σ_u a(f_u) KL(u, f_u)        cost(u, f) = Σ_p w_p p(u, f) / Σ_v p(v, safe form)

over parts p: bytes and the measured times of the target, weighted as the owner prefers; a multiple-choice knapsack
(`allocate.py`). That distances of single units add up is a first guess: errors of layers that follow one another may
cancel or amplify. How much those of a form do so is learned from choices that were measured as a whole, by least
squares of relative errors with a prior of a = 1,

    min over a of  Σ_c (Σ_f a_f S_cf / KL_c - 1)² + λ Σ_f (a_f - 1)²            S_cf = Σ_{u in form f} KL(u, f)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lissom.errors import DataError
from lissom.search.allocate import frontier
from lissom.search.bank import Bank, Choice
from lissom.search.forms import SAFE
from lissom.search.latency import Latencies

PREFERENCES: dict[str, dict[str, float]] = {
    "size": {"size": 1},
    "latency": {"latency": 1},
    "both": {"size": 1, "latency": 1},
    "prefill": {"prefill": 1},
    "decode": {"decode": 1},
}
FINE = 1_000_000  # steps of cost between nothing and all in the safe form
TIE = (
    0.01  # what bytes count for beside time where they were to count for nothing: among equally fast the small one wins
)
PRIOR, LEAST, MOST = 0.05, 0.2, 5.0  # weight of a = 1, and its bounds
Prefer = str | Mapping[str, float]


def weights_of(prefer: Prefer, parts: Collection[str]) -> dict[str, float]:
    """How much each part of the cost counts: its exponent in the product of ratios.

    Raises:
        DataError: it is none of the preferences, or names a part that the model has not.
    """
    if isinstance(prefer, str):
        if prefer not in PREFERENCES:
            raise DataError(f"prefer: {prefer!r} is none of {', '.join(PREFERENCES)}, nor a mapping of weights")
        prefer = PREFERENCES[prefer]
    possible = ["size", "latency", *parts]
    for name, weight in prefer.items():
        if name not in possible or not weight > 0:
            raise DataError(f"prefer: {name}={weight}: name some of {', '.join(possible)}, with weights above 0")
    return dict(prefer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The forms of each unit, with what each costs and how far it moves the predictions.

    `always` is what any choice costs: the time of the base, beside which that of the forms is told.
    """

    forms: Mapping[str, Sequence[str]]
    costs: Mapping[str, Sequence[float]]
    kls: Mapping[str, Sequence[float]]
    always: float = 0.0

    @classmethod
    def of(
        cls,
        bank: Bank,
        kinds: Mapping[str, str],
        latencies: Latencies,
        weights: Mapping[str, float],
    ) -> "Problem":
        """The problem of a bank; where bytes do not count, they break ties."""
        weights = {"size": TIE, **weights}
        base = dict.fromkeys(bank.units, SAFE)
        whole = {"size": float(sum(bank.options[unit][SAFE].nbytes for unit in base)), **times(latencies.base)}
        forms = {unit: list(options) for unit, options in bank.options.items()}

        def cost(unit: str, form: str) -> float:
            own = {"size": float(bank.options[unit][form].nbytes)}
            own |= times(latencies.added[kinds[unit]].get(form, dict.fromkeys(latencies.base, 0.0)))
            return sum(weight * own[part] / whole[part] for part, weight in weights.items())

        return cls(
            forms=forms,
            costs={unit: [cost(unit, form) for form in own] for unit, own in forms.items()},
            kls={unit: [bank.options[unit][form].kl for form in own] for unit, own in forms.items()},
            always=sum(weight for part, weight in weights.items() if part != "size"),
        )

    def without(self, kinds: Mapping[str, str], banned: Collection[tuple[str, str]]) -> "Problem":
        """The problem where some forms of some kinds of units are no choice; of each unit the safest stays."""
        kept = {u: [k for k, form in enumerate(own) if (kinds[u], form) not in banned] for u, own in self.forms.items()}
        kept = {u: places or [0] for u, places in kept.items()}
        return Problem(
            forms={unit: [self.forms[unit][k] for k in places] for unit, places in kept.items()},
            costs={unit: [self.costs[unit][k] for k in places] for unit, places in kept.items()},
            kls={unit: [self.kls[unit][k] for k in places] for unit, places in kept.items()},
            always=self.always,
        )

    def allows(self, choice: Choice) -> bool:
        """Whether every form of a choice is one of the forms."""
        return all(form in self.forms[unit] for unit, form in choice.items())

    def frontier(self, points: int, scale: Mapping[str, float]) -> list[dict[str, str]]:
        """Choices from the closest to the cheapest; `scale` is what distances of each form are multiplied with."""
        least = {unit: min(own) for unit, own in self.costs.items()}
        sizes = [[round(FINE * (cost - least[unit])) for cost in own] for unit, own in self.costs.items()]
        kls = [[self.scaled(unit, k, scale) for k in range(len(own))] for unit, own in self.forms.items()]
        found = frontier(sizes, kls, points)
        return [{unit: self.forms[unit][k] for unit, k in zip(self.forms, one, strict=True)} for one in found]

    def scaled(self, unit: str, k: int, scale: Mapping[str, float]) -> float:
        """The distance of one form of a unit."""
        return self.kls[unit][k] * scale.get(self.forms[unit][k], 1.0)

    def cost(self, choice: Choice) -> float:
        """The cost of a choice."""
        return self.always + sum(self.costs[unit][self.forms[unit].index(form)] for unit, form in choice.items())

    def kl(self, choice: Choice, scale: Mapping[str, float]) -> float:
        """The distance of a choice, foreseen."""
        return sum(self.scaled(unit, self.forms[unit].index(form), scale) for unit, form in choice.items())

    def learned(self, seen: Sequence[tuple[Choice, float]]) -> dict[str, float]:
        """The scale of each form's distances, from choices that were measured."""
        names = sorted({form for own in self.forms.values() for form in own})
        rows = []
        for choice, kl in seen:
            if kl > 0:
                sums = dict.fromkeys(names, 0.0)
                for unit, form in choice.items():
                    if form in self.forms[unit]:
                        sums[form] += self.kls[unit][self.forms[unit].index(form)]
                rows.append([sums[name] / kl for name in names])
        if not rows:
            return dict.fromkeys(names, 1.0)
        a = np.array(rows)
        eye = np.sqrt(PRIOR) * np.eye(len(names))
        left, right = np.vstack([a, eye]), np.concatenate([np.ones(len(rows)), np.full(len(names), np.sqrt(PRIOR))])
        found = np.linalg.lstsq(left, right, rcond=None)[0]
        return dict(zip(names, np.clip(found, LEAST, MOST).tolist(), strict=True))


def times(parts: Mapping[str, float]) -> dict[str, float]:
    """The parts of a time, and their sum."""
    return {**parts, "latency": sum(parts.values()) if "latency" not in parts else parts["latency"]}
