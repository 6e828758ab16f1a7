"""The page on plans: what stands around the table of `plans.py`, and the largest plan on paper."""

import time

from table import markdown

import lissom
from lissom.plan.shapes import Shapes

TRILLION = Shapes(blocks=128, hidden=25600, heads=160, kv_heads=20, head_dim=160, inner=83200, vocabulary=128000)
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
with one thread on a machine of two cores. Between two steps the same processes run all pieces once, those that `lissom
plan --device cpu` times; nothing is fitted to steps. With four workers the pieces are those of two, taken twice. Times
are milliseconds of a step.

By the clock, the steps count in which other programs had least of the cores; how much they had stands beside, and where
that is more than a tenth of a core beyond those that the workers leave, the clock tells of them rather than of the
plan, and no error is given. By work, it is the seconds that all workers worked in a step over the number of cores:
other programs hardly lengthen that, but waiting for one another is not in it.
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
