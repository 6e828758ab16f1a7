"""Stages: an uneven model cut by what its parts were measured to cost, and cut evenly, under every schedule.

    python benchmarks/stages.py [--workers 2] [--steps 12] [--schedules 1f1b,zbv] [--write FILE]

A convolutional network whose first layers see large maps and whose last see small ones, rounded to 4 bits, learns what
its original says: by one worker, and by several along `pipeline`, each with one thread. By turns the chain is cut where
it was measured to be best, and into as many units each. The time of a step is the median of all steps but the first.
Prints a table, then one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from table import markdown
from torch import Tensor, nn

import lissom
from lissom.hardware import describe
from lissom.recover.learner import Learner
from lissom.recover.parallel import laid
from lissom.recover.parallel.cut import Cost
from lissom.recover.parallel.layout import read_layout
from lissom.recover.parallel.workers import is_first
from lissom.recover.training import STAGES

BATCH, ROUNDS = 32, 2
PARTS: dict[str, Any] = {"accumulate": 8}  # of a batch, the same for all
WIDTHS = ((24, 3), (24, 4), (24, 8))  # channels of the layers of a resolution, and how many there are


class Uneven(nn.Module):
    """Layers of three resolutions, each a quarter of the pixels of the one before."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, count in WIDTHS:
            for number in range(count):
                layers.append(nn.Conv2d(before, width, 3, padding=1, stride=2 if not number and before > 3 else 1))
                layers.append(nn.ReLU())
                before = width
        self.layers, self.end = nn.Sequential(*layers), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of classes."""
        return self.end(self.layers(x).mean((2, 3)))  # type: ignore[no-any-return]


def evenly(costs: Sequence[Cost], stages: int, room: float = 0, parts: int = 1) -> list[int]:
    """As many units for each stage, whatever they cost."""
    return [len(costs) * k // stages for k in range(stages + 1)]


def learn(layout: str, schedule: str, cut: str, steps: int) -> None:
    """What each worker does; the first one prints how long each step took, and the losses."""
    torch.manual_seed(0)
    original = Uneven().eval()
    small = lissom.compress_model(original, steps=[{"technique": "rtn", "bits": 4, "group": 0}])
    if cut == "even":
        laid.cut = evenly
    seconds, step = [], Learner.step

    def timed(learner: Learner, *given: Any) -> float:
        begun = time.perf_counter()
        found = step(learner, *given)
        seconds.append(time.perf_counter() - begun)
        return found

    Learner.step = timed  # type: ignore[method-assign]
    training = lissom.Training(steps=steps, looks=1, batch=BATCH, norms=False, loss="mse", **PARTS, stages=schedule)
    data = torch.randn(BATCH * 4, 3, 32, 32)
    found = lissom.recover_model(small, data, training, original=original, layout=read_layout(layout))
    if is_first():
        print(json.dumps({"seconds": seconds[1:], "loss": found.curve.looks[-1].held}))


def ran(workers: int, *words: str) -> dict[str, Any]:
    """What the first of so many workers prints."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, __file__, *words], check=True, env=env, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """All schedules, both cuts, by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--schedules", type=lambda words: words.split(","), default=list(STAGES))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("LAYOUT", "SCHEDULE", "CUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        learn(*asked.worker, asked.steps)
        return
    cases = [
        ("data=1", "1f1b", ""),
        *((f"pipeline={asked.workers}", name, cut) for name in asked.schedules for cut in CUTS),
    ]
    times: dict[Any, list[float]] = {case: [] for case in cases}
    losses: dict[Any, float] = {}
    for _ in range(ROUNDS):
        for case in cases:
            count = 1 if not case[2] else asked.workers
            found = ran(count, "--steps", str(asked.steps), "--worker", *case)
            times[case] += found["seconds"]
            losses[case] = found["loss"]
    medians = {case: 1000 * statistics.median(own) for case, own in times.items()}
    rows = [("alone", "", f"{medians[cases[0]]:.0f}", "", f"{losses[cases[0]]:.6f}")]
    for name in asked.schedules:
        best, even = ((cases[1][0], name, cut) for cut in CUTS)
        shown = [f"{medians[even]:.0f}", f"{medians[best]:.0f}", f"{medians[even] / medians[best]:.2f}"]
        rows.append((name, *shown, f"{losses[best]:.6f}"))
    table = "\n".join(markdown(HEAD, rows))
    print(table)
    if asked.write:
        asked.write.write_text(f"{PAGE}\n{table}\n", encoding="utf-8")
    told = [{"case": case, "ms": medians[case], "quartiles": quartiles(times[case])} for case in cases]
    print(json.dumps({"machine": describe().as_dict(), "rows": told}, default=str))


def quartiles(seconds: Sequence[float]) -> list[float]:
    """The first and the third, in milliseconds."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return [1000 * low, 1000 * high]


CUTS = ("measured", "even")
HEAD = ("schedule", "cut evenly, ms", "cut by cost, ms", "times as fast", "loss at the end")
PAGE = """# Stages

`python benchmarks/stages.py --write docs/stages.md` makes this page.

A convolutional network whose first layers cost most, at 4 bits, learns what its original says, in batches of 32. Two
workers with one thread each have a stage (or two) of it: cut where the parts were measured to take as long, and into as
many parts each. A step's time is the median of two runs, by turns.
"""

if __name__ == "__main__":
    main()
