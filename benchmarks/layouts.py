"""Layouts: how far what several workers learn together is from what one learns alone.

    python benchmarks/layouts.py WORK [--layouts data=2,shard=2;data=2;shard=2;data=4] [--steps 50] [--write FILE]

The bundled language model, rounded to 3 bits, learns for so many steps what its original says, alone and under
torchrun in each layout: the loss on what is held out after every fifth step, beside that of one alone. At last a
layout goes on with what another one has begun. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from table import markdown

import lissom
from lissom.calibrate.texts import read_windows
from lissom.files import read_json
from lissom.hardware import describe
from lissom.models import Checkpoint
from lissom.recover import loop
from lissom.recover.parallel.layout import read_layout
from lissom.types import Recipe

DEMO = Path(lissom.__file__).parent / "demo"
LENGTH, BATCH, EVERY = 64, 8, 5
LAYOUTS = (
    *(f"{axis}=2" for axis in ("data", "shard", "tensor", "pipeline")),
    *("data=4", "shard=4", "pipeline=4", "data=2,shard=2", "data=2,tensor=2", "shard=2,tensor=2"),
    *("pipeline=2,tensor=2", "pipeline=2,data=2", "pipeline=2,shard=2", "pipeline=2,data=2,tensor=2"),
)
STEPS = [{"layers": "model.layers.*", "technique": "rtn", "bits": 3, "group": 64}]


def learn(small: Path, out: Path, layout: str, steps: int, stop: int | None) -> None:
    """What each worker does: it learns, and ends before the look of this number if there is one."""
    windows = read_windows([DEMO / "stories.txt"], Checkpoint(DEMO).tokenizer(), LENGTH, 1000)
    look, looks = loop.Story.look, 0

    def counted(story: loop.Story, enough: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == stop:
            raise SystemExit(0)
        look(story, enough)

    loop.Story.look = counted  # type: ignore[method-assign]
    training = lissom.Training(steps=steps, looks=steps // EVERY, batch=BATCH)
    lissom.recover_folder(small, windows, out, training, original=DEMO, layout=read_layout(layout))


def ran(small: Path, out: Path, layout: str, steps: int, stop: int | None = None) -> float:
    """Run it in a layout, by processes of its own; the seconds that it took."""
    count = 1
    for size in read_layout(layout).values():
        count *= size
    words = [__file__, str(small), "--worker", str(out), "--layouts", layout, "--steps", str(steps)]
    words += [] if stop is None else ["--stop", str(stop)]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    begun = time.perf_counter()
    subprocess.run([*start, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    return time.perf_counter() - begun


def losses(out: Path) -> list[float]:
    """Those on what was held out."""
    return [look["held"] for look in read_json(out / "lissom.json")["recovery"]["looks"]]


def apart(found: Sequence[float], alone: Sequence[float]) -> float:
    """The largest difference, as a share."""
    return max(abs(a - b) / b for a, b in zip(found, alone, strict=True))


def main() -> None:
    """All layouts, and one that goes on with another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layouts", default=";".join(LAYOUTS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        learn(asked.work, asked.worker, asked.layouts, asked.steps, asked.stop)
        return
    small = asked.work / "small"
    shutil.rmtree(asked.work, ignore_errors=True)
    lissom.compress_checkpoint(DEMO, Recipe.of(STEPS), torch.empty(0, 8, dtype=torch.long), small)
    ran(small, asked.work / "alone", "data=1", asked.steps)
    alone = losses(asked.work / "alone")
    rows = []
    for layout in asked.layouts.split(";"):
        seconds = ran(small, asked.work / layout, layout, asked.steps)
        found = losses(asked.work / layout)
        rows.append({"layout": layout, "apart": apart(found, alone), "end": found[-1], "seconds": seconds})
    others = [("pipeline=2,tensor=2", "data=1"), ("data=1", "shard=2"), ("shard=2,tensor=2", "pipeline=2")]
    for number, (before, after) in enumerate(others):
        out = asked.work / f"change {number}"
        ran(small, out, before, asked.steps, stop=6)
        seconds = ran(small, out, after, asked.steps)
        found = losses(out)
        name = f"{before} for 25 steps, then {after}"
        rows.append({"layout": name, "apart": apart(found, alone), "end": found[-1], "seconds": seconds})
    head = ("layout", "largest difference from one alone, %", "loss at the end", "seconds")
    body = [("alone", "", f"{alone[-1]:.5f}", "")]
    body += [(r["layout"], f"{100 * r['apart']:.3f}", f"{r['end']:.5f}", f"{r['seconds']:.0f}") for r in rows]
    table = "\n".join(markdown(head, body))
    print(table)
    if asked.write:
        _, mark, others = asked.write.read_text(encoding="utf-8").partition("\n## ")  # sections of other makers
        asked.write.write_text(f"{PAGE}\n{table}\n{mark}{others}", encoding="utf-8")
    print(json.dumps({"machine": describe().as_dict(), "alone": alone, "rows": rows}, default=str))


PAGE = """# Scale

Several workers learn together what one learns alone: `python benchmarks/layouts.py WORK --write docs/scale.md` makes
this page.

The bundled language model at 3 bits learns for 50 steps of 8 windows of 64 tokens what its original says, by AdamW;
after every fifth step stands the loss on what is held out. Workers sum in another order, and a weight at the border of
its cell turns over a little sooner or later: the curves differ by that. Seconds are those of the whole command, on a
machine that has fewer cores than some of these have workers.
"""

if __name__ == "__main__":
    main()
