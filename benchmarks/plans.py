"""Plans: the step that is foreseen of pieces, beside the step that several workers take.

    python benchmarks/plans.py WORK [--only demo,wide] [--layouts "data=1;data=2;shard=2;data=2,shard=2"] [--tries 3]
        [--patience 60] [--write docs/plan.md]

For each row the pieces are timed, a model recovers for some steps under torchrun in that layout, and the pieces are
timed again: what is foreseen is the mean of both. Nothing is fitted. Of the steps the quarter counts in which other
programs had least of the cores; where that was more than a tenth of one, the row is done again, and the try that was
least disturbed counts. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from table import markdown

import lissom
from lissom.files import read_json
from lissom.hardware import describe
from lissom.models.checkpoint import read_config, skeleton
from lissom.plan.choose import foreseen
from lissom.plan.measured import measure
from lissom.plan.reading import read_shapes
from lissom.plan.recovery import Recovery
from lissom.plan.shapes import Shapes
from lissom.plan.split import Cluster, Split
from lissom.recover.learner import Learner
from lissom.recover.parallel.layout import read_layout
from lissom.types import Recipe

DEMO = Path(lissom.__file__).parent / "demo"
STEPS = [{"layers": "model.layers.*", "technique": "rtn", "bits": 3, "group": 64}]
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
TAKEN, WARM = 36, 4  # steps, and those of them that do not count
TRILLION = Shapes(blocks=128, hidden=25600, heads=160, kv_heads=20, head_dim=160, inner=83200, vocabulary=128000)
QUIET = 0.1  # cores that other programs may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is recovered, and how."""

    model: str = "demo"
    layout: str = "data=1"
    batch: int = 8
    length: int = 64
    train: str = "weights"
    gradients: str = "float32"
    checkpointing: bool = False

    @property
    def workers(self) -> int:
        """How many it takes."""
        return prod(read_layout(self.layout).values())


ROWS = (
    Row(),
    Row(batch=2),
    Row(batch=4, length=128),
    Row(train="scales"),
    Row(checkpointing=True),
    Row(layout="data=2"),
    Row(layout="data=2", batch=16),
    Row(layout="data=2", train="scales"),
    Row(layout="data=2", gradients="int8"),
    Row(layout="shard=2"),
    Row(layout="shard=2", batch=4, length=128),
    Row(layout="data=4"),
    Row(layout="data=2,shard=2"),
    Row(model="wide", batch=4),
    Row(model="wide", layout="data=2", batch=4),
    Row(model="wide", layout="data=2", batch=4, gradients="int8"),
    Row(model="wide", layout="shard=2", batch=4),
)


def make_wide(out: Path) -> None:
    """A model of random weights, twice as wide as the bundled one."""
    shutil.copytree(DEMO, out, ignore=shutil.ignore_patterns("*.safetensors", "stories.txt"))
    told = {**json.loads((DEMO / "config.json").read_text()), **WIDE, "num_key_value_heads": 4}
    (out / "config.json").write_text(json.dumps(told))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in skeleton(read_config(out)).named_parameters()}
    tensors = {n: (torch.randn(s, generator=generator) * 0.02 + (len(s) == 1)).bfloat16() for n, s in shapes.items()}
    save_file(tensors, out / "model.safetensors")


def busy() -> float:
    """Seconds that all cores have worked, for whomever."""
    found = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(found[:8]) - found[3] - found[4]) / os.sysconf("SC_CLK_TCK")  # not idle, not waiting for a disk


def learn(folder: Path, original: Path, row: Row, out: Path) -> None:
    """What each worker does: it recovers, and writes the seconds of each step, its own and those of all cores."""
    times: list[tuple[float, float, float]] = []
    step = Learner.step

    def now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), busy()

    def timed(self: Learner, *given: Any) -> float:
        before = now()
        found = step(self, *given)
        wall, own, all_ = (after - begun for after, begun in zip(now(), before, strict=True))
        times.append((wall, own, all_))
        return found

    Learner.step = timed  # type: ignore[method-assign]
    windows = torch.randint(0, 2048, (4 * row.batch, row.length), generator=torch.Generator().manual_seed(0))
    training = lissom.Training(
        steps=TAKEN,
        looks=1,
        batch=row.batch,
        train=row.train,
        gradients=row.gradients,
        checkpointing=row.checkpointing,
    )
    held = windows[:1]
    lissom.recover_folder(folder, windows, out, training, original=original, held=held, layout=read_layout(row.layout))
    (out.parent / f"steps {os.environ.get('RANK', '0')}.json").write_text(json.dumps({"steps": times[WARM:]}))


def taken(work: Path, row: Row) -> tuple[float, float]:
    """The median seconds of the steps that were least disturbed, and how many cores other programs had in them."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(work / ".out.recover", ignore_errors=True)
    words = [__file__, str(work), "--row", json.dumps(asdict(row))]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(row.workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, *words], check=True, env=environment, stderr=subprocess.PIPE)
    told = [read_json(work / f"steps {rank}.json")["steps"] for rank in range(row.workers)]
    steps = []
    for each in zip(*told, strict=True):
        wall, _, all_ = each[0]
        steps.append((max(all_ - sum(own for _, own, _ in each), 0.0) / wall, wall))
    steps = sorted(steps)[: len(steps) // 4]
    return statistics.median(wall for _, wall in steps), statistics.mean(other for other, _ in steps)


def predicted(work: Path, row: Row, seconds: float) -> dict[str, Any]:
    """What is foreseen of a step, by pieces that are timed now."""
    original = DEMO if row.model == "demo" else work / row.model
    shapes = replace(read_shapes(original), bits=3.0)
    job = Recovery(
        shapes=shapes,
        batch=row.batch,
        length=row.length,
        train=row.train,
        gradients=row.gradients,
        checkpointing=row.checkpointing,
    )
    device, pieces = measure(
        work / f"{row.model} small",
        shapes,
        count=row.workers,
        batch=max(row.batch // Split(**read_layout(row.layout)).replicas, 1),
        length=row.length,
        train=row.train,
        gradients=row.gradients,
        seconds=seconds,
    )
    cluster = Cluster(device=device, count=row.workers, node=row.workers, outside=device.inside)
    split = Split(**read_layout(row.layout))
    if split.pipeline > 1:  # parts as `lissom recover` takes them where it is not told
        each = row.batch // split.replicas
        split = replace(split, parts=max(m for m in range(1, min(each, 4 * split.pipeline) + 1) if each % m == 0))
    return foreseen(job, split, cluster, pieces).as_dict()


def wait(patience: float) -> None:
    """Until all cores are idle for a second, but no longer than this many."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        before = busy()
        time.sleep(1)
        if busy() - before <= QUIET:
            return


def tried(work: Path, row: Row, seconds: float, patience: float) -> dict[str, Any]:
    """A row, and how much its steps were disturbed."""
    wait(patience)
    before = predicted(work, row, seconds)
    real, others = taken(work, row)
    after = predicted(work, row, seconds)
    both = [before["seconds"], after["seconds"]]
    parts = {name: (before[name] + after[name]) / 2 for name in ("compute_s", "memory_s")}
    parts["sync_s"] = (sum(before["sync_s"].values()) + sum(after["sync_s"].values())) / 2
    return {**asdict(row), **parts, "predicted": sum(both) / 2, "both": both, "taken": real, "others": others}


def best_of(work: Path, row: Row, tries: int, seconds: float, patience: float) -> dict[str, Any]:
    """The try that was least disturbed."""
    found: list[dict[str, Any]] = []
    while len(found) < tries and (not found or min(one["others"] for one in found) > QUIET):
        found.append(tried(work, row, seconds, patience))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return {**min(found, key=lambda one: one["others"]), "tries": len(found)}


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="demo,wide", help="models")
    parser.add_argument("--layouts", default="", help="those of the rows by ;, and others, each with a row of its own")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="that pieces are timed for")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for idle cores, before each try")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        row = Row(**json.loads(asked.row))
        original = DEMO if row.model == "demo" else asked.work / row.model
        learn(asked.work / f"{row.model} small", original, row, asked.work / "out")
        return
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir(parents=True)
    make_wide(asked.work / "wide")
    for name, folder in (("demo", DEMO), ("wide", asked.work / "wide")):
        empty = torch.empty(0, 8, dtype=torch.long)
        lissom.compress_checkpoint(folder, Recipe.of(STEPS), empty, asked.work / f"{name} small")
    rows = rows_of(asked.only.split(","), [layout for layout in asked.layouts.split(";") if layout])
    found = [best_of(asked.work, row, asked.tries, asked.seconds, asked.patience) for row in rows]
    table = "\n".join(markdown(HEAD, [shown(one) for one in found]))
    errors = [error(one) for one in found]
    summary = (
        f"The error is {100 * statistics.median(map(abs, errors)):.0f} % in the median of {len(errors)} rows, "
        f"and {100 * max(map(abs, errors)):.0f} % at most."
    )
    print(f"{table}\n\n{summary}")
    if asked.write:
        asked.write.write_text(f"{PAGE}\n{table}\n\n{summary}\n" + "\n".join(on_paper()), encoding="utf-8")
    print(json.dumps({"machine": describe().as_dict(), "rows": found}, default=str))


def rows_of(models: list[str], layouts: list[str]) -> list[Row]:
    """The rows of these models and layouts; a layout that has none gets one of each model."""
    found = [row for row in ROWS if row.model in models and (not layouts or row.layout in layouts)]
    new = [layout for layout in layouts if layout not in {row.layout for row in ROWS}]
    return found + [Row(model=model, layout=layout) for layout in new for model in models]


def error(one: dict[str, Any]) -> float:
    """How far what was foreseen is above what was taken."""
    return float(one["predicted"] / one["taken"] - 1)


HEAD = (
    "model",
    "layout",
    "batch",
    "length",
    "moves",
    "gradients",
    "products, ms",
    "memory",
    "link",
    "foreseen",
    "taken",
    "error, %",
    "others' cores",
)


def shown(one: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    model = f"{one['model']}{', checkpointing' * one['checkpointing']}"
    parts = [f"{1e3 * one[name]:.0f}" for name in ("compute_s", "memory_s", "sync_s", "predicted", "taken")]
    named = (model, one["layout"], str(one["batch"]), str(one["length"]), one["train"], one["gradients"])
    return (*named, *parts, f"{100 * error(one):+.0f}", f"{one['others']:.2f}")


PAGE = """# Plan

`lissom plan MODEL --devices 64 --device h200 --link 50GB/s --node 8 --for recover` foresees how long a step takes, the
memory of a device and what it sends, for every way to divide the devices over the axes `data`, `shard`, `tensor` and
`pipeline`; leaves out what does not fit; ranks the rest; and names the bottleneck of the best: compute, memory
bandwidth, synchronisation, or idling in the pipeline. `--for compress` and `--for serve` do so for calibration, and for
prompts and the tokens after them. A folder with a config.json is enough. `lissom.plan_devices` is the same in Python.

## What it rests on

- **Published**, for h100, h200, b200, a100, mi300x, tpu-v5e, tpu-v5p and tpu-v6e: peaks of products in 16 bits, memory
  and its bandwidth, and links inside of a node (`plan/device.py` names each source).
- **Assumed**, and printed with every plan: 40 % of the peak of products (`--efficiency` replaces it), 70 % of that of
  memory, 10 % of memory left free, 5 µs for a message inside of a node and 10 µs outside; what `shard` and `data` send
  is hidden behind computing where that is longer. Pieces that are shorter than it takes to start a kernel take longer.
- **Measured**, with `--device cpu`: the pieces of a step, never a step, by a process on each core at once
  (`plan/worker.py`): of what a process does alone the seconds that it worked, of what it does with others those of the
  clock. More workers than cores are devices of cores / workers each. Nothing is sent while computing, for a core that
  sends does not compute.
- **Formulas**: FLOPs and pipeline bubbles by Narayanan et al. 2021 (arXiv:2104.04473), activations by Korthikanti et
  al. 2022 (arXiv:2205.05198), shards by Rajbhandari et al. 2019 (arXiv:1910.02054), rings by Patarasuk and Yuan 2009,
  serving by Pope et al. 2022 (arXiv:2211.05102). What moves is float32, as in `recover/moving.py`; the original is
  whole on each device, as `lissom recover` has it, unless `--original` says that it is split or remembered.

## Foreseen and taken

`python benchmarks/plans.py WORK --write docs/plan.md` makes this page. The bundled language model (4 blocks of width
256), and one of random weights (6 blocks of width 512), both at 3 bits, recover by AdamW under torchrun, each worker
with one thread. Before and after, the pieces are timed as `lissom plan --device cpu` does; nothing is fitted to steps.
Times are milliseconds of a step. The last column is how many cores other programs had in the steps that count.
"""
PAPER = """
## On paper

A model of {weights:.3f} trillion weights (128 blocks of width 25,600) on 10,000 H200 in nodes of 8, each of which sends
50 GB/s to other nodes, 10,000 windows of 4,096 tokens a step, with checkpointing and the original split; planned in
{seconds:.1f} s:
"""


def on_paper() -> list[str]:
    """The largest plan, as a section of the page."""
    begun = time.perf_counter()
    plan = lissom.plan_devices(
        TRILLION,
        devices=10_000,
        device="h200",
        link="50GB/s",
        node=8,
        batch=10_000,
        length=4096,
        checkpointing=True,
        original="split",
    )
    text = PAPER.format(weights=TRILLION.weights / 1e12, seconds=time.perf_counter() - begun)
    head = ("split", "parts", "seconds", "tokens/s", "memory, GB", "sent, GB", "bottleneck", "of a step, %")
    rows = []
    for one in plan.ranked[:5]:
        sizes = f"{one.nbytes / 1e9:.0f}", f"{one.sent / 1e9:,.0f}"
        share = f"{100 * one.shares[one.bottleneck]:.0f}"
        figures = str(one.split.parts), f"{one.seconds:.0f}", f"{one.tokens_per_s:,.0f}"
        rows.append((str(one.split), *figures, *sizes, one.bottleneck, share))
    return [text, *markdown(head, rows), ""]


if __name__ == "__main__":
    main()
