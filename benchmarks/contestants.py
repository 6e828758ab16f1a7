"""What engine.py sets side by side: each takes a checkpoint, makes of it what it runs, once, and times itself.

A contestant answers, for numbers of sequences at once, the seconds of reading all prompts and of writing `NEW` tokens
more of each, the seconds from the start of its process to the first token of a first prompt ("first"), the most bytes
of memory that the process had ("peak"), and what the largest had of all that it started, itself too ("largest").
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cost import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

import lissom
from lissom.artifact import open_folder
from lissom.engine.bench import step_bytes
from lissom.engine.lower import lower

HERE = Path(__file__).parent
PROMPT, NEW, THREADS = 512, 32, os.cpu_count() or 1
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
            "max_position_embeddings": 131_072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
}
FORMATS: dict[str, dict[str, Any] | None] = {
    "original": None,
    "int8": {"technique": "rtn", "bits": 8},
    "int4 g128": {"technique": "rtn", "bits": 4, "group": 128},
    "int3 g128": {"technique": "rtn", "bits": 3, "group": 128},
    "int2 g128": {"technique": "rtn", "bits": 2, "group": 128},
    "ternary g128": {"technique": "ternary", "group": 128, "rounds": 0},
    "binary g128": {"technique": "binary", "group": 128, "rounds": 0},
    "shared 4-bit": {"technique": "kmeans", "bits": 4, "rows": 8, "iterations": 1},
    "shared 4-bit, a book a row": {"technique": "kmeans", "bits": 4, "rows": 1, "iterations": 1},
    "pruned 2:4": {"technique": "magnitude", "keep": 2, "of": 4},
    "pruned 50 %": {"technique": "magnitude", "sparsity": 0.5},
}
CACHE = " + cache "  # stands between a format and the type of its keys and values

Timed = dict[str, Any]
Run = Callable[[list[int]], Timed]


def checkpoint(work: Path, shape: str) -> Path:
    """The folder of a model with random weights, made on the first call."""
    folder = work / shape
    if not folder.exists():
        torch.manual_seed(0)
        kind, sizes = SHAPES[shape]
        made = folder.with_name(f"{shape}.making")
        config = AutoConfig.for_model(kind, **sizes)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made)
        for file in (Path(lissom.__file__).parent / "demo").glob("tokenizer*"):
            shutil.copy(file, made)
        made.rename(folder)
    return folder


def compressed(model: Path, name: str) -> Path:
    """What lissom makes of it, in one of the formats."""
    step, folder = FORMATS[name], beside(model, name)
    if step is None:
        return model
    if not folder.exists():
        steps = [{"layers": layers, **step} for layers in ("model.layers.*", "model.embed_tokens")]
        lissom.compress_checkpoint(model, lissom.Recipe.of(steps), torch.empty(0, 8, dtype=torch.long), folder)
    return folder


def beside(model: Path, name: str) -> Path:
    """Where that lies which was made of a model."""
    return model.with_name(f"{model.name}, {name}")


def ours(model: Path, name: str) -> Run:
    """The engine of lissom; it tells also how many bytes a step of writing reads."""
    cache, folder = name.partition(CACHE)[2] or "auto", compressed(model, form(name))
    alone, weights = process(sys.executable, "peer_lissom.py", folder, cache), weights_of_a_step(folder)

    def run(sizes: list[int]) -> Timed:
        told = alone(sizes)
        counted = {str(size): [*told[str(size)][:2], told[str(size)][2] + weights] for size in sizes}
        return {**told, **counted}

    return run


def weights_of_a_step(folder: Path) -> int:
    """Bytes of weights that a step reads, as kernels hold them."""
    model: Any = lower(open_folder(folder, bare=True).model)
    return step_bytes(model)


def form(name: str) -> str:
    """The format in the name of a row, which may name a cache behind it."""
    return name.partition(CACHE)[0]


def llama(asked: argparse.Namespace, model: Path, kind: str) -> Run:
    """llama.cpp's own benchmark of batches."""
    return batched_bench(asked.llama, gguf(asked, model, kind))


def ik_llama(asked: argparse.Namespace, model: Path, kind: str) -> Run:
    """The same of ik_llama.cpp: weights in an order of its own, and keys and values of 8 bits, at its fastest."""
    flags = ["-fa", "on", "-rtr", "-ctk", "q8_0", "-ctv", "q8_0"]
    return batched_bench(asked.ik, gguf(asked, model, kind), flags)


def gguf(asked: argparse.Namespace, model: Path, kind: str) -> Path:
    """The file that llama.cpp's converter and llama-quantize make, all matrices of one kind."""
    whole, file = beside(model, "bf16.gguf"), beside(model, f"{kind}.gguf")
    if not whole.exists():
        converter = [asked.peer_python, HERE / "peer_llamacpp.py", "convert", asked.llama_source, model]
        path = {**os.environ, "PYTHONPATH": f"{asked.llama_source / 'gguf-py'}"}
        subprocess.run([*converter, "--outtype", "bf16", "--outfile", whole], check=True, env=path)
    if not file.exists():
        ran([asked.llama / "llama-quantize", "--pure", whole, file, kind], LD_LIBRARY_PATH=str(asked.llama))
    return file


def batched_bench(programs: Path, file: Path, flags: Sequence[str] = ()) -> Run:
    """llama-batched-bench: one process that writes one token of one sequence, and one for all the rest."""

    def bench(sizes: list[int], new: int) -> tuple[str, int]:
        room = ["-c", max(sizes) * (PROMPT + NEW), "-b", 2048, "-ub", 512, "-npp", PROMPT, "-ntg", new]
        command = [
            programs.resolve() / "llama-batched-bench",
            "-m",
            file.resolve(),
            "-t",
            THREADS,
            "-tb",
            THREADS,
            *flags,
            *room,
        ]
        command += ["-npl", ",".join(map(str, sizes))]
        done = ran(
            command, where=file.parent, LD_LIBRARY_PATH=str(programs.resolve())
        )  # one of them leaves a log there
        return done.stdout + done.stderr, done.peak  # llama.cpp's table is in one, ik_llama.cpp's in the other

    def run(sizes: list[int]) -> Timed:
        begun = time.perf_counter()
        bench([1], 1)
        first = time.perf_counter() - begun
        row = r"^\|\s*\d+ \|\s*\d+ \|\s*(\d+) \|\s*\d+ \|\s*([\d.]+) \|\s*[\d.]+ \|\s*([\d.]+) "
        said, peak = bench(sizes, NEW)
        times = {size: [float(read), float(write)] for size, read, write in re.findall(row, said, re.M)}
        return {"first": first, "peak": peak, "largest": peak, **times}

    return run


def openvino(asked: argparse.Namespace, model: Path) -> Run:
    """OpenVINO GenAI's continuous batching; its keys and values have 8 bits unless told otherwise."""
    folder = beside(model, "openvino")
    if not folder.exists():
        export = [asked.openvino.with_name("optimum-cli"), "export", "openvino", "--model", model]
        weights = ["--weight-format", "int4", "--group-size", "128", "--sym", "--ratio", "1.0"]
        subprocess.run([*export, *weights, "--task", "text-generation-with-past", folder], check=True)
    return process(asked.openvino, "peer_openvino.py", folder)


def ortgenai(asked: argparse.Namespace, model: Path) -> Run:
    """onnxruntime-genai, all sequences in one batch; of a prompt only the last token's logits are computed."""
    folder = beside(model, "onnxruntime-genai")
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.making")
        build = [asked.ortgenai, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", making, "-c", making]
        options = ["--extra_options", "block_size=128", "shared_embeddings=true", "prune_lm_head=true"]
        subprocess.run([*build, "-p", "int4", "-e", "cpu", *options], check=True)
        making.rename(folder)
    return process(asked.ortgenai, "peer_ortgenai.py", folder)


def process(python: Path | str, script: str, folder: Path, *more: str) -> Run:
    """A script of this folder, run by an interpreter that has what it needs; its last line is JSON."""

    def run(sizes: list[int]) -> Timed:
        done = ran([python, HERE / script, folder, ",".join(map(str, sizes)), PROMPT, NEW, *more])
        return {**json.loads(done.stdout.splitlines()[-1]), "largest": done.peak}

    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a process printed, and the most memory that it had, in bytes."""

    stdout: str
    stderr: str
    peak: int


def ran(command: list[Any], where: Path | None = None, **environment: str) -> Ran:
    """A process that did what it should."""
    words, around = [str(word) for word in command], {**os.environ, **environment}
    with tempfile.NamedTemporaryFile("r") as spent:  # of a small process: what this one has would be counted with it
        between = [sys.executable, HERE / "spent.py", "--to", spent.name]
        done = subprocess.run([*between, *words], cwd=where, env=around, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        return Ran(stdout=done.stdout, stderr=done.stderr, peak=json.load(spent)["peak_bytes"])
