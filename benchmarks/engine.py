"""How fast the engine reads and writes: its formats, and beside other engines on the same checkpoint.

    python benchmarks/engine.py WORK [--shape qwen3-0.6b] [--rounds 3] [--batches 1 16] [--formats "int4 g128" int8]
        [--llama PROGRAMS --llama-source FOLDER --peer-python PYTHON [--ik PROGRAMS]] [--openvino PYTHON]
        [--ortgenai PYTHON] [--write docs/speed.md]

WORK is a folder for checkpoints with random weights and what each tool makes of them; what is there is used again.
PROGRAMS holds llama.cpp's llama-batched-bench and llama-quantize, its source the converter, which PYTHON runs (torch,
transformers and gguf); --ik names a folder with ik_llama.cpp's llama-batched-bench, --openvino an interpreter with
openvino_genai and optimum-intel, --ortgenai one with onnxruntime_genai, onnx_ir, transformers and torch. Every
contestant is a process of its own that loads, warms up, reads a prompt of 512 tokens for each of so many sequences, and
writes 32 tokens more of each; rounds of all of them take turns.

Without peers: our formats, and what each costs beside int4. With peers: int4, the others, and all of them again with
one sequence while another process keeps one core busy. " + cache int8" after a format is another type of keys and
values. Prints tables with medians and spread, then one JSON line; --write makes the tables a section of that page, in
place of the one before it: each shape has one of its formats and one beside peers.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from contestants import (
    CACHE,
    FORMATS,
    NEW,
    PROMPT,
    SHAPES,
    Run,
    Timed,
    checkpoint,
    compressed,
    form,
    ik_llama,
    llama,
    openvino,
    ortgenai,
    ours,
)
from rich.console import Console
from rich.table import Table
from sections import write_section

from lissom.estimate import Estimate, median_estimate
from lissom.hardware import describe, limits

BASE = "int4 g128"  # what the other formats are set beside
console = Console(width=150, record=True)


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Time the engine beside its peers.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", help="1 4 8 16 32 beside peers, 1 16 for the formats")
    parser.add_argument("--formats", nargs="+", help="int4, also with keys and values in int8, beside peers, else all")
    parser.add_argument("--llama", type=Path, help="the folder of llama.cpp's programs")
    parser.add_argument("--llama-source", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--ik", type=Path, help="the folder of ik_llama.cpp's programs")
    parser.add_argument("--openvino", type=Path, help="an interpreter with openvino_genai and optimum-intel")
    parser.add_argument("--ortgenai", type=Path, help="an interpreter with onnxruntime_genai, onnx_ir and torch")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    alone = not (asked.llama or asked.ik or asked.openvino or asked.ortgenai)
    asked.batches = asked.batches or ([1, 16] if alone else [1, 4, 8, 16, 32])
    asked.formats = asked.formats or (list(FORMATS) if alone else [BASE, f"{BASE}{CACHE}int8"])
    if BASE not in asked.formats or not {form(name) for name in asked.formats} <= FORMATS.keys():
        parser.error(f"--formats {asked.formats}: choose '{BASE}' and what else you like of {list(FORMATS)}")
    return asked


def peers(asked: argparse.Namespace, model: Path) -> dict[str, Run]:
    """Those that were named."""
    runs: dict[str, Run] = {}
    if asked.llama:
        runs["llama.cpp Q4_0"] = llama(asked, model, "Q4_0")
    if asked.ik:
        runs["ik_llama.cpp Q4_0 + cache q8_0"] = ik_llama(asked, model, "Q4_0")
    if asked.openvino:
        runs["OpenVINO int4"] = openvino(asked, model)
    if asked.ortgenai:
        runs["onnxruntime-genai int4"] = ortgenai(asked, model)
    return runs


def main() -> None:
    """All rounds of all contestants, with peers also those beside a busy process."""
    asked = arguments()
    asked.work.mkdir(parents=True, exist_ok=True)
    model, sizes = checkpoint(asked.work, asked.shape), asked.batches
    others = peers(asked, model)
    runs = {name: ours(model, name) for name in asked.formats} | others
    found: dict[str, list[Timed]] = {name: [] for name in runs}
    crowded: dict[str, list[Timed]] = {name: [] for name in (BASE, *others) if others}
    machine, can = describe().as_dict(), limits(0.3).as_dict()
    console.print(*(f"{name}: {value}" for name, value in {**machine, **can}.items()), sep="\n", highlight=False)
    for _ in range(asked.rounds):
        for name, run in runs.items():
            found[name].append(run(sizes))
            print(name, found[name][-1], file=sys.stderr, flush=True)
        for name in crowded:
            with busy():
                crowded[name].append(runs[name]([1]))
    console.print(table(f"{asked.shape}: prompts of {PROMPT} tokens, read per second", found, sizes, 0))
    console.print(table("written per second after them", found, sizes, 1))
    if others:
        console.print(table("written per second, while another process keeps a core busy", crowded, [1], 1))
        console.print(beginnings(found, crowded))
    else:
        console.print(savings(model, found, sizes))
    print(json.dumps({"shape": asked.shape, "machine": machine, "found": found, "crowded": crowded}))
    if asked.write:
        title = f"The engine {'beside its peers' if others else 'in its formats'}: {asked.shape}"
        write_section(asked.write, title, command(), console.export_text())


@contextmanager
def busy() -> Iterator[None]:
    """Another process that wants a core."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def rates(rounds: list[Timed], size: int, part: int) -> Estimate:
    """Tokens per second of reading (0) or writing (1)."""
    tokens = size * (PROMPT, NEW)[part]
    return median_estimate([each[str(size)][part] for each in rounds]).through(lambda s: tokens / s, unit="tokens/s")


def table(title: str, found: dict[str, list[Timed]], sizes: list[int], part: int) -> Table:
    """Tokens per second."""
    shown = titled(title, "", *(f"{size} at once" for size in sizes))
    for name, rounds in found.items():
        shown.add_row(name, *(spread(rates(rounds, size, part), 1) for size in sizes))
    return shown


def savings(model: Path, found: dict[str, list[Timed]], sizes: list[int]) -> Table:
    """Of each format the bytes of its folder, and those that a step of writing reads and its time, times int4's; and
    where a tenth of the bytes is saved or more, the part of that which is saved in time."""
    columns = (f"{size} at once: {what}" for size in sizes for what in ("bytes", "time", "saved"))
    shown = titled(f"written, beside {BASE}", "", "MB", *columns)
    for name, rounds in found.items():
        cells = list[str]()
        for size in sizes:
            pairs = [(a[str(size)], b[str(size)]) for a, b in zip(rounds, found[BASE], strict=True)]
            read, time = (median_estimate([a[part] / b[part] for a, b in pairs]) for part in (2, 1))
            saved = f"{(1 - time.value) / (1 - read.value):.0%}" if read.value < 0.9 else ""
            cells += [f"{read.value:.2f}", spread(time, 2), saved]
        shown.add_row(name, f"{nbytes(compressed(model, form(name))) / 1e6:.0f}", *cells)
    return shown


def nbytes(folder: Path) -> int:
    """What a folder takes on the disk."""
    return sum(file.stat().st_size for file in folder.iterdir())


def beginnings(found: dict[str, list[Timed]], alone: dict[str, list[Timed]]) -> Table:
    """From the start of a process to its first token after a prompt; the most memory of those with one sequence."""
    memory = ("GB resident at most, one sequence", "the largest of all that it starts")
    shown = titled("", "", "s from the start of a process to its first token", *memory)
    for name, rounds in found.items():
        first = spread(median_estimate([each["first"] for each in rounds]), 2)
        peaks = [[each[which] / 1e9 for each in alone.get(name, [])] for which in ("peak", "largest")]
        shown.add_row(name, first, *(spread(median_estimate(each), 2) if each else "" for each in peaks))
    return shown


def titled(title: str, *columns: str) -> Table:
    """An empty table."""
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def spread(figure: Estimate, digits: int) -> str:
    """The median, and the lowest and the highest."""
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def command() -> str:
    """How this was called, with the names of places for the places."""
    words = ["python", "benchmarks/engine.py"]
    for before, word in pairwise(sys.argv):
        place = before[2:].upper() if before.startswith("--") else "WORK"
        words.append(place if word.startswith("/") else word)
    return shlex.join(words)


if __name__ == "__main__":
    main()
