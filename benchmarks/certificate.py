"""How often a certificate is wrong, and how many examples it takes, by simulation.

    python benchmarks/certificate.py [--runs 1000] [--shared FOLDER] [--write docs/certificate.md]

Accuracy: models with a budget of 1 % at 95 % confidence, on up to 10,000 examples with a look after each. Examples flip
(become right or wrong) independently; nothing but flips is drawn, for between two of them the wealth against the budget
only grows, and that against keeping it only shrinks, so that looks before and after each flip miss nothing. Where
10,000 are planned every example is drawn and bet on.

Scores without bounds: drops drawn from distributions, and those of real windows of text between wikilm in
LISSOM_SHARED and its weights rounded to 4 bits, drawn with replacement, of which the budget is set so that their mean
is the share of it that is asked for. A look after each of 20 to 300.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy import special, stats

import lissom
from lissom.calibrate import token_windows
from lissom.engine.lower import lower
from lissom.estimate import proportion
from lissom.estimate.betting import AIM, BEFORE, BETS, BOLDEST, Plan, Wealth, gains, losses
from lissom.estimate.student import FEWEST, ends, powers
from lissom.evaluate import paired
from lissom.formats import freeze
from lissom.models.checkpoint import read_tokenizer

BUDGET, CONFIDENCE, EXAMPLES = 0.01, 0.95, 10_000
FLIPS = (0.01, 0.02, 0.05, 0.1, 0.2)
PLANNED = (0.01, 0.05, 0.2)  # those that all examples are planned of, too
DROPS = (0.0, 0.8, 1.0, 1.2)  # as shares of the budget
ACCURACIES = (0.5, 0.75, 0.9)
CANDIDATES = (5, 20, 100)
WINDOWS, LENGTH = 1000, 128  # of the text, and the tokens of each
UNITS = 300  # windows of a run
ALL = ", all planned"
NEVER = 10**6
KINDS = np.array([1.0, -1.0, 0.0])  # what an example loses: lost, gained, the same
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
UNBOUNDED: dict[str, tuple[Draw, float]] = {  # drops, and their mean
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "t, 3 degrees": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "lognormal, deviation 0.5": (lambda rng, size: rng.lognormal(0, 0.5, size), float(np.exp(0.125))),
    "lognormal, deviation 1": (lambda rng, size: rng.lognormal(0, 1, size), float(np.exp(0.5))),
}

INTRODUCTION = """\
# What a certificate promises, simulated

At 95 % confidence, {runs:,} runs of each candidate of each kind ({date}).

```text
python benchmarks/certificate.py --runs {runs} --write docs/certificate.md
```

Accuracy has a budget of 1 %, up to 10,000 examples and a look after each, the most adversarial way to stop. So many of
the answers flip: become right or wrong. Perplexity and KL divergence have the drops of {windows:,} real windows of 128
tokens between wikilm and its weights rounded to 4 bits (perplexity grows by {growth:.1%}, KL is {kl:.4f} nats), up to
300 drawn with replacement and a look after each from the 20th on; the budget is set so that the mean of all windows is
this share of it (for a share of 0 the budget is that mean, which is taken away from each). "All planned": that there
will be 10,000 examples is settled beforehand (`planned=10_000`), as in a search; what fails does so as without.

## One candidate

{all:,} runs, so that shares near 5 % are known to within 0.1 points. "Unpaired" is what a test of two accuracies needs,
at a size fixed beforehand, to pass four of five models that drop so little."""
SEVERAL = """\
## Many candidates

The shares of {runs:,} runs, with their 95 % intervals, in which a model passes that uses up the budget or breaks it. In
sequence, as `lissom.optimize` certifies: from the safest to the boldest, up to the first that does not pass. For
comparison, each by itself. "0.8, then 1.0": the first half of them drop 0.8 of the budget, the others all of it.
Candidates flip other examples, or see other windows, which is the worst for those certified each by itself. In sequence
the share is at most that of the first one that breaks the budget, however alike they are."""
SHAPES = """\
## Drops of other shapes

Scores without bounds, drops that are the budget in the mean, a look after each of 20 to 300 units; ten times as many
runs. Student's t is for one look; it is here looked at as often."""
END = "Tails as heavy as the last are beyond what is promised (`lissom/estimate/student.py`)."


@dataclass(frozen=True, slots=True)
class Ended:
    """After how many examples (or units) each run passed, and failed; what comes first counts, the other is `NEVER`."""

    passed: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, yes: np.ndarray, no: np.ndarray) -> "Ended":
        """The verdicts of runs, by when each side was shown."""
        return cls(np.where(yes < no, yes, NEVER), np.where(no < yes, no, NEVER))

    def cells(self, both: bool = True) -> str:
        """How many passed, after how many examples, and if wanted how many failed, and after how many."""
        passed, failed = (f"{(found < NEVER).mean():.1%} | {middle(found)}" for found in (self.passed, self.failed))
        return f"{passed} | {failed if both else '- | -'}"


Model = Callable[[np.random.Generator], Ended]  # runs of one that drops as much as is asked for


def first(seen: np.ndarray) -> np.ndarray:
    """Which look of each run is the first that sees it, `NEVER` if none."""
    return np.where(seen.any(axis=1), seen.argmax(axis=1), NEVER)


def reached(counts: np.ndarray, brought: np.ndarray) -> np.ndarray:
    """Whether the wealth is enough, where so many examples (kinds, ...) of each kind were seen, which brought that."""
    wealth = np.zeros(counts.shape[1:], dtype=np.float32)
    for bet in np.log1p(BETS[:, None] * brought).astype(np.float32):
        wealth += np.exp(np.minimum(np.tensordot(bet, counts, 1), 80))  # beyond e^80 it is decided long since
    return wealth >= BETS.size / (1 - CONFIDENCE)


def flipping(flips: float, drop: float, runs: int, rng: np.random.Generator) -> Ended:
    """Runs of a model of which so many answers flip, so that its accuracy drops by that much."""
    most = round(EXAMPLES * flips + 6 * np.sqrt(EXAMPLES * flips))
    at = np.cumsum(rng.geometric(flips, (runs, most)), axis=1)  # the flips
    lost = rng.random((runs, most)) < (1 + drop / flips) / 2
    seen = at <= EXAMPLES
    flipped = np.cumsum(np.stack([lost & seen, ~lost & seen]), axis=2)
    until = np.concatenate([np.zeros((2, runs, 1), dtype=int), flipped[..., :-1]], axis=2)
    before = counted(until, np.minimum(at - 1, EXAMPLES))
    between = np.diff(np.minimum(at, EXAMPLES + 1), axis=1, prepend=0) - 1  # two flips, so many that change nothing
    no = first(reached(counted(flipped, np.minimum(at, EXAMPLES)), losses(KINDS, np.ones(3), BUDGET, False)))
    failed = np.where(no < NEVER, np.take_along_axis(at, np.minimum(no, most - 1)[:, None], axis=1)[:, 0], NEVER)
    against = gains(KINDS, np.ones(3), BUDGET)
    yes = first(reached(before, against))
    look = np.minimum(yes, most - 1)[:, None]
    found = np.take_along_axis(before, look[None], axis=2)[..., 0]
    passed = exactly(found, np.take_along_axis(between, look, axis=1)[:, 0], against)
    return Ended.of(np.where(yes < NEVER, passed, NEVER), failed)


def planned(flips: float, drop: float, runs: int, rng: np.random.Generator) -> Ended:
    """The same where all of the examples are planned; that it passed is looked for, not that it failed.

    As `betting.Plan` and the table of bets define it, for all runs at once, and the first of them by `Wealth` too.
    """
    enough, against = 2 / (1 - CONFIDENCE), gains(KINDS, np.ones(3), BUDGET)
    table, half = np.ones((BETS.size, runs)), np.ones(runs)
    power, drawn = np.full(runs, BEFORE[0] * BEFORE[1]), np.empty(EXAMPLES)
    passed = np.full(runs, NEVER)
    factors = 1 + BETS[:, None] * against
    for done in range(EXAMPLES):
        u = rng.random(runs)
        kinds = np.where(u < (flips + drop) / 2, 0, np.where(u < flips, 1, 2))
        missing = AIM * enough - table.mean(axis=0)
        chance = np.clip(half / np.maximum(missing, 1e-9), 1e-12, 1)
        z = special.ndtri(chance)
        bet = np.exp(-z * z / 2) / (chance * np.sqrt(2 * np.pi * power / (BEFORE[1] + done) * (EXAMPLES - done)))
        gain = against[kinds]
        half *= 1 + np.where(chance < 1, np.minimum(bet, BOLDEST), 0) * gain
        table = np.maximum(table * factors[:, kinds], 1e-100)
        power += gain * gain
        passed[(passed == NEVER) & (table.mean(axis=0) + half >= enough)] = done + 1
        drawn[done] = gain[0]
    wealth = Wealth(Plan(EXAMPLES, 1 - CONFIDENCE))
    wealth.add(drawn)
    assert (wealth.most >= np.log(enough / 2)) == (passed[0] < NEVER)
    return Ended(passed, np.full(runs, NEVER))


def counted(flipped: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """How many examples of each kind there are, among so many with these that were lost and gained."""
    return np.concatenate([flipped, (examples - flipped.sum(0))[None]]).astype(np.float32)


def exactly(counts: np.ndarray, last: np.ndarray, brought: np.ndarray) -> np.ndarray:
    """After how many examples the wealth was enough, where it is after these, of which the last changed nothing."""
    flipped, high = counts[:2], counts[2]
    least = high - last
    low = least - 1
    while (high - low > 1).any():
        half = np.maximum((low + high) // 2, least)
        enough = reached(np.concatenate([flipped, half[None]]), brought)
        low, high = np.where(enough, low, half), np.where(enough, half, high)
    return flipped.sum(0) + high


def unpaired(accuracy: float, drop: float) -> int:
    """The examples that a test of two accuracies needs."""
    z = NormalDist().inv_cdf(CONFIDENCE) + NormalDist().inv_cdf(0.8)
    return round(z**2 * 2 * accuracy * (1 - accuracy) / (BUDGET - drop) ** 2)


def looked_at(drops: np.ndarray, limit: float) -> tuple[Ended, float]:
    """Runs of drops without bounds (runs, units), and the share that one look's test would have passed at some look."""
    n = np.arange(FEWEST, drops.shape[1] + 1)
    sums = np.cumsum(powers(drops, np.ones_like(drops)), axis=2)[..., FEWEST - 1 :]
    low, high = ends(sums, n, 1 - CONFIDENCE)
    yes, no = (np.where(look < NEVER, FEWEST + look, NEVER) for look in (first(high <= limit), first(low > limit)))
    means = sums[1] / n
    spread = np.sqrt(np.maximum(sums[4] / n - means**2, 0) / (n - 1))
    once = means + stats.t.ppf(CONFIDENCE, n - 1) * spread <= limit
    return Ended.of(yes, no), float(once.any(axis=1).mean())


def measured(shared: Path) -> dict[str, np.ndarray]:
    """The drops of real windows of text: in log likelihood, whose mean is the growth of perplexity, and KL."""
    source = shared / "models" / "wikilm"
    text = (shared / "data" / "wikitext2" / "plain" / "test.txt").read_text(encoding="utf-8")
    windows = token_windows(text, read_tokenizer(source), LENGTH)[:WINDOWS]
    original = lissom.load(source)
    compressed = lower(freeze(lissom.quantize_model(original, bits=4)))
    scores = paired(original, compressed, windows, "perplexity")
    assert scores.kl is not None
    return {"perplexity": scores.original - scores.compressed, "KL": scores.kl}


def resampled(drops: np.ndarray, share: float, runs: int, rng: np.random.Generator) -> Ended:
    """Runs of windows drawn from these, whose mean drop is the share of the budget."""
    drawn = rng.choice(drops, (runs, UNITS))
    mean = drops.mean()
    return looked_at(drawn if share else drawn - mean, mean / share if share else mean)[0]


def models(runs: int, real: Mapping[str, np.ndarray]) -> dict[str, dict[float, Model]]:
    """What is simulated: of each kind, models by their true drop as a share of the budget."""
    found: dict[str, dict[float, Model]] = {}
    for flips in FLIPS:
        for how, model in (("", flipping), (ALL, planned)):
            if model is flipping or flips in PLANNED:
                shares = [share for share in DROPS if share * BUDGET <= flips]
                kinds = {share: partial(model, flips, share * BUDGET, runs) for share in shares}
                found[f"accuracy, {flips:.0%} flips{how}"] = kinds
    for name, drops in real.items():
        shares = [share for share in DROPS if share or name != "KL"]  # no other model has a KL divergence of 0
        found[f"{name}, real windows"] = {share: partial(resampled, drops, share, runs) for share in shares}
    return found


def candidates(passed: Mapping[float, np.ndarray], share: float) -> str:
    """How often a model that breaks the budget passes, of so many candidates: in sequence, and each by itself.

    `passed` tells of models by their drop, of each the candidates (candidates, runs).
    """
    sequence, alone, begin = [], [], 0
    for count in CANDIDATES:
        safe = count // 2 if share < 1 else 0
        good, bad = (passed[drop][begin : begin + count] for drop in (share, max(share, 1.0)))
        sequence.append((good[:safe].all(axis=0) & bad[safe]).sum())
        alone.append(bad[safe:].any(axis=0).sum())
        begin += count
    runs = bad.shape[1]
    return " | ".join(f"{proportion(int(hits), runs):.1%}".rpartition(" ")[0] for hits in (*sequence, *alone))


def middle(examples: np.ndarray) -> str:
    """The median of those that ended."""
    ended = examples[examples < NEVER]
    return f"{int(np.median(ended)):,}" if ended.size else "-"


def page(runs: int, real: Mapping[str, np.ndarray], pool: Executor) -> Iterator[str]:
    """The page, line by line."""
    head = "| what is scored | true drop / budget |"
    many = sum(CANDIDATES)
    single, several = [], []
    for name, kinds in models(runs, real).items():
        rngs = [np.random.default_rng(seed) for seed in range(many)]
        ended = {share: list(pool.map(model, rngs)) for share, model in kinds.items()}
        passed = {share: np.stack([one.passed < NEVER for one in found]) for share, found in ended.items()}
        for share, found in ended.items():
            whole = Ended(*(np.concatenate([getattr(one, side) for one in found]) for side in ("passed", "failed")))
            beside = "-"
            if name.startswith("accuracy") and share < 1:
                beside = ", ".join(f"{unpaired(p, share * BUDGET):,}" for p in ACCURACIES)
            single.append(f"| {name} | {share} | {whole.cells(not name.endswith(ALL))} | {beside} |")
            then = f"{share}, then 1.0" if share < 1 else f"{share}"
            several.append(f"| {name} | {then} | {candidates(passed, share)} |")
    shown = ", ".join(f"{accuracy:.0%} right" for accuracy in ACCURACIES)
    yield INTRODUCTION.format(
        runs=runs,
        all=many * runs,
        date=time.strftime("%Y-%m-%d"),
        windows=WINDOWS,
        growth=np.expm1(real["perplexity"].mean()),
        kl=real["KL"].mean(),
    )
    yield ""
    yield from (f"{head} passed | after | failed | after | unpaired: {shown} |", "|---" * 7 + "|", *single, "")
    yield from (SEVERAL.format(runs=runs), "")
    columns = [f"{how}: {count} |" for how in ("in sequence", "by itself") for count in CANDIDATES]
    yield from (" ".join([head, *columns]), "|---" * 8 + "|", *several, "")
    yield from (SHAPES, "", "| distributed | passed | failed | Student's t, passed |", "|---|---|---|---|")
    for name, (draw, mean) in UNBOUNDED.items():
        one, once = looked_at(draw(np.random.default_rng(0), (10 * runs, UNITS)), mean)
        shares = [f"{(found < NEVER).mean():.1%}" for found in (one.passed, one.failed)]
        yield f"| {name} | {' | '.join(shares)} | {once:.1%} |"
    yield from ("", END)


def main() -> None:
    """All of it; with real windows where there are the shared models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--shared", type=Path, default=os.environ.get("LISSOM_SHARED", "../shared"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    asked = parser.parse_args()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        lines = list(page(asked.runs, measured(Path(asked.shared)), pool))
    print("\n".join(lines))
    if asked.write:
        asked.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
