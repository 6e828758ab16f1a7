"""Ray: how far what workers learn on Ray is from what those of torchrun learn, and what it costs that one is killed.

    python benchmarks/ray_kill.py WORK [--steps 50] [--runs 1] [--write FILE]

The bundled language model, rounded to 3 bits, learns for so many steps what its original says, by two workers: those of
torchrun, those of a Ray on this machine, and those of Ray of which one is killed at the fourth look at what is held
out, by signal 9: first the second worker, then the first one, which writes. Each kind so many times; the difference
and the loss are those of the run that was furthest away, the seconds the median of whole calls, start and end included.
Prints a table, then one JSON line; `--write` puts the table into a page, in place of its section on Ray.
"""

import argparse
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from layouts import BATCH, DEMO, EVERY, LENGTH, STEPS, apart, losses, ran
from sections import put_section
from table import markdown

import lissom
from lissom.calibrate.texts import read_windows
from lissom.hardware import describe
from lissom.models import Checkpoint
from lissom.progress import Progress
from lissom.recover.cluster import recover_on_ray
from lissom.types import Recipe

WORKERS, LOOK = 2, 4
KINDS = {"Ray": None, "Ray, the second worker killed": 1, "Ray, the first worker killed": 0}


def ran_on_ray(small: Path, out: Path, steps: int, killed: int | None) -> tuple[float, int]:
    """Run it, and kill the worker of this rank if there is one; the seconds that it took, and who was started."""
    windows = read_windows([DEMO / "stories.txt"], Checkpoint(DEMO).tokenizer(), LENGTH, 1000)
    training = lissom.Training(steps=steps, looks=steps // EVERY, batch=BATCH)
    places: list[tuple[int, int]] = []
    looks = 0

    def watch(event: Progress) -> None:
        nonlocal looks
        if found := re.match(r"worker (\d+) of \d+ is process (\d+)", event.text):
            places.append((int(found[1]), int(found[2])))
        looks += event.text.startswith("loss")
        if event.text.startswith("loss") and looks == LOOK and killed is not None:
            os.kill(dict(places)[killed], signal.SIGKILL)

    begun = time.perf_counter()
    recover_on_ray("local", WORKERS, small, windows, out, training, original=DEMO, progress=watch)
    return time.perf_counter() - begun, len(places)


def main() -> None:
    """Torchrun's workers, then Ray's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun's workers
    small = asked.work / "small"
    shutil.rmtree(asked.work, ignore_errors=True)
    lissom.compress_checkpoint(DEMO, Recipe.of(STEPS), torch.empty(0, 8, dtype=torch.long), small)
    seconds = ran(small, asked.work / "torchrun", f"data={WORKERS}", asked.steps)
    beside = losses(asked.work / "torchrun")
    rows: list[dict[str, Any]] = [
        {"run": "torchrun", "seconds": [seconds], "apart": [0.0], "ends": [beside[-1]], "started": WORKERS}
    ]
    for name, killed in KINDS.items():
        row: dict[str, Any] = {"run": name, "seconds": [], "apart": [], "ends": []}
        for number in range(asked.runs):
            out = asked.work / f"{name} {number}"
            seconds, row["started"] = ran_on_ray(small, out, asked.steps, killed)
            found = losses(out)
            row["seconds"].append(seconds)
            row["apart"].append(apart(found, beside))
            row["ends"].append(found[-1])
        rows.append(row)
    head = ("workers", "runs", "processes started", "largest difference from torchrun, %", "loss at the end", "seconds")
    table = "\n".join(markdown(head, [shown(row) for row in rows]))
    print(table)
    if asked.write:
        put_section(asked.write, TITLE, f"{PAGE}\n{table}")
    print(json.dumps({"machine": describe().as_dict(), "torchrun": beside, "rows": rows}, default=str))


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    worst = max(range(len(row["apart"])), key=row["apart"].__getitem__)
    far = f"{100 * row['apart'][worst]:.3f}" if row["run"] in KINDS else ""
    figures = (far, f"{row['ends'][worst]:.5f}", f"{median(row['seconds']):.0f}")
    return (row["run"], str(len(row["apart"])), str(row["started"]), *figures)


TITLE = "On a Ray cluster"
PAGE = """
`pip install lissom[ray]`, and Ray starts the workers, on one machine or on many; `python benchmarks/ray_kill.py WORK
--write docs/scale.md` makes this section.

```console
$ lissom recover small --original model --data text.txt --out learned --ray 10.0.0.1:6379 --workers 8
$ lissom recover small --original model --data text.txt --out learned --ray local --workers 2
```

The first is for a cluster that is there, from one of its machines, and takes the address that `ray start --head`
printed, or `auto`; the second starts a Ray on this machine that ends with the command. All machines must see `small`,
`model` and the place of `learned` by the same names, on storage that they share, and have the same lissom; where a
worker does not, it says so, and all end. The examples are read once, by who gives the command, and lie in Ray's object
store; each worker reads them from there by Ray Data, in their order, and learns from its share of every batch, so that
the examples of each step are those of torchrun with as many workers. Each worker has a GPU where the cluster has any,
and its share of the processors; more workers than there is room for are refused. `--parallel` and `--gradients` are as
with torchrun.

A worker that dies, by whatever, is replaced: Ray starts all of them anew, and they go on at the last look, up to 8
times. What is kept at each look is safetensors and JSON in a hidden folder beside `learned`, the same that torchrun's
workers write: whoever stops all of it gives the same command again, with Ray or without. Below one was killed by signal
9 in the midst of it. Seconds are those of whole calls, on two cores beside other work; of Ray's most pass until its
processes have started.
"""

if __name__ == "__main__":
    main()
