"""Speed or revert: does each step of a choice make it cheaper on the target, with and without?

A step is one form of all units of one kind. Without it these units are in the safe form, or, where that is the step,
as they were. Both models run by turns; the step is kept where the ratio of costs is below 1 with its whole interval. On
a target that is not here both are costed, and nothing is measured: what is said of the step says so.
"""

from collections.abc import Mapping

from lissom.estimate import Estimate, median_estimate
from lissom.progress import Progress, Tell
from lissom.search.bank import Bank, Choice
from lissom.search.forms import ORIGINAL, SAFE
from lissom.search.joint import times
from lissom.search.latency import Costed, Parts, until_known
from lissom.search.result import StepRow
from lissom.search.subject import Subject


def paying(subject: Subject, bank: Bank, choice: Choice, weights: Mapping[str, float], tell: Tell) -> list[StepRow]:
    """The effect of each step of a choice, measured or, where the subject is costed, computed."""
    steps: dict[tuple[str, str], list[str]] = {}
    for unit, form in choice.items():
        if form != ORIGINAL:
            steps.setdefault((subject.kinds[unit], form), []).append(unit)
    run = subject.run(bank, choice)
    costed = isinstance(run, Costed)
    found: list[StepRow] = []
    for (kind, form), units in steps.items():
        text = f"with and without {form} for {kind}"
        tell(Progress(stage="steps", text=text, done=len(found), total=len(steps)))
        instead = ORIGINAL if form == SAFE else SAFE
        other = {**choice, **dict.fromkeys(units, instead)}
        pairs = until_known(subject.run(bank, other), run)
        saved = total(bank, other) - total(bank, choice)
        size = 1 - saved / (total(bank, other) + subject.beside)
        latency = median_estimate([times(w)["latency"] / times(o)["latency"] for o, w in pairs])
        cost = median_estimate([ratio(w, o, size, weights) for o, w in pairs])
        kl = sum(bank.options[unit][form].kl for unit in units)
        layers = sum(len(bank.units[unit]) for unit in units)
        found.append(
            StepRow(
                name=f"{form}: {kind}",
                kind=kind,
                form=form,
                layers=layers,
                bytes_saved=saved,
                latency_ratio=latency,
                cost_ratio=cost,
                kl=kl,
                kept=cost.high < 1,
                note=noted(cost, costed),
            )
        )
    return found


def noted(cost: Estimate, costed: bool) -> str:
    """Why a step was undone, and whether its ratios are no measurements."""
    if costed:
        return f"costed, not measured{'' if cost.high < 1 else f': undone, {cost.value:.3f} times the cost without it'}"
    return "" if cost.high < 1 else f"undone: {cost:.3f} times the cost without it, not surely less"


def total(bank: Bank, choice: Choice) -> int:
    """Bytes of all layers."""
    return sum(bank.options[unit][form].nbytes for unit, form in choice.items())


def ratio(own: Parts, other: Parts, size: float, weights: Mapping[str, float]) -> float:
    """The product of ratios that is preferred."""
    found, parts, others = 1.0, times(own), times(other)
    for part, weight in weights.items():
        found *= (size if part == "size" else parts[part] / others[part]) ** weight
    return found
