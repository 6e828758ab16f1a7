"""A server that a benchmark asks: its processes and what they hold, what it says of itself, and how its answers end."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 60.0  # until a server that was told to stop has ended
ANSWERED, LEFT, REFUSED, TOLD = "answered", "client left", "refused, 429", "told of a failure"
ENDS = (ANSWERED, LEFT, REFUSED, TOLD)  # how an answer may end; anything else is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How requests ended."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, end: str) -> None:
        """A request that ended so."""
        if end in ENDS:
            self.ends[end] += 1
        else:
            self.wrong.append(end)

    @property
    def rows(self) -> dict[str, str]:
        """As a table shows it."""
        return {name: f"{number:,}" for name, number in sorted(self.ends.items())} | {
            "anything else": f"{len(self.wrong):,}"
        }


@contextmanager
def serving(script: str, *words: object) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server that a script begins, which prints where it is: that, and its process. At the end it is told to stop."""
    command = [sys.executable, "-c", script, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), server
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(PATIENCE_S)


def children(server: int) -> list[int]:
    """The processes that a server has begun: its engines."""
    found = subprocess.run(["pgrep", "-P", str(server)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def memory(server: int) -> float:
    """MB of a server and its engines."""
    pages = 0
    for pid in (server, *children(server)):
        with suppress(OSError):  # one that has just ended has none
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files(server: int) -> int:
    """The files that a server and its engines have open."""
    count = 0
    for pid in (server, *children(server)):
        with suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


async def states(client: httpx.AsyncClient) -> dict[str, float]:
    """What a server says of itself."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if "{" in line and "le=" not in line}


async def heard(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], events: int | None = None
) -> tuple[str, float]:
    """How an answer ended, and the seconds until its first text; a stream is read up to so many events."""
    begun, first, last = time.monotonic(), nan, ""
    async with client.stream("POST", path, json=body) as answer:
        if answer.status_code != 200 or not body.get("stream"):
            await answer.aread()
            return judged(answer), nan
        async for line in answer.aiter_lines():
            if not line:
                continue
            last = line
            if isnan(first) and line.startswith("data: {") and text_of(json.loads(line[6:])):
                first = time.monotonic() - begun
            events = None if events is None else events - 1
            if events == 0:
                return LEFT, first
    if last == "data: [DONE]":
        return ANSWERED, first
    told = last.startswith("data: ") and "error" in json.loads(last[6:])
    return (TOLD if told else f"a stream ended with {last[:100]!r}"), first


def judged(answer: httpx.Response) -> str:
    """How an answer in one piece ended."""
    if answer.status_code == 200 and all(one["finish_reason"] for one in answer.json()["choices"]):
        return ANSWERED
    if answer.status_code in (429, 500, 503) and answer.json()["error"]["message"]:
        return REFUSED if answer.status_code == 429 else TOLD
    return f"status {answer.status_code}: {answer.text[:100]}"


def text_of(event: dict[str, Any]) -> str:
    """What an event of an answer adds to its text."""
    choices = event.get("choices") or [{}]
    return choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""
