"""How often a certificate is wrong, and how many examples it takes, by simulation.

    python benchmarks/certificate.py [RUNS]

Models with an accuracy budget of 1 % at 95 % confidence are certified on up to 10,000 examples with a look after each,
the most adversarial way to stop: for each share of examples that flip (become right or wrong) and each true drop, the
shares of runs that passed and failed, and the median of examples until then. Beside it what a test of two unpaired
accuracies needs, at a size fixed beforehand, to pass four in five models that drop so little:

    n = (z_0.95 + z_0.8)² · 2 p (1 - p) / (budget - drop)²        p the accuracy of the original

Then scores without bounds whose mean drop is the budget: how many runs the t e-process passes, and fails, with a look
after each of 20 to 300 units, and how many Student's t for one look would pass if it were looked at as often.
"""

import sys
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy import stats

from lissom.estimate.betting import BETS, gains, losses
from lissom.estimate.student import FEWEST, Limits

BUDGET, CONFIDENCE, EXAMPLES = 0.01, 0.95, 10_000
BLOCK = 100  # runs at once
FLIPS = (0.01, 0.02, 0.05, 0.1, 0.2)
DROPS = (0.0, 0.8, 1.0, 1.2)  # as shares of the budget
ACCURACIES = (0.5, 0.75, 0.9)
UNITS = 300
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
UNBOUNDED: dict[str, tuple[Draw, float]] = {  # drops, and their mean
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "t, 3 degrees": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "lognormal, deviation 0.5": (lambda rng, size: rng.lognormal(0, 0.5, size), float(np.exp(0.125))),
    "lognormal, deviation 1": (lambda rng, size: rng.lognormal(0, 1, size), float(np.exp(0.5))),
}


def first_look(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """After how many examples of each run the wealth first reached 1 / (1 - confidence); 0 where it never did.

    `counts` (kinds, runs, examples) tells how often each kind of example was seen so far, `values` what it brings.
    """
    steps = np.log1p(BETS[:, None] * values).astype(np.float32)
    wealth = np.zeros(counts.shape[1:], dtype=np.float32)
    for bet in steps:
        wealth += np.exp(np.minimum(np.tensordot(bet, counts, 1), 80))  # beyond e^80 it is decided long since
    reached = wealth >= BETS.size / (1 - CONFIDENCE)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0)


def simulate(flips: float, drop: float, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """After how many examples runs passed, and failed; what comes first counts."""
    passed, failed = [], []
    kinds, ones = np.array([1.0, -1.0, 0.0]), np.ones(3)  # lost, gained, the same
    for seed in range(-(-runs // BLOCK)):
        u = np.random.default_rng(seed).random((BLOCK, EXAMPLES), dtype=np.float32)
        lost, gained = u < (flips + drop) / 2, u > 1 - (flips - drop) / 2
        counts = np.stack([np.cumsum(kind, axis=1, dtype=np.float32) for kind in (lost, gained, ~lost & ~gained)])
        yes = first_look(counts, gains(kinds, ones, BUDGET))
        no = first_look(counts, losses(kinds, ones, BUDGET, False))
        passed.append(np.where((no > 0) & (no < yes), 0, yes))
        failed.append(np.where((yes > 0) & (yes < no), 0, no))
    return np.concatenate(passed)[:runs], np.concatenate(failed)[:runs]


def unpaired(accuracy: float, drop: float) -> int:
    """The examples that a test of two accuracies needs."""
    z = NormalDist().inv_cdf(CONFIDENCE) + NormalDist().inv_cdf(0.8)
    return round(z**2 * 2 * accuracy * (1 - accuracy) / (BUDGET - drop) ** 2)


def looked_at(drops: np.ndarray, mean: float) -> tuple[float, float, float]:
    """The shares of runs that passed and failed, and that one look's test would have passed at some look."""
    limits = [Limits(1 - CONFIDENCE) for _ in drops]
    for each, run in zip(limits, drops, strict=True):
        each.add(run, np.ones(run.size))
    n = np.arange(1, drops.shape[1] + 1)
    means = np.cumsum(drops, axis=1) / n
    spread = np.sqrt(np.maximum(np.cumsum(drops**2, axis=1) / n - means**2, 0) / np.maximum(n - 1, 1))
    once = means + stats.t.ppf(CONFIDENCE, np.maximum(n - 1, 1)) * spread <= mean
    return (
        float(np.mean([each.high <= mean for each in limits])),
        float(np.mean([each.low > mean for each in limits])),
        float(once[:, FEWEST - 1 :].any(axis=1).mean()),
    )


def middle(examples: np.ndarray) -> str:
    """The median of those that ended."""
    ended = examples[examples > 0]
    return f"{int(np.median(ended)):,}" if ended.size else "-"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    shown = ", ".join(f"{accuracy:.0%} right" for accuracy in ACCURACIES)
    print(f"| flips | true drop / budget | passed | after | failed | after | unpaired: {shown} |")
    print("|---|---|---|---|---|---|---|")
    for flips in FLIPS:
        for share in DROPS:
            drop = share * BUDGET
            if drop > flips:
                continue
            passed, failed = simulate(flips, drop, runs)
            beside = ", ".join(f"{unpaired(p, drop):,}" for p in ACCURACIES) if share < 1 else "-"
            print(
                f"| {flips:.0%} | {share} | {(passed > 0).mean():.1%} | {middle(passed)} "
                f"| {(failed > 0).mean():.1%} | {middle(failed)} | {beside} |",
                flush=True,
            )
    print("\n| drop as budget, distributed | passed | failed | Student's t, passed |\n|---|---|---|---|")
    for name, (draw, mean) in UNBOUNDED.items():
        passed, failed, once = looked_at(draw(np.random.default_rng(0), (runs, UNITS)), mean)
        print(f"| {name} | {passed:.1%} | {failed:.1%} | {once:.1%} |", flush=True)


if __name__ == "__main__":
    main()
