"""A fuzzer over raw sockets: requests that are malformed in many ways, and whether the server lives on as it was.

    python benchmarks/fuzz.py [--cases 100000] [--seed 0] [--write FILE]

`lissom serve` runs the bundled language model, a text encoder and a module. A case is one connection: a request that
would be good, in which bytes are changed, cut out, put in or written twice, or a JSON value in its body takes the place
of another kind; or a line of the protocol is wrong, a length lies, chunks are torn, or the client goes in the middle.
No answer may have a status of 500, or of 503 and above it unless it is deliberate; what the server has in memory, its
files and its engines must be as before. Every 1,000 cases a good request must be answered as it was at first.
Prints a table, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table
from sections import write_section
from transformers import BertConfig, BertModel

import lissom
from lissom.hardware import describe

AT_ONCE = 16
WAIT_S = 0.3  # for an answer, before the client says that nothing more will come
PATIENCE_S = 20.0  # a case that takes longer is wrong
DELIBERATE = {503, 504}  # what a full queue, or a client that cannot wait, is told
DEMO = Path(lissom.__file__).parent / "demo"
console = Console(width=120, record=True)

SCRIPT = """
import sys
from lissom.server import FolderService, Limits, serve
names = ("model", "encoder", "net")
services = [FolderService(folder=folder, name=name, max_batch=4) for name, folder in zip(names, sys.argv[1:])]
serve(services, port=0, limits=Limits(body_seconds=2.0), announce=lambda url: print(url, flush=True))
"""

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TURNS = [{"role": "user", "content": "Once upon a time"}]
TEXT = {"model": "model", "max_tokens": 2}
CHAT = {**TEXT, "messages": TURNS}
ONE = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
GOOD: list[tuple[str, str, Any]] = [
    ("POST", "/v1/completions", {**TEXT, "prompt": "Once", "temperature": 0.5, "n": 2, "logprobs": 1}),
    ("POST", "/v1/completions", {**TEXT, "prompt": [[5, 6], [7]], "stop": ["a"], "echo": True}),
    ("POST", "/v1/completions", {**TEXT, "prompt": "a", "structured_outputs": {"regex": "[ab]+"}}),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
    ("POST", "/v1/chat/completions", {**CHAT, "tools": [TOOL], "logit_bias": {"5": 1}}),
    ("POST", "/v1/responses", {"model": "model", "input": "Once", "max_output_tokens": 2}),
    ("POST", "/v1/messages", {**CHAT, "system": "a"}),
    ("POST", "/v1/messages/count_tokens", {"model": "model", "messages": TURNS}),
    ("POST", "/v1/embeddings", {"model": "encoder", "input": ["Once", "upon"], "dimensions": 8}),
    ("POST", "/tokenize", {"model": "model", "prompt": "Once"}),
    ("POST", "/detokenize", {"model": "model", "tokens": [5, 6]}),
    ("POST", "/v2/models/net/infer", {"inputs": [ONE], "outputs": [{"name": "output"}]}),
    ("GET", "/v1/models/model", None),
    ("GET", "/evidence", None),
    ("GET", "/metrics", None),
]
NUMBERS = (0, -1, 1.5, 1e308, -1e-300, 2**31, 2**63, 2**64, -(2**70))
TEXTS = ("", "a", "\u0000", "\ud800", "a" * 5000, "\U0001f600" * 50, "http://127.0.0.1/a")
ODD: list[Any] = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], [[[[]]]], {"a": {}}, {"": ""}, [1] * 2000]


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Send what no client should.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page whose section is replaced")
    return parser.parse_args()


def folders(place: Path) -> list[Path]:
    """A language model, an encoder and a module."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=2048, max_position_embeddings=64, **sizes)).save_pretrained(place / "encoder")
    for file in DEMO.glob("tokenizer*"):
        (place / "encoder" / file.name).write_bytes(file.read_bytes())
    net = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    return [DEMO, place / "encoder", lissom.save(net, place / "net", example=torch.randn(2, 3))]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there are values in a JSON value."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [path, *(place for name, each in inside for place in places(each, (*path, name)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A JSON value with another in a place."""
    if not path:
        return new
    first, *rest = path
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[first] = put(value[first], tuple(rest), new)
    return copied


def odd_value(draw: random.Random, body: Any) -> Any:
    """Another kind of value in a place, a field more, or one less."""
    way = draw.randrange(4)
    if way == 0:
        return {**body, draw.choice(["a", "", "n", "stream", "seed", "timeout", "__proto__"]): draw.choice(ODD)}
    if way == 1:
        return {name: value for name, value in body.items() if name != draw.choice(list(body))}
    return put(body, draw.choice(places(body)), draw.choice(ODD))


def torn(draw: random.Random, octets: bytes) -> bytes:
    """Bytes changed, cut out, put in, or written twice."""
    data = bytearray(octets)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at, much = draw.randrange(len(data)), draw.choice((1, 1, 3, 50))
        way = draw.randrange(4)
        if way == 0:
            data[at] = draw.randrange(256)
        elif way == 1:
            del data[at : at + much]
        elif way == 2:
            data[at:at] = draw.randbytes(much)
        else:
            data[at:at] = data[at : at + much]
    return bytes(data)


def request(method: str, path: str, body: bytes, *more: str, length: int | None = None) -> bytes:
    """A request as it travels."""
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Connection: close",
        *more,
    ]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def case(draw: random.Random) -> tuple[str, bytes]:
    """What is sent, and by which name it is counted."""
    method, path, body = draw.choice(GOOD)
    written = b"" if body is None else json.dumps(body).encode()
    ways: dict[str, Callable[[], bytes]] = {
        "odd values": lambda: request(method, path, json.dumps(odd_value(draw, body or {"a": 1})).encode()),
        "torn JSON": lambda: request(method, path, torn(draw, written)),
        "torn request": lambda: torn(draw, request(method, path, written)),
        "wrong length": lambda: request(method, path, written, length=draw.choice((0, 1, 5, 10**12, -1))),
        "torn chunks": lambda: chunked(draw, method, path, written),
        "odd headers": lambda: request(method, path, written, *headers(draw)),
        "other routes": lambda: request(draw.choice(METHODS), route(draw, path), written),
        "noise": lambda: draw.randbytes(draw.choice((0, 1, 10, 1000, 70_000))),
        "several at once": lambda: (
            request(method, path, written).replace(b"close", b"keep-alive") * draw.choice((2, 20))
        ),
        "deep": lambda: request(method, path, b"[" * draw.choice((10, 1000, 100_000))),
    }
    name = draw.choice([*ways, "odd values", "odd values", "torn JSON"])
    return name, ways[name]()


METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "X", "")


def route(draw: random.Random, path: str) -> str:
    """A path that is none, or is written in another way."""
    kinds = (
        torn(draw, path.encode()).decode("latin-1"),
        path + "/" + "a" * 3000,
        "/../../etc/passwd",
        "//",
        "/%00",
        "*",
    )
    return draw.choice(kinds).replace("\r", "").replace("\n", "")


def headers(draw: random.Random) -> list[str]:
    """Headers that are too many, too long, or say what they should not."""
    kinds = (
        [f"X-{number}: a" for number in range(draw.choice((3, 300)))],
        ["X-Long: " + "a" * draw.choice((100, 100_000))],
        ["Content-Type: " + draw.choice(("text/plain", "multipart/form-data; boundary=a", "application/x-pickle", ""))],
        ["Content-Encoding: gzip"],
        ["Inference-Header-Content-Length: " + draw.choice(("-1", "5", "999999999999", "a", "\u00b2"))],
        ["Transfer-Encoding: " + draw.choice(("chunked", "gzip, chunked", "a"))],
        ["X-Request-Id: " + draw.choice(("\u00e9", "a" * 999, "a;b"))],
        ["Authorization: Bearer " + "a" * draw.choice((1, 9999))],
        ["Expect: 100-continue"],
        ["Upgrade: websocket", "Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13"],
    )
    return draw.choice(kinds)


def chunked(draw: random.Random, method: str, path: str, body: bytes) -> bytes:
    """A body in chunks, some of which are torn."""
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    head = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""])
    size = draw.choice((f"{len(body):x}", "-1", "ffffffffffffffff", "zz", "0", f"{len(body) + 5:x}"))
    return head.encode() + f"{size}\r\n".encode() + body + draw.choice((b"\r\n0\r\n\r\n", b"", b"\r\n", b"0"))


async def sent(port: int, octets: bytes, leave: float | None) -> bytes:
    """The beginning of what comes back, if anything does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            writer.write(octets)
            await writer.drain()
            if leave is not None:
                await asyncio.sleep(leave)
                return b"left"
            with suppress(TimeoutError):
                return await asyncio.wait_for(reader.read(400), WAIT_S)
            writer.write_eof()  # there is nothing more to wait for
            return await reader.read(400)
        return b""
    finally:
        writer.close()


def status(answer: bytes) -> int:
    """The status of an answer; 0 where there is none."""
    first = answer.split(b"\r\n", 1)[0].split()
    return int(first[1]) if len(first) > 1 and first[0].startswith(b"HTTP/") and first[1].isdigit() else 0


def held(server: int) -> dict[str, float]:
    """What the server's process has: memory, open files and its engines."""
    children = subprocess.run(["pgrep", "-P", str(server)], capture_output=True, text=True, check=False).stdout.split()
    pages = int(Path(f"/proc/{server}/statm").read_text().split()[1])
    return {
        "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open files": len(os.listdir(f"/proc/{server}/fd")),
        "engines": sum(Path(f"/proc/{child}").exists() for child in children),
    }


@dataclass
class Tried:
    """Statuses by kind, what was wrong, and what the server had before, at each tenth, and after."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    held: list[dict[str, float]] = field(default_factory=list)

    def judge(self, name: str, octets: bytes, answer: bytes) -> None:
        """Count an answer."""
        code = status(answer)
        self.statuses.setdefault(name, Counter())[code] += 1
        if code >= 500 and code not in DELIBERATE:
            self.wrong.append(f"{name}: {answer[:80]!r} to {octets[:300]!r}")


async def one_after_another(port: int, draw: random.Random, left: list[int], tried: Tried) -> None:
    """Cases until none are left."""
    while left[0] > 0:
        left[0] -= 1
        name, octets = case(draw)
        leave = draw.choice((0.0, 0.01)) if draw.random() < 0.1 else None
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await sent(port, octets, leave)
        except TimeoutError:
            answer = b"HTTP/1.1 599 no answer in time"
        tried.judge(name, octets, answer)


async def text_of(client: httpx.AsyncClient) -> str:
    """What the model says to a good request; the status, where that is another."""
    good = {"model": "model", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
    answer = await client.post("/v1/completions", json=good)
    return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else f"status {answer.status_code}"


async def fuzz(url: str, server: int, asked: argparse.Namespace) -> Tried:
    """All cases."""
    port, left, tried = int(url.rpartition(":")[2]), [asked.cases], Tried()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        expected = await text_of(client)

        async def watch() -> None:
            while left[0] > 0:
                before = left[0]
                while left[0] > max(before - 1000, 0):
                    await asyncio.sleep(0.2)
                if (found := await text_of(client)) not in (expected, "status 429"):
                    tried.wrong.append(f"with {left[0]:,} cases left the answer is {found}")
                if left[0] < asked.cases * (1 - len(tried.held) / 10):
                    tried.held.append(held(server))

        for number in range(300):  # what grows at first is not counted
            await sent(port, case(random.Random(number))[1], None)
        tried.held.append(held(server))
        draws = (random.Random(f"{asked.seed} {number}") for number in range(AT_ONCE))
        await asyncio.gather(*(one_after_another(port, draw, left, tried) for draw in draws), watch())
        await asyncio.sleep(3)  # bodies that never arrive are given up
        tried.held.append(held(server))
        if (found := await text_of(client)) != expected:
            tried.wrong.append(f"afterwards the answer is {found}")
    first, last = tried.held[0], tried.held[-1]
    if last["engines"] != first["engines"] or last["open files"] > first["open files"] + 5:
        tried.wrong.append(f"the server had {first}, and has {last}")
    return tried


def main() -> None:
    """Try it, print, and write down."""
    asked = arguments()
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-c", SCRIPT, *map(str, folders(Path(place)))]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            try:
                url, begun = server.stdout.readline().strip(), time.monotonic()
                tried = asyncio.run(fuzz(url, server.pid, asked))
                seconds = time.monotonic() - begun
            finally:
                server.terminate()
            ended = server.wait(60)
    shown = Table("what was sent", "cases", "statuses (0: none)", box=None, pad_edge=False)
    for name, codes in sorted(tried.statuses.items()):
        shown.add_row(name, f"{codes.total():,}", ", ".join(f"{code}: {codes[code]:,}" for code in sorted(codes)))
    console.print(shown)
    console.print(f"\nwrong: {len(tried.wrong)}; in {seconds:.0f} s; the server ended with {ended}")
    for name in tried.held[0]:
        console.print(f"{name}: " + ", ".join(f"{one[name]:.0f}" for one in tried.held) + " (before, by tenths, after)")
    for each in tried.wrong[:20]:
        console.print(each, markup=False)
    if asked.write is not None:
        told = f"python benchmarks/fuzz.py --cases {asked.cases}"
        write_section(asked.write, "Requests that are malformed", told, console.export_text())
    statuses = {name: dict(sorted(codes.items())) for name, codes in tried.statuses.items()}
    figures = {"cases": asked.cases, "statuses": statuses, "wrong": len(tried.wrong), "held": tried.held}
    print(json.dumps({"benchmark": "fuzz", **figures, **describe().as_dict()}))
    sys.exit(bool(tried.wrong) or ended != 0)


if __name__ == "__main__":
    main()
