"""What a server withstands: clients that go at any moment, and an engine that is killed or stands still.

    python benchmarks/faults.py [--model lissom/demo] [--requests 10000] [--kills 20] [--stalls 5] [--write FILE]

`lissom serve` runs the model, at most 4 sequences at once; 32 clients ask it for texts, streamed or whole, and half of
them go before the end: at once (most are then in the queue), after a moment (while prompts are read) or after some of
the text. Meanwhile the engine's process is killed so many times (SIGKILL), and stopped so many times (SIGSTOP), at even
distances. Every request must be answered whole, refused, or told of a failure in the words of the API, and when all is
over no sequence, page or place in the queue may be left. Prints a table, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sections import write_section

from lissom.estimate import median_estimate
from lissom.hardware import describe

CLIENTS = 32
STALL_S = 5.0  # without progress until an engine is taken to stand still
REFUSED = {429, 500, 503}
console = Console(width=120, record=True)


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Try what a server withstands.")
    parser.add_argument("--model", type=Path, default=Path("lissom/demo"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stalls", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


SCRIPT = f"""
import sys
from lissom.server import FolderService, Limits, serve
service = FolderService(folder=sys.argv[1], name="model", max_batch=4)
serve([service], port=0, limits=Limits(stall_seconds={STALL_S}), announce=lambda url: print(url, flush=True))
"""


@dataclass
class Tried:
    """What became of the requests, and how long the engine was away each time."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    away: dict[str, list[float]] = field(default_factory=lambda: {"killed": [], "stuck": []})


async def ask(client: httpx.AsyncClient, draw: random.Random, tried: Tried) -> None:
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
    try:
        async with asyncio.timeout(patience):
            if stream:
                await streamed(client, body, draw.randrange(1, 20) if leaves else None, tried)
            else:
                judge(await client.post("/v1/completions", json=body), tried)
    except TimeoutError:
        tried.ends["client left"] += 1
        if not leaves:
            tried.wrong.append("no answer in time")
    except httpx.HTTPError as error:
        tried.wrong.append(f"{type(error).__name__} {error}")


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], chunks: int | None, tried: Tried) -> None:
    """A stream, read to the end or up to so many chunks."""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            judge(answer, tried)
            return
        last = ""
        async for line in answer.aiter_lines():
            last = line or last
            chunks = None if chunks is None or not line else chunks - 1
            if chunks == 0:
                tried.ends["client left"] += 1
                return
        if last == "data: [DONE]":
            tried.ends["answered"] += 1
        elif last.startswith("data: ") and "error" in json.loads(last[6:]):
            tried.ends["told of a failure"] += 1
        else:
            tried.wrong.append(f"a stream ended with {last[:100]!r}")


def judge(answer: httpx.Response, tried: Tried) -> None:
    """Count an answer in one piece."""
    if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"]:
        tried.ends["answered"] += 1
    elif answer.status_code in REFUSED and answer.json()["error"]["message"]:
        tried.ends["refused, 429" if answer.status_code == 429 else "told of a failure"] += 1
    else:
        tried.wrong.append(f"status {answer.status_code}: {answer.text[:100]}")


def engine(server: int) -> int:
    """The process of the engine."""
    while True:
        found = subprocess.run(["pgrep", "-P", str(server)], capture_output=True, text=True, check=False).stdout.split()
        if found:
            return int(found[-1])
        time.sleep(0.01)


async def trouble(client: httpx.AsyncClient, server: int, tried: Tried, left: list[int], asked: Any) -> None:
    """Kill and stop the engine at even distances of what is left to be asked."""
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
        tried.away[name].append(time.monotonic() - begun)


async def tried_out(url: str, server: int, asked: argparse.Namespace) -> tuple[Tried, dict[str, float]]:
    """All requests, and what the server says of itself when they are over."""
    tried, left = Tried(), [asked.requests]

    async def client_of(number: int) -> None:
        draw = random.Random(f"{asked.seed} {number}")
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            while left[0] > 0:
                left[0] -= 1
                before = tried.ends["told of a failure"]
                await ask(client, draw, tried)
                if tried.ends["told of a failure"] > before:
                    await asyncio.sleep(1)  # as clients do, who try again after a while

    async with httpx.AsyncClient(base_url=url, timeout=60) as watcher:
        await asyncio.gather(
            *(client_of(number) for number in range(CLIENTS)), trouble(watcher, server, tried, left, asked)
        )
        states: dict[str, float] = {}
        for _ in range(200):  # what was given up is let go of in a moment
            lines = (await watcher.get("/metrics")).text.splitlines()
            states = {
                line.split("{")[0]: float(line.split()[-1]) for line in lines if "{" in line and "le=" not in line
            }
            if not any(states[f"vllm:{name}"] for name in ("num_requests_running", "num_requests_waiting")):
                break
            await asyncio.sleep(0.05)
        full = await asyncio.gather(*(watcher.post("/v1/completions", json=SHORT) for _ in range(64)))
        tried.wrong += [f"afterwards: status {one.status_code}" for one in full if one.status_code != 200]
    return tried, states


SHORT = {"model": "model", "prompt": [5], "max_tokens": 1}


def main() -> None:
    """Try it, print, and write down."""
    asked = arguments()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(asked.model)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            begun = time.monotonic()
            tried, states = asyncio.run(tried_out(server.stdout.readline().strip(), server.pid, asked))
            seconds = time.monotonic() - begun
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(60)
    left = {
        name: states[f"vllm:{name}"] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    }
    away = {name: median_estimate(times) for name, times in tried.away.items() if times}
    table = Table(box=None, title=f"{asked.requests} requests in {seconds:.0f} s", title_justify="left")
    table.add_column("what became of them")
    table.add_column("", justify="right")
    for name, number in sorted(tried.ends.items()):
        table.add_row(name, f"{number:,}")
    table.add_row("anything else", f"{len(tried.wrong):,}")
    table.add_row("engines replaced", f"{states['lissom_engine_restarts_total']:.0f}")
    for name, times in away.items():
        table.add_row(f"seconds until ready again, {name}", f"{times.value:.2f} [{times.low:.2f}, {times.high:.2f}]")
    for name, value in left.items():
        table.add_row(f"{name} at the end", f"{value:g}")
    console.print("\n".join(f"{name}: {value}" for name, value in describe().as_dict().items()))
    console.print(table)
    for one in tried.wrong[:10]:
        console.print(f"wrong: {one}")
    if asked.write:
        how = f"--requests {asked.requests} --kills {asked.kills} --stalls {asked.stalls}"
        told = f"python benchmarks/faults.py --model {asked.model.name} {how}"
        write_section(asked.write, "What it withstands", told, console.export_text())
    figures = {name: [times.value, times.low, times.high] for name, times in away.items()}
    print(
        json.dumps(
            {"benchmark": "faults", "ends": tried.ends, "wrong": len(tried.wrong), "away_s": figures, "left": left}
        )
    )
    sys.exit(bool(tried.wrong or any(left.values())))


if __name__ == "__main__":
    main()
