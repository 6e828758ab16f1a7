"""How long each form of each kind of layer takes, measured in the model, on the target, and kept for the next time.

A layer by itself, in a loop, has its weights in the cache and no neighbours. So what is measured is the whole model
with all layers of one kind in another form, by turns with the same model as it was:

    T(choice) = T(base) + Σ_units Δ(kind of unit, form)          Δ = median of paired differences / units of the kind

and the base has every layer in the safe form. Two models of the same are not equally fast, by a percent or so: it
hangs on where in memory each of them lies. What the one base is slower or faster than others would be in every
difference, and in a choice as many times as there are kinds; so the base is made anew for each kind, and the median of
what that seems to add is taken off. Of a large language model the differences are taken in its first blocks,
which are enough to tell (`shallow.py`), and only the base is timed as a whole. The table is kept in a file named by the
machine, the code, and the shapes, so that a second search of such a model on such a machine measures nothing anew, and
decides equally. A machine is not equally fast at all times, so what is foreseen of a choice is its share of the
original, which is measured anew.
"""

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissom.artifact.fingerprint import of_code
from lissom.artifact.manifest import write_json
from lissom.estimate import median_estimate
from lissom.files import read_json
from lissom.hardware import describe
from lissom.progress import Progress, Tell

Parts = Mapping[str, float]  # milliseconds by name, such as prefill and decode
Run = Callable[[], Parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costed:
    """A run of which nothing is timed: what it takes was computed, and once tells as much as often."""

    parts: Parts

    def __call__(self) -> Parts:
        """What it takes."""
        return self.parts


ROUNDS, WARMUP, MOST = 9, 2, 36  # of timing; more rounds as long as a difference is not known well enough
FEWEST, SECONDS = 6, 15.0  # rounds at least; no more of them once they have taken so long
EACH = 5.0  # seconds for each form in the table, of which there are many
WELL = 0.03  # of the base's time: the width of a difference's interval that is narrow enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """The milliseconds of the base by part, and what each form of a unit of each kind adds to them."""

    base: Parts
    added: Mapping[str, Mapping[str, Parts]]

    def of(self, kinds: Mapping[str, str], choice: Mapping[str, str]) -> dict[str, float]:
        """The parts of a choice, foreseen; `kinds` of the units by name."""
        more = [self.added[kinds[unit]].get(form, {}) for unit, form in choice.items()]
        return {part: ms + sum(own.get(part, 0.0) for own in more) for part, ms in self.base.items()}

    def beside(
        self, original: Parts, pace: Parts, kinds: Mapping[str, str], choice: Mapping[str, str]
    ) -> dict[str, float]:
        """The parts of a choice, foreseen for a machine that may be faster or slower than when the table was made.

        Args:
            original: milliseconds of the original, measured now.
            pace: the base's, as a share of the original's, by part.
            kinds, choice: as for `of`.
        """
        now = original if len(pace) > 1 else dict.fromkeys(pace, sum(original.values()))  # one part has other names
        return {part: ms / self.base[part] * pace[part] * now[part] for part, ms in self.of(kinds, choice).items()}


def paces(one: Run, other: Run) -> dict[str, float]:
    """The time of another run as a share of one's, measured by turns: part by part."""
    rounds = by_turns({"one": one, "other": other})
    turns = list(zip(rounds["one"], rounds["other"], strict=True))
    return {part: statistics.median(after[part] / before[part] for before, after in turns) for part in turns[0][0]}


def by_turns(
    runs: Mapping[str, Run], rounds: int = ROUNDS, warmup: int = WARMUP, seconds: float = SECONDS
) -> dict[str, list[Parts]]:
    """What each run takes in each round, all taking turns; fewer rounds of what is slow, and one of what is costed."""
    if all(isinstance(run, Costed) for run in runs.values()):
        return {name: [run()] for name, run in runs.items()}
    found: dict[str, list[Parts]] = {name: [] for name in runs}
    begun = time.monotonic()
    for number in range(-warmup, rounds):
        if number >= FEWEST and time.monotonic() - begun > seconds:
            break
        for name, run in runs.items():
            parts = run()
            if number >= 0:
                found[name].append(parts)
    return found


def measured(
    base: Callable[[], Run],
    variants: Mapping[str, Sequence[str]],
    counts: Mapping[str, float],
    made: Callable[[str, str], Run],
    tell: Tell,
    share: float = 1.0,
) -> Latencies:
    """The table: `variants` are the forms of each kind beside the base's, `made` gives the model with a kind in a form.

    `counts` are the units of each kind; less than one, where the base has a part of it. Where the base is a `share` of
    a model, differences count as many times more, and are to be known so much better. For each kind the base is made
    anew as well, and what that seems to add is taken off from all differences.
    """
    bases: list[Parts] = []
    apart: dict[str, dict[str, Parts]] = {}
    again: list[Parts] = []
    total, first = sum(map(len, variants.values())), base()
    for kind, forms in variants.items():
        own = apart.setdefault(kind, {})
        for form in forms:
            done = sum(map(len, apart.values()))
            tell(Progress(stage="latency", text=f"{kind}: {form}", done=done, total=total))
            own[form] = difference(first, made(kind, form), WELL * share, bases)
        if forms:
            again.append(difference(first, base(), WELL * share, bases))
    bases = bases or by_turns({"base": first})["base"]
    nothing = medians(again or [dict.fromkeys(bases[0], 0.0)])
    added = {
        kind: {
            form: {part: (ms - nothing[part]) / counts[kind] for part, ms in one.items()} for form, one in own.items()
        }
        for kind, own in apart.items()
    }
    return Latencies(base=medians(bases), added=added)


def difference(base: Run, variant: Run, well: float, bases: list[Parts]) -> Parts:
    """What a variant takes more than the base; the base's rounds are put to those that are known."""
    pairs = until_known(base, variant, well)
    bases += [before for before, _ in pairs]
    return medians([{part: after[part] - ms for part, ms in before.items()} for before, after in pairs])


def medians(rounds: Sequence[Parts]) -> Parts:
    """The median of each part."""
    return {part: statistics.median(spent[part] for spent in rounds) for part in rounds[0]}


def until_known(base: Run, variant: Run, well: float = WELL) -> list[tuple[Parts, Parts]]:
    """Rounds of two runs by turns, until their difference is known well, or not better by more rounds."""
    pairs: list[tuple[Parts, Parts]] = []
    begun = time.monotonic()
    while len(pairs) < MOST and (not pairs or time.monotonic() - begun < EACH):
        found = by_turns({"base": base, "variant": variant}, warmup=0 if pairs else WARMUP, seconds=EACH)
        pairs += zip(found["base"], found["variant"], strict=True)
        differences = median_estimate([sum(after.values()) - sum(before.values()) for before, after in pairs])
        if differences.high - differences.low < well * statistics.median(sum(b.values()) for b, _ in pairs):
            break
    return pairs


def known(key: Any, make: Callable[[], Latencies], folder: Path | None = None) -> Latencies:
    """The table of this key from the cache, or made and put there; what it was made with is part of the name."""
    machine = {**describe().as_dict(), "node": platform.machine()}
    told = json.dumps([key, machine, of_code("engine")], sort_keys=True)
    file = (folder or cache_folder()) / f"latencies-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    if file.is_file():
        held = read_json(file)
        return Latencies(base=held["base"], added=held["added"])
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"base": found.base, "added": found.added})
    return found


def cache_folder() -> Path:
    """Where a program may keep what it can make again: by the system's custom, or `LISSOM_CACHE`."""
    if "LISSOM_CACHE" in os.environ:
        return Path(os.environ["LISSOM_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lissom"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lissom"
