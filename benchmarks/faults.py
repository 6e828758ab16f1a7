"""What a server withstands: clients that go at any moment, an engine that is killed or stands still, and its end.

    python benchmarks/faults.py [--model lissom/demo] [--requests 10000] [--kills 20] [--stalls 5] [--stops 10]
        [--write FILE]

`lissom serve` runs the model, at most 4 sequences at once; 32 clients ask it for texts, streamed or whole, and half of
them go before the end: at once (most are then in the queue), after a moment (while prompts are read) or after some of
the text. Meanwhile the engine's process is killed so many times (SIGKILL), and stopped so many times (SIGSTOP), at even
distances. Every request must be answered whole, refused, or told of a failure in the words of the API, and when all is
over no sequence, page or place in the queue may be left. Then other servers are told to stop (SIGTERM) while streams
run, and one has a disk that is full (faults_end.py). Prints a table, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from faults_end import full_disk, told_to_stop
from rich.console import Console
from rich.table import Table
from sections import write_section
from served import LEFT, TOLD, Tally, children, heard, serving, states

from lissom.estimate import median_estimate
from lissom.hardware import describe

CLIENTS = 32
STALL_S = 5.0  # without progress until an engine is taken to stand still
LEFT_OVER = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
console = Console(width=120, record=True)


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Try what a server withstands.")
    parser.add_argument("--model", type=Path, default=Path("lissom/demo"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stalls", type=int, default=5)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


SCRIPT = f"""
import sys
from lissom.server import FolderService, Limits, serve
service = FolderService(folder=sys.argv[1], name="model", max_batch=4)
serve([service], port=0, limits=Limits(stall_seconds={STALL_S}), announce=lambda url: print(url, flush=True))
"""


async def ask(client: httpx.AsyncClient, draw: random.Random, tally: Tally) -> None:
    """One request, which may be given up on the way."""
    stream, leaves = draw.random() < 0.5, draw.random() < 0.5
    prompt = [draw.randrange(10, 1000) for _ in range(draw.choice((4, 40, 400)))]
    body = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": draw.randrange(1, 65),
        "ignore_eos": True,
        "stream": stream,
    }
    patience = draw.choice((0.001, 0.05, 0.5)) if leaves else 300.0
    events = draw.randrange(1, 20) if leaves and stream else None
    try:
        async with asyncio.timeout(patience):
            tally.count((await heard(client, "/v1/completions", body, events))[0])
    except TimeoutError:
        tally.count(LEFT if leaves else "no answer in time")
    except httpx.HTTPError as error:
        tally.count(f"{type(error).__name__} {error}")


def engine(server: int) -> int:
    """The process of the engine."""
    while not (found := children(server)):
        time.sleep(0.01)
    return found[-1]


Away = dict[str, list[float]]  # seconds


async def trouble(client: httpx.AsyncClient, server: int, left: list[int], asked: Any) -> Away:
    """Kill and stop the engine at even distances of what is left to be asked; how long it was away each time."""
    away: Away = {"killed": [], "stuck": []}
    faults = [("killed", signal.SIGKILL)] * asked.kills + [("stuck", signal.SIGSTOP)] * asked.stalls
    random.Random(asked.seed).shuffle(faults)
    for number, (name, how) in enumerate(faults):
        while left[0] > asked.requests * (1 - (number + 0.5) / len(faults)):
            await asyncio.sleep(0.02)
        pid, begun = await asyncio.to_thread(engine, server), time.monotonic()
        os.kill(pid, how)
        waits = asyncio.create_task(client.post("/v1/completions", json=SHORT))  # who stands still is seen by who waits
        while await asyncio.to_thread(engine, server) == pid or (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
        await waits
        away[name].append(time.monotonic() - begun)
    return away


async def tried_out(url: str, server: int, asked: argparse.Namespace) -> tuple[Tally, Away, dict[str, float]]:
    """All requests, how long the engine was away, and what the server says of itself when they are over."""
    tally, left = Tally(), [asked.requests]

    async def client_of(number: int) -> None:
        draw = random.Random(f"{asked.seed} {number}")
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            while left[0] > 0:
                left[0] -= 1
                before = tally.ends[TOLD]
                await ask(client, draw, tally)
                if tally.ends[TOLD] > before:
                    await asyncio.sleep(1)  # as clients do, who try again after a while

    async with httpx.AsyncClient(base_url=url, timeout=60) as watcher:
        away, *_ = await asyncio.gather(trouble(watcher, server, left, asked), *map(client_of, range(CLIENTS)))
        for _ in range(200):  # what was given up is let go of in a moment
            left_over = await states(watcher)
            if not any(left_over[f"vllm:{name}"] for name in ("num_requests_running", "num_requests_waiting")):
                break
            await asyncio.sleep(0.05)
        full = await asyncio.gather(*(watcher.post("/v1/completions", json=SHORT) for _ in range(64)))
        tally.wrong.extend(f"afterwards: status {one.status_code}" for one in full if one.status_code != 200)
    return tally, away, left_over


SHORT = {"model": "model", "prompt": [5], "max_tokens": 1}


def main() -> None:
    """Try it, print, and write down."""
    asked = arguments()
    with serving(SCRIPT, asked.model) as (url, server):
        begun = time.monotonic()
        tally, absent, found = asyncio.run(tried_out(url, server.pid, asked))
        seconds = time.monotonic() - begun
    left = {name: found[f"vllm:{name}"] for name in LEFT_OVER}
    away = {name: median_estimate(times) for name, times in absent.items() if times}
    rows = {**tally.rows, "engines replaced": f"{found['lissom_engine_restarts_total']:.0f}"}
    for name, times in away.items():
        rows[f"seconds until ready again, {name}"] = f"{times.value:.2f} [{times.low:.2f}, {times.high:.2f}]"
    rows |= {f"{name} at the end": f"{value:g}" for name, value in left.items()}
    stopped, full = told_to_stop(asked.model, asked.stops), full_disk(asked.model)
    console.print("\n".join(f"{name}: {value}" for name, value in describe().as_dict().items()))
    show(f"{asked.requests} requests in {seconds:.0f} s", rows)
    show(f"SIGTERM while streams run, {asked.stops} times", stopped.rows)
    show("a full disk", full.rows)
    wrong = [*tally.wrong, *stopped.wrong, *full.wrong]
    for one in wrong[:10]:
        console.print(f"wrong: {one}", markup=False)
    if asked.write:
        how = f"--requests {asked.requests} --kills {asked.kills} --stalls {asked.stalls} --stops {asked.stops}"
        told = f"python benchmarks/faults.py --model {asked.model.name} {how}"
        write_section(asked.write, "What it withstands", told, console.export_text())
    figures = {name: [times.value, times.low, times.high] for name, times in away.items()}
    others = {"stopped": stopped.rows, "full_disk": full.rows}
    ends = {"ends": tally.ends, "wrong": len(wrong), "away_s": figures, "left": left, **others}
    print(json.dumps({"benchmark": "faults", **ends}))
    sys.exit(bool(wrong or any(left.values())))


def show(title: str, rows: dict[str, str]) -> None:
    """Figures under a title."""
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("what became of them")
    table.add_column("", justify="right")
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
