"""Gradients in few bits on a slow network: how long processes take to learn as much as with float32.

    python benchmarks/gradients.py [--processes 2,4] [--rate 100mbit] [--steps 60] [--seeds 3] [--only int4,...]
                                   [--write FILE]

The bundled language model, rounded to 2 bits, learns its stories again with all its weights, on processes that each
have a network namespace of their own: what one sends passes a token bucket (Linux's tbf) of so many bits a second, and
bytes are those that its network interface counted. Every kind starts from the same weights and reads the same windows,
the kinds take turns, and the clock stands still while the loss on held-out windows is taken. Prints tables, then one
JSON line; `--write` puts the tables into a page, as a section. It needs root, `ip` and `tc`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sections import put_section
from table import markdown, span
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

import lissom
from lissom.calibrate import token_windows
from lissom.estimate import median_estimate
from lissom.formats import Dense, matrix_of
from lissom.hardware import describe
from lissom.recover.optimizers import make
from lissom.recover.parallel.gradients import KINDS, compress_gradients
from lissom.recover.parallel.local import LocalSteps
from lissom.recover.parallel.workers import leave
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

DEMO = Path(lissom.__file__).parent / "demo"
LOCAL = "int4 of local steps"
PLAIN = ("float32", "float16")
ALL = (*PLAIN, *KINDS, LOCAL)
LENGTH, LOT, HELD, LOOKS, EVERY = 128, 4, 32, 12, 10
LR, PORT, NET = 3e-4, 29_555, "lissom"
NEAR = 1.005  # times the loss that float32 ends with
PARTS = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the time that float32 takes


@contextmanager
def network(n: int, rate: str) -> Iterator[list[str]]:
    """Names of n network namespaces whose interfaces meet at a bridge; what each sends is slowed down."""
    names = [f"{NET}{place}" for place in range(n)]

    def run(*words: str) -> None:
        subprocess.run(words, check=True)

    run("ip", "link", "add", NET, "type", "bridge")
    try:
        run("ip", "link", "set", NET, "up")
        for place, name in enumerate(names):
            inside = ("ip", "netns", "exec", name)
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{name}b", "type", "veth", "peer", "name", f"{name}e")
            run("ip", "link", "set", f"{name}e", "netns", name)
            run("ip", "link", "set", f"{name}b", "master", NET, "up")
            run(*inside, "ip", "addr", "add", f"10.77.0.{place + 1}/24", "dev", f"{name}e")
            run(*inside, "ip", "link", "set", f"{name}e", "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            run(*inside, "tc", "qdisc", "add", "dev", f"{name}e", "root", "tbf", "rate", rate, "burst", "256kb",
                "latency", "400ms")  # fmt: skip
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", NET], check=False)


def learned(kind: str, names: Sequence[str], steps: int, seed: int) -> dict[str, Any]:
    """What the first of the processes tells of one run: losses and seconds at each look, bytes of all."""
    started = []
    for rank, name in enumerate(names):
        asked = json.dumps({"kind": kind, "n": len(names), "rank": rank, "steps": steps, "seed": seed, "name": name})
        command = ["ip", "netns", "exec", name, sys.executable, __file__, "--worker", asked]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{kind}: a process failed")
    return json.loads(said[0].splitlines()[-1])


def ruined() -> nn.Module:
    """The bundled model, its matrices rounded to 2 bits; all of it moves."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if isinstance(layer, nn.Linear):
                weight = Dense(values=matrix_of(layer).detach())
                layer.weight.copy_(rtn(weight, Moments.blank(layer.in_features), bits=2, group=64).dense())
    return model


def worker(asked: dict[str, Any]) -> None:
    """One process."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": f"{asked['name']}e"}
    place = f"tcp://10.77.0.1:{PORT}"
    dist.init_process_group("gloo", init_method=place, world_size=asked["n"], rank=asked["rank"])
    print(json.dumps(run(asked)))
    leave()


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Learn, look at the loss now and then, and tell how it went."""
    n, rank, interface = asked["n"], asked["rank"], f"{asked['name']}e"
    windows = token_windows((DEMO / "stories.txt").read_text(), AutoTokenizer.from_pretrained(DEMO), LENGTH)
    held, seen = windows[:HELD], windows[HELD:]
    model, kind = ruined(), asked["kind"]
    shared, meter, local = model, None, None
    if kind == LOCAL:
        local = LocalSteps(model, every=EVERY, kind="int4")
        meter = local.meter
    else:
        shared = DistributedDataParallel(model, find_unused_parameters=False)
        if kind == "float16":
            shared.register_comm_hook(None, fp16_compress_hook)
        elif kind not in PLAIN:
            meter = compress_gradients(shared, kind)
    optimizer = make("adam", model.parameters(), LR)
    draw = torch.Generator().manual_seed(asked["seed"])
    spent, told, before = 0.0, [], counted(interface)
    for step in range(asked["steps"]):
        places = torch.randint(len(seen), (n * LOT,), generator=draw)[rank::n]
        dist.barrier()
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss_of(shared, seen[places]).backward()
        optimizer.step()
        if local is not None:
            local.step()
        spent += time.perf_counter() - begun
        if (step + 1) % (asked["steps"] // LOOKS) == 0:
            with torch.no_grad():
                told.append((float(loss_of(model, held)), spent))
    sent = torch.tensor([counted(interface) - before], dtype=torch.float64)
    dist.all_reduce(sent)
    return {"looks": told, "bytes": float(sent) / n, "meter": meter and meter.sent}


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean loss of each token after the first."""
    logits = model(windows, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def counted(interface: str) -> int:
    """Bytes that an interface has sent."""
    said = subprocess.run(["ip", "-j", "-s", "link", "show", interface], capture_output=True, text=True, check=True)
    return int(json.loads(said.stdout)[0]["stats64"]["tx"]["bytes"])


def seconds_until(looks: Sequence[Sequence[float]], loss: float) -> float | None:
    """When the loss was first so low, on a line between looks; None if it never was."""
    for (one, early), (other, late) in zip([(looks[0][0], looks[0][1]), *looks], looks, strict=False):
        if other <= loss:
            share = (one - loss) / (one - other) if one > other else 1.0
            return early + min(max(share, 0.0), 1.0) * (late - early)
    return None


def loss_at(looks: Sequence[Sequence[float]], seconds: float) -> float:
    """The loss after so many seconds, on a line between looks; the first or last that is known beyond them."""
    return float(np.interp(seconds, [clock for _, clock in looks], [loss for loss, _ in looks]))


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the kinds of one number of processes sent and ended with, and when they were as good as float32 was then."""
    ends = [run["looks"][-1][0] for run in found["float32"]]
    plain = statistics.median(run["bytes"] for run in found["float32"])
    head = ("gradients", "MB a process sends", "of float32's", "loss at the end", "of float32's", "seconds")
    body = []
    for kind, runs in found.items():
        sent = statistics.median(run["bytes"] for run in runs)
        losses = median_estimate([run["looks"][-1][0] for run in runs])
        ratios = median_estimate([run["looks"][-1][0] / end for run, end in zip(runs, ends, strict=True)])
        clock = median_estimate([run["looks"][-1][1] for run in runs], unit="s")
        until = [seconds_until(run["looks"], NEAR * end) for run, end in zip(runs, ends, strict=True)]
        reached = [value for value in until if value is not None]
        said = span(median_estimate(reached), ".1f") if len(reached) == len(runs) else f"{len(reached)} of {len(runs)}"
        figures = (f"{sent / 1e6:.1f}", f"1/{plain / sent:.1f}", f"{losses.value:.4f}", span(ratios, ".4f"))
        body.append((kind, *figures, span(clock, ".1f"), said))
    return markdown((*head, f"seconds until {NEAR} x float32's end"), body)


def curves(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The loss of each kind after parts of the time that float32 took."""
    whole = statistics.median(run["looks"][-1][1] for run in found["float32"])
    clocks = [part * whole for part in PARTS]
    body = [
        (kind, *(span(median_estimate([loss_at(run["looks"], clock) for run in runs]), ".3f") for clock in clocks))
        for kind, runs in found.items()
    ]
    return markdown(("gradients, loss after", *(f"{clock:.1f} s" for clock in clocks)), body)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=lambda words: [int(word) for word in words.split(",")], default=[2, 4])
    parser.add_argument("--rate", default="100mbit", help="of each process's link, as tc reads it")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(ALL), help="kinds")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page whose section it becomes")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker)
        return
    everything, tables = {}, []
    for n in asked.processes:
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in dict.fromkeys(["float32", *asked.only])}
        with network(n, asked.rate) as names:
            for seed in range(asked.seeds):
                for kind, runs in found.items():
                    runs.append(learned(kind, names, asked.steps, seed))
                    print(f"{n} processes, {kind}, seed {seed}: {runs[-1]['looks'][-1]}", file=sys.stderr)
        everything[n] = found
        tables += [f"### {n} processes, {asked.rate} each", "", *table(found), "", *curves(found), ""]
    told = "\n".join(tables)
    print(told)
    if asked.write:
        put_section(asked.write, TITLE, f"{PAGE}\n{told}")
    print(json.dumps({"benchmark": "gradients", "machine": describe().as_dict(), "found": everything}))


TITLE = "Gradients in few bits on a slow network"
PAGE = """
`python benchmarks/gradients.py --write docs/scale.md` makes this section; it slows down links by Linux's traffic
control, which takes root.

The bundled language model, rounded to 2 bits, learns its stories again with all its weights, by Adam, in 60 steps of 4
windows of 128 tokens for each process. Each process has a network of its own, whose link lets through so many bits a
second; bytes are those that the link counted, protocol and all. Seconds are those of the steps. Each kind learns from
the same weights on the same windows, by turns with the others, from several seeds, whose range is told. Of local steps
each process takes ten by itself before they average what has changed (DiLoCo). A curve that has ended stays where it
ended.
"""

if __name__ == "__main__":
    main()
