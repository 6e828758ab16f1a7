"""Five times what a server can do: what it still does, how long those whom it takes wait, and what it holds.

    python benchmarks/overload.py MODEL --trace AzureLLMInferenceTrace_conv.csv [--seconds 600] [--times 5]
        [--promise 30] [--llama-server BINARY --gguf FILE] [--write FILE]

Requests have the lengths of those of the trace, in its order (prompts of at most 1,024 tokens, answers of at most 256).
First as many are asked as fit, one after another by 16 clients, for a third of the time: what is answered then is what
the server can do (who is refused there waits as long as he is told). Then they come at random (Poisson), with so many
times the tokens of that, whatever becomes of them; who is refused goes. Good are tokens of answers whose first one came
within the promise. Memory is that of all processes of the server. Prints a table, then one JSON line.
"""

import argparse
import asyncio
import csv
import json
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from sections import write_section
from served import memory, serving, text_of

from lissom.artifact import open_tokenizer
from lissom.hardware import describe

CLIENTS = 16  # as many as run at once
PROMPT, ANSWER = 1024, 256  # tokens at most
WORDS = 1000  # tokens of prompts are drawn from the first of the vocabulary
SAID = " the"  # always written: random weights would write many tokens that are no text
console = Console(width=150, record=True)

SCRIPT = """
import sys
from lissom.server import FolderService, Limits, serve
service = FolderService(folder=sys.argv[1], name="model", max_batch=16, max_tokens_in_cache=32768, speculate="off")
limits = Limits(first_token_seconds=float(sys.argv[2]))
serve([service], port=0, limits=limits, announce=lambda url: print(url, flush=True))
"""


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Ask a server for more than it can do.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--times", type=float, default=5)
    parser.add_argument("--promise", type=float, default=30, help="seconds until a first token")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


@dataclass
class Load:
    """What became of the requests of some time."""

    seconds: float = 0.0
    asked: int = 0
    refused: int = 0
    failed: int = 0
    finished: int = 0
    firsts: list[float] = field(default_factory=list)  # seconds until first tokens
    tokens: int = 0
    good: int = 0
    memory: list[float] = field(default_factory=list)  # MB

    def late(self, share: float) -> float:
        """The first token of which so many came sooner."""
        return sorted(self.firsts)[int(share * (len(self.firsts) - 1))] if self.firsts else float("nan")

    @property
    def row(self) -> list[str]:
        """The figures; of the memory the median of the first half of the time, and of the second."""
        half = len(self.memory) // 2
        halves = (statistics.median(part or [0]) for part in (self.memory[:half], self.memory[half:]))
        return [
            f"{self.good / self.seconds:.1f}",
            f"{self.tokens / self.seconds:.1f}",
            f"{self.asked:,}",
            f"{self.refused:,}",
            f"{self.finished:,}",
            f"{self.late(0.5):.1f}",
            f"{self.late(0.99):.1f}",
            ", ".join(f"{one:.0f}" for one in halves),
        ]


@dataclass(frozen=True)
class Asking:
    """How a server is asked."""

    client: httpx.AsyncClient
    said: int
    promise: float
    until: float

    async def ask(self, draw: random.Random, lengths: tuple[int, int], load: Load) -> float:
        """One request; the seconds after which to ask again, where it is refused."""
        prompt = [draw.randrange(10, WORDS) for _ in range(lengths[0])]
        body = {
            "model": "model",
            "prompt": prompt,
            "max_tokens": lengths[1],
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "temperature": 0,
            "logit_bias": {str(self.said): 100},
        }
        load.asked += 1
        begun, first, written = time.monotonic(), None, 0
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    load.refused += 1
                    return float(answer.headers.get("Retry-After", 1))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {") or time.monotonic() > self.until:
                        continue
                    told = json.loads(line[6:])
                    # lissom says with each event how many tokens there are by now; llama.cpp sends one token an event
                    by_now = (told.get("usage") or {}).get("completion_tokens", written + bool(text_of(told)))
                    if by_now > written:
                        if first is None:
                            first = time.monotonic() - begun
                            load.firsts.append(first)
                        load.tokens += by_now - written
                        load.good += (by_now - written) * (first <= self.promise)
                        written = by_now
            load.finished += time.monotonic() <= self.until
        except httpx.HTTPError:
            load.failed += 1
        return 0.0


async def full(asking: Asking, draw: random.Random, lengths: Iterator[tuple[int, int]], load: Load) -> None:
    """As many requests as fit."""

    async def one() -> None:
        while time.monotonic() < asking.until:
            again = await asking.ask(draw, next(lengths), load)
            await asyncio.sleep(min(again, max(asking.until - time.monotonic(), 0.0)))

    await asyncio.gather(*(one() for _ in range(CLIENTS)))


async def poisson(
    asking: Asking, draw: random.Random, lengths: Iterator[tuple[int, int]], load: Load, rate: float
) -> None:
    """So many requests a second, whatever becomes of them."""
    tasks = set[asyncio.Task[float]]()
    while time.monotonic() < asking.until:
        await asyncio.sleep(draw.expovariate(rate))
        task = asyncio.create_task(asking.ask(draw, next(lengths), load))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def watched(pid: int, load: Load, until: float) -> None:
    """The memory of a server's processes, every five seconds."""
    while time.monotonic() < until:
        load.memory.append(memory(pid))
        await asyncio.sleep(5)


class NothingCame(Exception):
    """The time was too short to know what a server can do."""


async def loaded(url: str, pid: int, said: int, asked: argparse.Namespace) -> tuple[Load, Load]:
    """What a server can do, and what it does when it is asked for several times that.

    Raises:
        NothingCame: it said nothing in the time.
    """
    rows = list(csv.DictReader(asked.trace.open(encoding="utf-8")))
    sizes = [
        (min(max(int(row["ContextTokens"]), 1), PROMPT), min(max(int(row["GeneratedTokens"]), 1), ANSWER))
        for row in rows
    ]
    lengths, mean = cycle(sizes), statistics.mean(answer for _, answer in sizes)
    draw, found = random.Random(asked.seed), list[Load]()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        for number, seconds in enumerate((asked.seconds / 3, asked.seconds)):
            load, begun = Load(seconds=seconds), time.monotonic()
            asking = Asking(client, said, asked.promise, begun + seconds)
            watch = asyncio.create_task(watched(pid, load, begun + seconds))
            if number == 0:
                await full(asking, draw, lengths, load)
            elif found[0].tokens == 0:
                raise NothingCame(f"no token came in {found[0].seconds:g} s, so several times that is nothing")
            else:
                await poisson(asking, draw, lengths, load, asked.times * found[0].tokens / found[0].seconds / mean)
            await watch
            found.append(load)
            await asyncio.sleep(2)
    return found[0], found[1]


@contextmanager
def ours(asked: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """`lissom serve`: where it is, and its process."""
    with serving(SCRIPT, asked.model, asked.promise) as (url, server):
        yield url, server.pid


@contextmanager
def llama(asked: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """llama.cpp's server, with as many places and as much of a cache."""
    words = [str(asked.llama_server), "-m", str(asked.gguf), "-np", str(CLIENTS), "-c", "32768", "--port", "8765"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                try:
                    if httpx.get("http://127.0.0.1:8765/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield "http://127.0.0.1:8765", server.pid
        finally:
            server.terminate()


def kept(first: Load, then: Load) -> float | None:
    """The good tokens of a second beside those when as many are asked as fit; None where there were none."""
    return then.good / then.seconds / (first.good / first.seconds) if first.good else None


def main() -> None:
    """Try it, print, and write down."""
    asked = arguments()
    tokenizer = open_tokenizer(asked.model)
    said = tokenizer.encode(SAID, add_special_tokens=False)[-1]
    servers = {"lissom": ours, **({"llama.cpp": llama} if asked.llama_server else {})}
    found = dict[str, tuple[Load, Load]]()
    for name, server in servers.items():
        with server(asked) as (url, pid):
            try:
                found[name] = asyncio.run(loaded(url, pid, said, asked))
            except NothingCame as error:
                console.print(f"{name}: {error}; give more --seconds", highlight=False)
    console.print("\n".join(f"{name}: {value}" for name, value in describe().as_dict().items()))
    heads = ("good tokens/s", "tokens/s", "asked", "refused", "finished", "first token, s: median", "99 %", "MB")
    shown = Table("", "", *heads, box=None, pad_edge=False)
    for name, loads in found.items():
        for load, what in zip(loads, ("as many as fit", f"{asked.times:g} times that"), strict=True):
            shown.add_row(name, what, *load.row)
    console.print(shown)
    told = {name: kept(*load) for name, load in found.items()}
    for name, share in told.items():
        if share is None:
            console.print(f"{name}: no first token came within {asked.promise:g} s; give a longer --promise")
        else:
            console.print(f"{name}: {share:.0%} of what it can do is done when asked for {asked.times:g} times that")
    if asked.write is not None:
        how = f"--seconds {asked.seconds:g} --times {asked.times:g} --promise {asked.promise:g}"
        command = f"python benchmarks/overload.py MODEL --trace TRACE {how}"
        write_section(asked.write, "Asked for more than it can do", command, console.export_text())
    figures = {name: [vars(load) | {"firsts": len(load.firsts)} for load in loads] for name, loads in found.items()}
    print(json.dumps({"benchmark": "overload", "kept": told, "loads": figures, **describe().as_dict()}))


if __name__ == "__main__":
    main()
