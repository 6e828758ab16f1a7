"""What optimising costs: time and memory of GPTQ on a checkpoint of the shape of Qwen3-0.6B, beside llm-compressor.

The weights are random: neither time nor memory depends on them. Each tool runs in a process of its own, which reads the
checkpoint and writes the compressed one; the clock and the largest resident memory are those of the whole process.

    python cost.py MODEL TOKENS OUT        what the process of lissom runs
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cache import Fields, Task, sources
from peers import HERE, Places
from recipes import GROUP, blocks
from safetensors.torch import load_file, save_file
from table import markdown
from transformers import AutoModelForCausalLM, Qwen3Config

import lissom
from lissom.hardware.machine import cores

WINDOWS, LENGTH, VOCABULARY = 64, 512, 151_936
THREADS = cores()  # all that there are, however many the other parts are given
STEPS = blocks("gptq", bits=4, group=GROUP)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A place to write, how many layers the checkpoint has, and where the peer is."""

    place: Path
    places: Places
    layers: int = SHAPE["num_hidden_layers"]

    def checkpoint(self) -> tuple[Path, Path]:
        """The folder of the model and the file of the tokens, made on the first call."""
        folder, tokens = self.place / "model", self.place / "tokens.safetensors"
        if not tokens.is_file():
            torch.manual_seed(0)
            config = Qwen3Config(**{**SHAPE, "num_hidden_layers": self.layers})
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
            save_file({"windows": torch.randint(0, VOCABULARY, (WINDOWS, LENGTH))}, tokens)
        return folder, tokens


def tasks(bench: Bench, versions: dict[str, str]) -> Iterator[Task]:
    """Ours, and the peer's."""
    ways = {"lissom": ours, "llm-compressor": theirs}
    for name, command in ways.items():
        key = {"shape": {**SHAPE, "num_hidden_layers": bench.layers}, "steps": STEPS, "windows": [WINDOWS, LENGTH]}
        key |= {"threads": THREADS, "versions": versions, "sources": sources(STEPS) if name == "lissom" else {}}
        run = lambda command=command: spent(command(bench))  # noqa: E731
        yield Task(part="cost", table="cost", name=f"{name}: GPTQ, 4 bits, group {GROUP}", key=key, measure=run)


def ours(bench: Bench) -> list[Any]:
    """The command line of lissom."""
    return [sys.executable, __file__, *bench.checkpoint(), bench.place / "ours"]


def theirs(bench: Bench) -> list[Any]:
    """The command line of llm-compressor, in the type that the checkpoint is in."""
    if bench.places.python is None:
        raise SystemExit("quality: llm-compressor needs --peer-python, an interpreter that has it")
    model, tokens = bench.checkpoint()
    words = ["--bits", 4, "--group", GROUP, "--type", "bfloat16", "--no-dense"]
    return [bench.places.python, HERE / "peer_llmcompressor.py", "gptq", model, tokens, bench.place / "peer", *words]


def spent(command: list[Any]) -> Fields:
    """What a command takes: its seconds by the clock and of the processor, its largest memory; the load before."""
    own = Path(command[1]).name == "cost.py"
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)} | ({} if own else {"PYTHONPATH": ""})
    words = [sys.executable, "-S", str(HERE / "spent.py"), *(str(word) for word in command)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"quality: {' '.join(words[3:5])} failed:\n{done.stderr[-3000:]}")
    found: Fields = json.loads(done.stdout)
    return found


def section(found: Sequence[tuple[Task, Fields]]) -> list[str]:
    """The protocol and the table."""
    peer = next((row for task, row in found if "llm-compressor" in task.name), None)
    body = []
    for task, row in found:
        times = ["", ""] if peer is None else [f"{row[name] / peer[name]:.2f}" for name in ("clock", "peak_bytes")]
        figures = (f"{row['clock']:.0f}", f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 1e9:.2f}")
        body.append((task.name, *figures, *times, f"{row['load_before']:.1f}"))
    head = ("tool", "clock seconds", "processor seconds", "peak GB", "of the peer's time", "of its memory")
    threads = found[0][0].key["threads"]
    return [
        "## Cost of optimising",
        "",
        f"A checkpoint of random weights in the shape of Qwen3-0.6B, {WINDOWS} windows of {LENGTH} tokens, {threads} "
        "threads; each tool in a process of its own, from the start of the interpreter to the written folder. The load "
        "is the machine's just before.",
        "",
        *markdown((*head, "load before"), body),
    ]


def main(model: str, tokens: str, out: str) -> None:
    """Compress."""
    windows = load_file(tokens)["windows"]
    lissom.compress_checkpoint(model, lissom.Recipe.of(STEPS), windows, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
