"""How fast the engine reads and writes, beside llama.cpp and OpenVINO GenAI on the same checkpoint.

    python benchmarks/engine.py WORK [--shape qwen3-0.6b] [--rounds 3] [--llama PROGRAMS --llama-source FOLDER
        --peer-python PYTHON] [--openvino PYTHON] [--write docs/speed.md]

WORK is a folder for checkpoints with random weights and what each tool makes of them; what is there is used again.
PROGRAMS holds llama.cpp's llama-batched-bench and llama-quantize, its source the converter, which PYTHON runs (torch,
transformers and gguf); --openvino names an interpreter with openvino_genai and optimum-intel. Every contestant is a
process of its own that loads, warms up, reads a prompt of 512 tokens for each of so many sequences, and writes 32
tokens more of each; rounds of all of them take turns. Then decoding again, of one sequence, while another
process keeps one core busy. Prints tables with medians and spread, then one JSON line.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cost import SHAPE
from rich.console import Console
from rich.table import Table

from lissom.estimate import Estimate, median_estimate
from lissom.hardware import describe, limits

HERE = Path(__file__).parent
PROMPT, NEW = 512, 32
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-0.6b": ("qwen3", SHAPE),
    "llama-3.2-1b": (
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "max_position_embeddings": 40_960,
        },
    ),
}
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"technique": "rtn", "bits": 8},
    "int4 g128": {"technique": "rtn", "bits": 4, "group": 128},
    "shared 4-bit": {"technique": "kmeans", "bits": 4, "rows": 8, "iterations": 1},
    "int3 g128": {"technique": "rtn", "bits": 3, "group": 128},
    "int2 g128": {"technique": "rtn", "bits": 2, "group": 128},
    "ternary g128": {"technique": "ternary", "group": 128, "rounds": 0},
    "binary g128": {"technique": "binary", "group": 128, "rounds": 0},
}
BESIDE = ("int4 g128", "llama.cpp Q4_0", "OpenVINO int4")  # also run beside a busy process
console = Console(width=150, record=True)

Timed = dict[str, Any]
Run = Callable[[list[int]], Timed]


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Time the engine beside its peers.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1,4,8,16,32")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--llama", type=Path, help="the folder of llama.cpp's programs")
    parser.add_argument("--llama-source", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--openvino", type=Path, help="an interpreter with openvino_genai and optimum-intel")
    parser.add_argument("--write", type=Path)
    return parser.parse_args()


def checkpoint(work: Path, shape: str) -> Path:
    """The folder of a model with random weights, made on the first call."""
    folder = work / shape
    if not (folder / "config.json").is_file():
        import shutil

        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        import lissom

        torch.manual_seed(0)
        kind, sizes = SHAPES[shape]
        made = folder.with_name(f"{shape}.making")
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.bfloat16).save_pretrained(
            made
        )
        for file in (Path(lissom.__file__).parent / "demo").glob("tokenizer*"):
            shutil.copy(file, made)
        made.rename(folder)
    return folder


def compressed(model: Path, name: str) -> Path:
    """What lissom makes of it."""
    import torch

    import lissom

    folder = model.with_name(f"{model.name}, {name}")
    if not folder.exists():
        steps = [{"layers": layers, **FORMATS[name]} for layers in ("model.layers.*", "model.embed_tokens")]
        lissom.compress_checkpoint(model, lissom.Recipe.of(steps), torch.empty(0, 8, dtype=torch.long), folder)
    return folder


def ours(folder: Path) -> Run:
    """The engine, in a process of its own."""
    return lambda sizes: spoken([sys.executable, __file__, "worker", folder, *words(sizes)])


def worker(folder: str, batches: str, prompt: str, new: str) -> None:
    """What such a process does."""
    from lissom.artifact import open_folder
    from lissom.engine.bench import engine, once
    from lissom.engine.lower import lower

    opened = open_folder(Path(folder))
    model: Any = lower(opened.model)
    once(engine(model, opened.tokenizer, 1, int(prompt), 1), 1, int(prompt), 1)
    found: Timed = {"first": time.clock_gettime(time.CLOCK_BOOTTIME) - started()}
    for size in map(int, batches.split(",")):
        running = engine(model, opened.tokenizer, size, int(prompt), int(new))
        once(running, size, int(prompt), 1)  # its memory is there then
        found[str(size)] = once(running, size, int(prompt), int(new))
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


def started() -> float:
    """When this process began, in seconds after the machine did."""
    return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100


def llama(asked: argparse.Namespace, model: Path, kind: str) -> Run:
    """llama.cpp's own benchmark of batches."""
    whole, file = model.with_suffix(".bf16.gguf"), model.with_suffix(f".{kind}.gguf")
    programs = {**os.environ, "LD_LIBRARY_PATH": str(asked.llama)}
    if not file.exists():
        converter = [asked.peer_python, HERE / "peer_llamacpp.py", "convert", asked.llama_source, model]
        gguf = {**os.environ, "PYTHONPATH": f"{asked.llama_source / 'gguf-py'}"}
        subprocess.run([*converter, "--outtype", "bf16", "--outfile", whole], check=True, env=gguf)
        subprocess.run([asked.llama / "llama-quantize", "--pure", whole, file, kind], check=True, env=programs)

    def bench(sizes: list[int], new: int) -> str:
        flags = ["-t", 2, "-tb", 2, "-c", max(sizes) * (PROMPT + NEW), "-b", 2048, "-ub", 512]
        command = [asked.llama / "llama-batched-bench", "-m", file, *flags, "-npp", PROMPT, "-ntg", new]
        return output([*command, "-npl", ",".join(map(str, sizes))], programs)

    def run(sizes: list[int]) -> Timed:
        begun = time.perf_counter()
        bench([1], 1)
        first = time.perf_counter() - begun
        said = bench(sizes, NEW)
        rows = re.findall(
            r"^\|\s*\d+ \|\s*\d+ \|\s*(\d+) \|\s*\d+ \|\s*([\d.]+) \|\s*[\d.]+ \|\s*([\d.]+) ", said, re.M
        )
        return {"first": first, **{size: [float(read), float(write)] for size, read, write in rows}}

    return run


def openvino(asked: argparse.Namespace, model: Path) -> Run:
    """OpenVINO GenAI's continuous batching."""
    folder = model.with_name(f"{model.name}, openvino")
    if not folder.exists():
        words_ = ["--weight-format", "int4", "--group-size", "128", "--sym", "--ratio", "1.0"]
        export = [asked.openvino.with_name("optimum-cli"), "export", "openvino", "--model", model, *words_]
        subprocess.run([*export, "--task", "text-generation-with-past", folder], check=True)
    return lambda sizes: spoken([asked.openvino, HERE / "peer_openvino.py", folder, *words(sizes)])


def words(sizes: list[int]) -> list[str]:
    """What a process is told."""
    return [",".join(map(str, sizes)), str(PROMPT), str(NEW)]


def spoken(command: list[Any]) -> Timed:
    """The last line that a process prints, as JSON."""
    return json.loads(output(command, dict(os.environ)).splitlines()[-1])  # type: ignore[no-any-return]


def output(command: list[Any], environment: dict[str, str]) -> str:
    """What a process prints."""
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


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
    """Tokens per second, and how many times as many as the best peer's."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", *(f"{size} at once" for size in sizes)):
        shown.add_column(column)
    for name, rounds in found.items():
        cells = [rates(rounds, size, part) for size in sizes]
        shown.add_row(name, *(f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}]" for cell in cells))
    return shown


def main() -> None:
    """All rounds of all contestants, then the ones beside a busy process."""
    asked = arguments()
    sizes = [int(size) for size in asked.batches.split(",")]
    asked.work.mkdir(parents=True, exist_ok=True)
    model = checkpoint(asked.work, asked.shape)
    runs = {name: ours(compressed(model, name)) for name in asked.formats.split(",")}
    if asked.llama:
        runs |= {f"llama.cpp {kind}": llama(asked, model, kind) for kind in ("Q4_0",)}
    if asked.openvino:
        runs["OpenVINO int4"] = openvino(asked, model)
    found: dict[str, list[Timed]] = {name: [] for name in runs}
    crowded: dict[str, list[Timed]] = {name: [] for name in runs if name in BESIDE}
    machine, can = describe().as_dict(), limits(0.3).as_dict()
    console.print(*(f"{name}: {value}" for name, value in {**machine, **can}.items()), sep="\n", highlight=False)
    for _ in range(asked.rounds):
        for name, run in runs.items():
            found[name].append(run(sizes))
        for name in crowded:
            with busy():
                crowded[name].append(runs[name]([1]))
    told = [
        table(f"{asked.shape}: prompts of {PROMPT} tokens, read per second", found, sizes, 0),
        table("written per second after them", found, sizes, 1),
        table("written per second, while another process keeps a core busy", crowded, [1], 1),
    ]
    for one in told:
        console.print(one)
    console.print(beginnings(found))
    print(json.dumps({"shape": asked.shape, "machine": machine, "found": found, "crowded": crowded}))
    if asked.write:
        save(asked.write, f"The engine beside its peers: {asked.shape}")


def beginnings(found: dict[str, list[Timed]]) -> Table:
    """From the start of a process to its first token after a prompt."""
    shown = Table("", "s from the start of a process to its first token", box=None, pad_edge=False)
    for name, rounds in found.items():
        first = median_estimate([each["first"] for each in rounds])
        shown.add_row(name, f"{first.value:.2f} [{first.low:.2f}, {first.high:.2f}]")
    return shown


def save(file: Path, title: str) -> None:
    """What was printed, and the command, as a section of a page; the text above it stays where there is one."""
    page = file.read_text(encoding="utf-8")
    before, found, rest = page.partition(f"\n## {title}\n")
    above = rest.partition("```text")[0] if found else "\n"
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    command = " ".join(["python", "benchmarks/engine.py", *sys.argv[1:]])
    said = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    section = f"## {title}\n{above}```text\n{command}\n\n{said}\n```\n"
    made = file.with_suffix(".new")
    made.write_text(f"{before.rstrip()}\n\n{section}{after}", encoding="utf-8")
    made.rename(file)


if __name__ == "__main__":
    worker(*sys.argv[2:]) if sys.argv[1:2] == ["worker"] else main()
