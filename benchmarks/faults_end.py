"""What faults.py tries beside: a server that is told to stop while streams run, and one whose disk is full."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from served import PATIENCE_S, Tally, children, heard, serving

STREAMS = 64
GRACE_S = 1.0  # in which some of the streams end, and some do not
SLACK_S = 5.0  # for all else that a server has to do at its end
REQUESTS = 100

STOPPED = f"""
import sys
from lissom.server import FolderService, Limits, serve
service = FolderService(folder=sys.argv[1], name="model", max_batch=16)
serve([service], port=0, limits=Limits(grace_seconds={GRACE_S}), announce=lambda url: print(url, flush=True))
"""
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from lissom.cli import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a trial, as a table shows it, and what was wrong."""

    rows: dict[str, str]
    wrong: list[str]


def told_to_stop(model: Path, times: int) -> Outcome:
    """Servers that are told to stop while streams run: every stream ends or is told, and nothing is left."""
    tally, seconds = Tally(), list[float]()
    for number in range(times):
        with serving(STOPPED, model) as (url, server):
            seconds.append(asyncio.run(stopped(url, server, random.Random(number), tally)))
    slowest = f"{max(seconds, default=0):.1f}"
    return Outcome(rows={**tally.rows, "seconds until all was over, at most": slowest}, wrong=tally.wrong)


async def stopped(url: str, server: "subprocess.Popen[str]", draw: random.Random, tally: Tally) -> float:
    """Tell a server to stop while streams run; the seconds until it has."""

    async def one() -> None:
        body = {"model": "model", "prompt": [draw.randrange(10, 1000)], "max_tokens": 250, "ignore_eos": True}
        try:
            tally.count((await heard(client, "/v1/completions", {**body, "stream": True}))[0])
        except httpx.HTTPError as error:
            tally.count(f"{type(error).__name__} {error}")

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
        streams = [asyncio.create_task(one()) for _ in range(STREAMS)]
        await asyncio.sleep(draw.uniform(0.2, 1.0))
        processes, begun = [server.pid, *children(server.pid)], time.monotonic()
        server.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(ended, server)
        seconds = time.monotonic() - begun
        await asyncio.gather(*streams)
    left = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    if code != 0 or left or seconds > GRACE_S + SLACK_S:
        tally.count(f"it ended with {code} after {seconds:.1f} s, and left {len(left)} processes")
    return seconds


def ended(server: "subprocess.Popen[Any]") -> int | None:
    """With what a server ended, if it did."""
    with suppress(subprocess.TimeoutExpired):
        return server.wait(PATIENCE_S)
    return None


def full_disk(model: Path) -> Outcome:
    """A server and `lissom keys` that can write no byte to any file, nor to their standard output and error.

    A limit on the size of files stands for a disk that is full, and /dev/full for a log on it: so nobody need be root.
    """
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as free:
        port, admin, file = free.getsockname()[1], Path(place) / "admin", Path(place) / "keys"
        free.close()
        words = ["serve", f"model={model}", "--port", str(port), "--log", "json", "--admin", str(admin)]
        with Path("/dev/full").open("w") as full:
            server = subprocess.Popen([sys.executable, "-c", FULL, *words], stdout=full, stderr=full)
        tally, rows = Tally(), dict[str, str]()
        try:
            rows = asyncio.run(served_on(f"http://127.0.0.1:{port}", admin, server, str(model), tally))
        except (httpx.HTTPError, NotReady) as error:
            tally.count(f"{type(error).__name__}: {error}")
        finally:
            server.terminate()
        code = ended(server)
        said = key_more(file)
    if code != 0:
        tally.count(f"it ended with {code}")
    if "cannot be written" not in said:
        tally.count(f"a key more: {said}")
    rows |= {"the server ended with": str(code), "a key more": said}
    return Outcome(rows={**tally.rows, **rows}, wrong=tally.wrong)


async def served_on(url: str, admin: Path, server: "subprocess.Popen[Any]", model: str, tally: Tally) -> dict[str, str]:
    """Ask such a server, have its engine replaced, and have it load a model more."""
    body = {"model": "model", "prompt": [5], "max_tokens": 8}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        await ready(client, server)
        for number in range(REQUESTS):
            tally.count((await heard(client, "/v1/completions", {**body, "stream": number % 2 == 0}))[0])
        os.kill(children(server.pid)[-1], signal.SIGKILL)
        await asyncio.sleep(0.5)
        await ready(client, server)
        tally.count((await heard(client, "/v1/completions", body))[0])
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(admin)), timeout=PATIENCE_S) as owner:
        told = await owner.post("http://localhost/models", json={"name": "other", "folder": model})
    if told.status_code != 200:
        tally.count(f"a model more: status {told.status_code}: {told.text[:100]}")
    return {"engines replaced": "1", "models loaded": "1" if told.status_code == 200 else "0"}


class NotReady(Exception):
    """A server that does not answer."""


async def ready(client: httpx.AsyncClient, server: "subprocess.Popen[Any]") -> None:
    """Wait until a server answers.

    Raises:
        NotReady: it does not, or has ended.
    """
    until = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < until:
        with suppress(httpx.HTTPError):
            if (await client.get("/health/ready")).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise NotReady(f"the server is not ready; it ended with {server.poll()}")


def key_more(file: Path) -> str:
    """What `lissom keys` says when there is no room for a key more; the file must be as it was."""
    plain = FULL.replace("(0, 0)", "(-1, -1)")
    subprocess.run([sys.executable, "-c", plain, "keys", str(file), "--add", "a"], check=True, capture_output=True)
    before = file.read_bytes()
    command = [sys.executable, "-c", FULL, "keys", str(file), "--add", "b"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if file.read_bytes() != before or found.returncode != 2 or len(list(file.parent.iterdir())) > 1:
        return f"exit code {found.returncode}, {len(list(file.parent.iterdir()))} files: {found.stderr[-200:]}"
    return found.stderr.strip().replace(f"{file.parent}/", "")
