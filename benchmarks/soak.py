"""Hours of mixed traffic: whether a server fails more often, answers later or holds more as time goes on.

    python benchmarks/soak.py MODEL [--seconds 7200] [--clients 4] [--pause 0.5] [--write FILE]

`lissom serve` runs the model. Clients ask one request after another, with pauses between that are drawn (exponential):
completions and chats, streamed or whole, texts that keep a schema, calls of a tool where the model's chat template
knows any, and streams that are left. Every request must be answered, and what is asked greedily at first must be
answered alike in every tenth of the time. Prints what came of each tenth, and how much a regression line through the
resident memory of server and engine rises in an hour, by Theil and Sen, over all but the first tenth; then one JSON
line.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from scipy.stats import theilslopes
from sections import write_section
from served import REFUSED, TOLD, Tally, heard, memory, open_files, serving

from lissom.hardware import describe

TENTHS = 10
LOOKS = 30  # at memory and files, in a tenth
WORDS = ("Once", "there", "was", "a", "little", "dog", "who", "liked", "to", "run", "in", "the", "park", "and", "play")
console = Console(width=120, record=True)

SCRIPT = """
import sys
from lissom.server import FolderService, serve
service = FolderService(folder=sys.argv[1], name="model")
serve([service], port=0, announce=lambda url: print(url, flush=True))
"""
PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PLACE, "strict": True}}
FIRST = {"model": "model", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Ask a server for hours.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two requests of a client, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenth:
    """What came of the requests of a tenth of the time, and what the server held meanwhile."""

    tally: Tally = field(default_factory=Tally)
    firsts: list[float] = field(default_factory=list)  # seconds until first tokens
    memory: list[tuple[float, float]] = field(default_factory=list)  # hours since the beginning, MB
    files: list[int] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Them all, in short."""
        firsts = sorted(self.firsts) or [nan]
        return {
            "requests": self.tally.ends.total() + len(self.tally.wrong),
            "failures": sum(self.tally.ends[end] for end in (REFUSED, TOLD)) + len(self.tally.wrong),
            "first token, ms: median": 1000 * statistics.median(firsts),
            "99 %": 1000 * firsts[int(0.99 * (len(firsts) - 1))],
            "MB": statistics.median([held for _, held in self.memory] or [nan]),
            "open files": max(self.files, default=0),
        }


def asked_for(draw: random.Random, tools: bool) -> tuple[str, dict[str, Any], int | None]:
    """A request: where, what, and after how many events the client goes, if it does."""
    text = " ".join(draw.choices(WORDS, k=draw.choice((3, 30, 100))))
    body = {"model": "model", "max_tokens": draw.randrange(8, 65), "stream": draw.random() < 0.5}
    chat = {**body, "messages": [{"role": "user", "content": text}]}
    kinds = ["completion", "chat", "schema", "left"] + ["tool", "free"] * tools
    kind = draw.choice(kinds)
    if kind == "completion":
        return "/v1/completions", {**body, "prompt": text, "ignore_eos": True}, None
    if kind == "left":
        return "/v1/completions", {**body, "prompt": text, "stream": True, "ignore_eos": True}, draw.randrange(1, 8)
    more: dict[str, dict[str, Any]] = {
        "chat": {},
        "schema": {"response_format": SCHEMA, "max_tokens": 200},
        "tool": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 400, "parallel_tool_calls": False},
        "free": {"tools": [TOOL]},
    }
    return "/v1/chat/completions", {**chat, **more[kind]}, None


async def knows_tools(client: httpx.AsyncClient) -> bool:
    """Whether the model's chat template has a place for tools."""
    body = {"model": "model", "messages": [{"role": "user", "content": "Hello"}], "tools": [TOOL], "max_tokens": 1}
    return (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def soaked(url: str, server: int, asked: argparse.Namespace) -> tuple[list[Tenth], bool]:
    """What came of each tenth of the time, and whether tools were called."""
    tenths, begun = [Tenth() for _ in range(TENTHS)], time.monotonic()

    def now() -> Tenth:
        return tenths[min(int(TENTHS * (time.monotonic() - begun) / asked.seconds), TENTHS - 1)]

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        tools, expected = await knows_tools(client), await said(client)

        async def ask(draw: random.Random) -> None:
            path, body, events = asked_for(draw, tools)
            end, first = await heard(client, path, body, events)
            now().tally.count(end)
            now().firsts.extend([] if isnan(first) else [first])
            await asyncio.sleep(draw.expovariate(1 / asked.pause))

        async def look(_: random.Random) -> None:
            now().memory.append(((time.monotonic() - begun) / 3600, memory(server)))
            now().files.append(open_files(server))
            await asyncio.sleep(asked.seconds / TENTHS / LOOKS)

        async def compare(_: random.Random) -> None:
            if (found := await said(client)) != expected:
                now().tally.count(f"what was {expected!r} at first is {found!r}")
            await asyncio.sleep(asked.seconds / TENTHS)

        async def over_and_over(work: Callable[[random.Random], Awaitable[None]], seed: str) -> None:
            draw = random.Random(seed)
            while time.monotonic() < begun + asked.seconds:
                try:
                    await work(draw)
                except httpx.HTTPError as error:
                    now().tally.count(f"{type(error).__name__} {error}")

        clients = (over_and_over(ask, f"{asked.seed} {number}") for number in range(asked.clients))
        await asyncio.gather(*clients, over_and_over(look, ""), over_and_over(compare, ""))
    return tenths, tools


async def said(client: httpx.AsyncClient) -> str:
    """What the model says to a request that is always the same."""
    answer = await client.post("/v1/completions", json=FIRST)
    return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else f"status {answer.status_code}"


def slope(tenths: list[Tenth]) -> tuple[float, float, float]:
    """MB an hour by which memory rises, and the ends of its interval of 95 %, as if samples were independent."""
    samples = [one for tenth in tenths for one in tenth.memory]
    found = theilslopes([held for _, held in samples], [hours for hours, _ in samples])
    return float(found.slope), float(found.low_slope), float(found.high_slope)


def main() -> None:
    """Ask, print, and write down."""
    asked = arguments()
    with serving(SCRIPT, asked.model) as (url, server):
        tenths, tools = asyncio.run(soaked(url, server.pid, asked))
    rows = [tenth.figures for tenth in tenths]
    rises = slope(tenths[1:])
    wrong = [one for tenth in tenths for one in tenth.tally.wrong]
    console.print("\n".join(f"{name}: {value}" for name, value in describe().as_dict().items()))
    table = Table("tenth", *rows[0], box=None, pad_edge=False, title=f"{asked.seconds:g} s", title_justify="left")
    for number, row in enumerate(rows, 1):
        table.add_row(str(number), *(f"{value:,.0f}" for value in row.values()))
    console.print(table)
    console.print(f"calls of tools: {'asked for' if tools else 'the chat template knows none'}")
    console.print("memory rises by {:.1f} [{:.1f}, {:.1f}] MB an hour".format(*rises), highlight=False, markup=False)
    for one in wrong[:10]:
        console.print(f"wrong: {one}", markup=False)
    if asked.write is not None:
        how = f"--seconds {asked.seconds:g} --clients {asked.clients} --pause {asked.pause:g}"
        write_section(asked.write, "Hours", f"python benchmarks/soak.py MODEL {how}", console.export_text())
    told = {"benchmark": "soak", "seconds": asked.seconds, "tenths": rows, "slope": rises, "wrong": len(wrong)}
    print(json.dumps({**told, **describe().as_dict()}))
    sys.exit(any(row["failures"] for row in rows))


if __name__ == "__main__":
    main()
