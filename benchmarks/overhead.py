"""What HTTP costs: first tokens and tokens per second of a server, beside those of the engine alone.

    python benchmarks/overhead.py MODEL [--streams 1 8 32] [--prompt 128] [--new 64] [--rounds 7] [--write FILE]

The same model twice in memory: the engine alone in a process, and `lissom serve`, which is asked for streams over a
socket. The two take turns, with new prompts each time, so that nothing of them is cached; all streams of a turn begin
at once. A first token is counted from then until it is there, of all streams; the rate is that of all tokens from then
to the last. Prints a table of medians with their spread and ratios of turns beside each other,
then one JSON line.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sections import write_section

from lissom.artifact import open_tokenizer
from lissom.estimate import Estimate, median_estimate
from lissom.hardware import describe

WORDS = 1000  # tokens of prompts are drawn from the first of the vocabulary
SAID = " the"  # always written: random weights would write many tokens that are no text, which no stream shows
console = Console(width=150, record=True)

Turn = tuple[float, float]  # milliseconds to the first token, the median of the streams; tokens per second of all


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Time the server beside its engine.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of a continuation")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


def alone(folder: str, most: int, room: int, bias: dict[int, float], asked: Any) -> None:
    """The engine by itself, in a process: it answers lists of prompts with what a turn took."""
    from lissom.artifact import open_folder
    from lissom.engine import Engine, Sampling
    from lissom.engine.lower import lower

    opened = open_folder(folder, bare=True)
    model: Any = lower(opened.model)
    engine = Engine(
        model, opened.tokenizer, max_tokens_in_cache=room, max_batch=most, cache=opened.cache, speculate="off"
    )
    asked.send("ready")
    while (said := asked.recv()) is not None:
        prompts, new = said
        begun, firsts = time.perf_counter(), dict[Any, float]()
        sampling = Sampling(max_tokens=new, ignore_eos=True, logit_bias=bias)
        every = [engine.add(one, sampling) for one in prompts]
        while any(one.finish is None for one in every):
            for one in engine.step():
                firsts.setdefault(one, time.perf_counter() - begun)
        asked.send(turn(firsts.values(), time.perf_counter() - begun, len(prompts) * new))


def turn(firsts: Any, seconds: float, tokens: int) -> Turn:
    """What a turn took."""
    return 1000 * statistics.median(firsts), tokens / seconds


async def streamed(
    client: httpx.AsyncClient, prompts: Sequence[Sequence[int]], new: int, bias: dict[int, float]
) -> Turn:
    """The same by way of a server."""
    begun, firsts = time.perf_counter(), list[float]()

    async def ask(prompt: Sequence[int]) -> None:
        how = {"max_tokens": new, "ignore_eos": True, "logit_bias": bias, "stream": True}
        body, first = {"model": "model", "prompt": prompt, **how}, True
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if first and line.startswith("data: "):
                    firsts.append(time.perf_counter() - begun)
                    first = False

    await asyncio.gather(*map(ask, prompts))
    return turn(firsts, time.perf_counter() - begun, len(prompts) * new)


@contextmanager
def serving(folder: Path) -> Any:
    """The URL of a server of the folder."""
    command = [sys.executable, "-m", "lissom.cli", "serve", f"model={folder}", "--port", "0", "--speculate", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


async def measured(
    asked: argparse.Namespace, engine: Any, url: str, bias: dict[int, float]
) -> dict[int, list[tuple[Turn, Turn]]]:
    """Turns of the engine and of the server, for each number of streams."""
    draw, found = random.Random(0), dict[int, list[tuple[Turn, Turn]]]()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        for streams in asked.streams:
            found[streams] = []
            for number in range(asked.rounds + 1):
                mine, theirs = (
                    [[draw.randrange(10, WORDS) for _ in range(asked.prompt)] for _ in range(streams)] for _ in "ab"
                )
                engine.send((mine, asked.new))
                bare = engine.recv()
                through = await streamed(client, theirs, asked.new, bias)
                if number:  # the first one warms up
                    found[streams].append((bare, through))
    return found


def row(streams: int, turns: Sequence[tuple[Turn, Turn]]) -> dict[str, Any]:
    """Medians of both and of their ratios."""
    told: dict[str, Any] = {"streams": streams}
    for part, name in enumerate(("first token, ms", "tokens per second")):
        pairs = [(bare[part], through[part]) for bare, through in turns]
        told[f"{name}: engine"] = median_estimate([bare for bare, _ in pairs])
        told["server" + " " * part] = median_estimate([through for _, through in pairs])
        told["ratio" + " " * part] = median_estimate([through / bare for bare, through in pairs])
    return told


def shown(value: Any) -> str:
    """A median with the ends of its interval, or a number."""
    if not isinstance(value, Estimate):
        return str(value)
    digits = 2 if value.value < 10 else 0
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def main() -> None:
    """Measure, print, and write down."""
    asked = arguments()
    room = max(asked.streams) * (asked.prompt + asked.new + 32)
    bias = {open_tokenizer(asked.model).encode(SAID)[-1]: 100.0}
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=alone, args=(str(asked.model), 16, max(room, 16_384), bias, theirs)
    )
    process.start()
    ours.recv()
    with serving(asked.model) as url:
        found = asyncio.run(measured(asked, ours, url, bias))
    ours.send(None)
    process.join()
    rows = [row(streams, turns) for streams, turns in found.items()]
    title = f"{asked.model.name}: prompts of {asked.prompt} tokens, {asked.new} new ones"
    table = Table(title=title, box=None, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for one in rows:
        table.add_row(*(shown(value) for value in one.values()))
    console.print("\n".join(f"{name}: {value}" for name, value in describe().as_dict().items()))
    console.print(table)
    if asked.write:
        told = (
            f"python benchmarks/overhead.py MODEL --streams {' '.join(map(str, asked.streams))} --rounds {asked.rounds}"
        )
        write_section(asked.write, "What HTTP costs", told, console.export_text())
    plain = [{k: v if isinstance(v, int) else [v.value, v.low, v.high] for k, v in one.items()} for one in rows]
    print(json.dumps({"benchmark": "overhead", "model": asked.model.name, "rows": plain}))


if __name__ == "__main__":
    main()
