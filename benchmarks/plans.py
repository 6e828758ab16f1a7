"""Plans: the step that is foreseen of pieces, beside the step that several workers take.

    python benchmarks/plans.py WORK [--only demo,wide] [--layouts "data=1;data=2;shard=2;data=2,shard=2"] [--again]
        [--write docs/plan.md]

For each row a model recovers under torchrun in that layout, and between two steps all pieces are run once, by the same
processes: what disturbs meets both. Nothing is fitted. Two comparisons are made. By the clock: the steps that count are
the quarter in which other programs had least of the cores. By work: the seconds that the workers worked in a step, over
the cores, which other programs do not lengthen; waiting is not in it, and of pieces that wait only the work is taken.
What was found is kept in WORK; --again does rows again in whose steps others had more than a tenth of a core of those
that the workers need. Prints a table, then one JSON line.
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
from plans_page import PAGE, on_paper
from safetensors.torch import save_file
from table import markdown

import lissom
from lissom.compress.layers import evaluating
from lissom.hardware import describe
from lissom.hardware.machine import cores
from lissom.models.checkpoint import read_config, skeleton
from lissom.plan.choose import foreseen
from lissom.plan.device import Device, Link
from lissom.plan.measured import WORKED, Measured, asked_of, device_of, write_small
from lissom.plan.reading import read_shapes
from lissom.plan.recovery import Recovery
from lissom.plan.split import Cluster, Split
from lissom.plan.worker import Bench, once, told_of
from lissom.recover.learner import Learner
from lissom.recover.model import learnable
from lissom.recover.parallel.layout import read_layout
from lissom.recover.parallel.workers import Workers, workers
from lissom.types import Recipe

DEMO = Path(lissom.__file__).parent / "demo"
STEPS = [{"layers": "model.layers.*", "technique": "rtn", "bits": 3, "group": 64}]
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
TAKEN, WARM = 16, 3  # steps, and those of them that do not count
QUIET = 0.1  # cores that other programs may have, beside those that the workers leave


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
    Row(layout="tensor=2"),
    Row(layout="pipeline=2"),
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


def now() -> tuple[float, float, float]:
    """The clock, what this process has worked, and what all cores have."""
    return time.perf_counter(), time.process_time(), busy()


def learn(work: Path, row: Row, team: Workers, bench: Bench | None) -> dict[str, Any]:
    """What each worker does of a row: it recovers, and between two steps it runs all pieces, where it has such."""
    times: list[tuple[float, float, float]] = []
    found: dict[str, list[float]] = {}
    step, pieces = Learner.step, {} if bench is None else bench.pieces()

    def timed(self: Learner, *given: Any) -> float:
        team.wait()
        before = now()
        loss = step(self, *given)
        times.append(tuple(after - begun for after, begun in zip(now(), before, strict=True)))  # type: ignore[arg-type]
        if bench is not None:
            with learnable(bench.student), learnable(bench.teacher), evaluating(bench.student):
                for name, spent in once(pieces, team).items():
                    found.setdefault(name, []).append(spent)
        return loss

    Learner.step = timed  # type: ignore[method-assign]
    try:
        out = work / f"out {team.count}"
        if team.first:
            shutil.rmtree(out, ignore_errors=True)
        team.wait()
        recover(work, row, out)
    finally:
        Learner.step = step  # type: ignore[method-assign]
    each = [[team.mean(own, 1.0) * team.count for _, own, _ in times[WARM:]], times[WARM:]]
    told = {} if bench is None else told_of(bench, {name: spent[WARM:] for name, spent in found.items()})
    return {"row": asdict(row), **taken(row, *each), "told": told}


def recover(work: Path, row: Row, out: Path) -> None:
    """Recover it, by as many workers as there are."""
    windows = torch.randint(0, 2048, (4 * row.batch, row.length), generator=torch.Generator().manual_seed(0))
    training = lissom.Training(
        steps=TAKEN,
        looks=1,
        batch=row.batch,
        train=row.train,
        gradients=row.gradients,
        checkpointing=row.checkpointing,
    )
    lissom.recover_folder(
        work / f"{row.model} small",
        windows,
        out,
        training,
        original=original(work, row),
        held=windows[:1],
        layout=read_layout(row.layout),
    )


def original(work: Path, row: Row) -> Path:
    """The model that learns, before it was compressed."""
    return DEMO if row.model == "demo" else work / row.model


def taken(row: Row, worked: list[float], times: list[tuple[float, float, float]]) -> dict[str, float]:
    """Seconds of a step: by the clock where it was least disturbed, and of the cores that all workers have worked."""
    others = [max(all_ - own, 0.0) / wall for own, (wall, _, all_) in zip(worked, times, strict=True)]
    least = sorted(zip(others, (wall for wall, _, _ in times), strict=True))[: -(-len(times) // 4)]
    return {
        "taken": statistics.median(wall for _, wall in least),
        "others": statistics.mean(other for other, _ in least),
        "worked": statistics.median(worked) / min(row.workers, cores()),
    }


def bench_of(work: Path, row: Row, team: Workers, scratch: Path) -> Bench:
    """The pieces of a row."""
    if os.environ.get("RANK", "0") == "0":
        write_small(original(work, row), scratch)
    team.wait()
    shapes = read_shapes(original(work, row))
    each = row.batch // Split(**read_layout(row.layout)).replicas
    given = {"train": row.train, "gradients": row.gradients}
    asked = asked_of(work / f"{row.model} small", shapes, batch=each, length=row.length, **given)
    return Bench(scratch, asked, team)


def job(work: Path, rows: list[Row]) -> None:
    """What a process does: all rows of as many workers as there are, and the pieces of those of more than cores."""
    with workers() as team:
        for number, row in enumerate(rows):
            timed, whole = team.count == min(row.workers, cores()), team.count == row.workers
            scratch = work / f"scratch {team.count} {number}"
            scratch.mkdir(exist_ok=True)
            bench = bench_of(work, row, team, scratch) if timed else None
            if whole:
                told = learn(work, row, team, bench)
            else:
                assert bench is not None
                told = {"row": asdict(row), "told": alone(bench, team)}
            if team.first:
                with (work / "found.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(told) + "\n")


def alone(bench: Bench, team: Workers) -> dict[str, Any]:
    """Pieces without steps."""
    pieces, found = bench.pieces(), dict[str, list[float]]()
    with learnable(bench.student), learnable(bench.teacher), evaluating(bench.student):
        for _ in range(TAKEN):
            for name, spent in once(pieces, team).items():
                found.setdefault(name, []).append(spent)
    return told_of(bench, {name: spent[WARM:] for name, spent in found.items()})


def start(work: Path, rows: list[Row], count: int) -> None:
    """Processes that do rows."""
    if not rows:
        return
    words = [__file__, str(work), "--rows", json.dumps([asdict(row) for row in rows])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    subprocess.run([*torchrun, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kept(work: Path, row: Row) -> dict[str, Any] | None:
    """What was found of a row last, of steps that were least disturbed and of pieces; None where one is missing."""
    file = work / "found.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [one for one in map(json.loads, lines) if one["row"] == asdict(row)]
    steps, pieces = [one for one in found if "taken" in one], [one for one in found if one["told"]]
    if not steps or not pieces:
        return None
    best = min(steps, key=lambda one: one["others"])
    return {**best, "told": best["told"] or pieces[-1]["told"]}


def predicted(work: Path, row: Row, told: dict[str, Any], own: str = "") -> dict[str, Any]:
    """What is foreseen of a step of a row, by pieces; with `WORKED` of those that wait for others what they work."""
    shapes = replace(read_shapes(original(work, row)), bits=3.0)
    recovery = Recovery(
        shapes=shapes,
        batch=row.batch,
        length=row.length,
        train=row.train,
        gradients=row.gradients,
        checkpointing=row.checkpointing,
    )
    pieces = Measured.of(told["pieces"], told["workers"], row.workers / told["workers"], own)
    device: Device = device_of(told, pieces, shapes, row.length, row.workers)
    link: Link = device.inside
    split = Split(**read_layout(row.layout))
    if split.pipeline > 1:  # parts as `lissom recover` takes them where it is not told
        each = row.batch // split.replicas
        split = replace(split, parts=max(m for m in range(1, min(each, 4 * split.pipeline) + 1) if each % m == 0))
    cluster = Cluster(device=device, count=row.workers, node=row.workers, outside=link)
    return foreseen(recovery, split, cluster, pieces).as_dict()


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="demo,wide", help="models")
    parser.add_argument("--layouts", default="", help="those of the rows by ;, and others, each with a row of its own")
    parser.add_argument("--again", action="store_true", help="do rows again whose steps were disturbed")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rows:
        job(asked.work, [Row(**row) for row in json.loads(asked.rows)])
        return
    prepare(asked.work)
    for begun in asked.work.glob(".out *"):  # by whom was stopped
        shutil.rmtree(begun)
    rows = rows_of(asked.only.split(","), [layout for layout in asked.layouts.split(";") if layout])
    known = {row: kept(asked.work, row) for row in rows}
    missing = [row for row, one in known.items() if one is None or (asked.again and not undisturbed(one))]
    for count in sorted({row.workers for row in missing} | {min(row.workers, cores()) for row in missing}):
        start(asked.work, [row for row in missing if count in (row.workers, min(row.workers, cores()))], count)
    found = [figures(asked.work, one) for row in rows if (one := kept(asked.work, row))]
    text = "\n".join((*markdown(HEAD, [shown(one) for one in found]), "", *summary(found)))
    print(text)
    if asked.write:
        asked.write.write_text(f"{PAGE}\n{text}\n" + "\n".join(on_paper()), encoding="utf-8")
    print(json.dumps({"machine": describe().as_dict(), "rows": found}, default=str))


def figures(work: Path, one: dict[str, Any]) -> dict[str, Any]:
    """A row with both of what is foreseen."""
    row = Row(**one["row"])
    clock, work_ = (predicted(work, row, one["told"], own) for own in ("", WORKED if row.workers > 1 else ""))
    work_["seconds"] -= work_["idle_s"]
    each = {"clock": clock["seconds"] / one["taken"] - 1, "work": work_["seconds"] / one["worked"] - 1}
    return {**{name: one[name] for name in ("row", "taken", "worked", "others")}, "by": [clock, work_], "errors": each}


def undisturbed(one: dict[str, Any]) -> bool:
    """Whether other programs had, in the steps that count, hardly more than the cores that the workers leave."""
    return bool(one["others"] <= cores() - min(Row(**one["row"]).workers, cores()) + QUIET)


def summary(found: list[dict[str, Any]]) -> list[str]:
    """The errors of all rows, in words."""
    lines = []
    for name, rows in (("work", found), ("clock", [one for one in found if undisturbed(one)])):
        errors = [abs(one["errors"][name]) for one in rows]
        if errors:
            middle, most = (f"{100 * of(errors):.0f} %" for of in (statistics.median, max))
            lines.append(f"By {name} the error is {middle} in the median of {len(errors)} rows, and {most} at most.")
    return lines


def prepare(work: Path) -> None:
    """The models, unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "wide").exists():
        make_wide(work / "wide")
    for name, folder in (("demo", DEMO), ("wide", work / "wide")):
        if not (work / f"{name} small").exists():
            empty = torch.empty(0, 8, dtype=torch.long)
            lissom.compress_checkpoint(folder, Recipe.of(STEPS), empty, work / f"{name} small")


def rows_of(models: list[str], layouts: list[str]) -> list[Row]:
    """The rows of these models and layouts; a layout that has none gets one of each model."""
    found = [row for row in ROWS if row.model in models and (not layouts or row.layout in layouts)]
    new = [layout for layout in layouts if layout not in {row.layout for row in ROWS}]
    return found + [Row(model=model, layout=layout) for layout in new for model in models]


HEAD = (
    "model",
    "layout",
    "batch",
    "length",
    "moves",
    "gradients",
    "products",
    "memory",
    "link",
    "foreseen",
    "taken",
    "error, %",
    "others' cores",
    "work foreseen",
    "worked",
    "error, %",
)


def shown(one: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    row, (clock, work) = one["row"], one["by"]
    model = f"{row['model']}{', checkpointing' * row['checkpointing']}"
    named = (model, row["layout"], str(row["batch"]), str(row["length"]), row["train"], row["gradients"])
    parts = (clock["compute_s"], clock["memory_s"], sum(clock["sync_s"].values()) + clock["idle_s"])
    errors = {name: f"{100 * error:+.0f}" for name, error in one["errors"].items()}
    errors |= {} if undisturbed(one) else {"clock": ""}
    ms = [f"{1e3 * part:.0f}" for part in (*parts, clock["seconds"], one["taken"], work["seconds"], one["worked"])]
    return (*named, *ms[:5], errors["clock"], f"{one['others']:.2f}", *ms[5:], errors["work"])


if __name__ == "__main__":
    main()
