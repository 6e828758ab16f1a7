"""The tools that one would otherwise take, each in an interpreter of its own, on the same tokens and evaluated here."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cache import Fields, Task
from recipes import FILES, GROUP
from safetensors.torch import load_file, save_file
from wikilm import Bench

from lissom.artifact import open_folder

HERE = Path(__file__).parent
OBSERVERS = {"its default ranges": "memoryless_minmax", "with its clipping search": "memoryless_mse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the peers are: an interpreter that has them, and llama.cpp's source and programs; None where not."""

    python: str | None = None
    source: Path | None = None
    programs: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A row of another tool: the script that makes it, and the words after the model, the data and the output."""

    table: str
    name: str
    script: str
    words: tuple[str, ...]


def peers() -> Iterator[Peer]:
    """All of them, by the table they stand in."""
    for ranges, observer in OBSERVERS.items():
        words = ("gptq", "--bits", "4", "--group", f"{GROUP}", "--observer", observer)
        yield compressor("bits", f"GPTQ, 4 bits, group {GROUP}, {ranges}", *words)
    for bits, group in ((3, GROUP), (2, GROUP), (2, 64)):
        words = ("gptq", "--bits", f"{bits}", "--group", f"{group}", "--observer", "memoryless_mse")
        yield compressor("bits", f"GPTQ, {bits} bits, group {group}, with its clipping search", *words)
    for bits in (4, 3):
        words = ("awq", "--bits", f"{bits}", "--group", f"{GROUP}")
        yield compressor("bits", f"AWQ, {bits} bits, group {GROUP}, its default ranges", *words)
    for name, pattern in (("50 %", "0:0"), ("2:4", "2:4")):
        yield compressor("sparsity", f"SparseGPT, {name}", "sparsegpt", "--pattern", pattern)
    for bits, group in ((4, GROUP), (3, GROUP), (2, GROUP), (2, 64)):
        name = f"AutoRound: {bits} bits, group {group}, 200 iterations"
        words = ("--bits", f"{bits}", "--group", f"{group}", "--iterations", "200")
        yield Peer(table="bits", name=name, script="peer_autoround.py", words=words)
    for kind in FILES:
        yield Peer(table="sizes", name=f"llama.cpp: {kind}", script="peer_llamacpp.py", words=("--type", kind))


def compressor(table: str, name: str, *words: str) -> Peer:
    """A row of llm-compressor."""
    return Peer(table=table, name=f"llm-compressor: {name}", script="peer_llmcompressor.py", words=words)


def tasks(bench: Bench, places: Places) -> Iterator[Task]:
    """The rows of the peers."""
    for peer in peers():
        text = hashlib.sha256((HERE / peer.script).read_bytes()).hexdigest()[:16]
        key = {"script": peer.script, "words": peer.words, "text": text, **bench.protocol}
        run = lambda peer=peer: fields(bench, places, peer)  # noqa: E731
        yield Task(part="peers", table=peer.table, name=peer.name, key=key, measure=run)


def fields(bench: Bench, places: Places, peer: Peer) -> Fields:
    """Run a peer, and evaluate the weights that it made."""
    out = bench.place / f"{len(list(bench.place.iterdir()))}"
    facts = ran([*command(bench, places, peer, out)], out)
    whole = peer.script == "peer_llamacpp.py"  # its file holds the vocabulary too, and every tensor is quantized
    model = open_folder(bench.source).model
    dense = load_file(out / "dense.safetensors")
    head = dense["model.embed_tokens.weight"]
    if not whole and not torch.equal(head, model.get_input_embeddings().weight):
        raise SystemExit(f"quality: {peer.name} changed the embedding, which is not what the table says")
    model.load_state_dict({"lm_head.weight": head, **dense})
    spent = {"seconds": facts["seconds"], "clock": facts["clock_seconds"]}
    row = bench.row(peer.name, model, facts["bytes"], vocabulary=0 if whole else bench.vocabulary, **spent)
    return {**row.fields(), "versions": facts["versions"], "itself": facts.get("itself")}


def command(bench: Bench, places: Places, peer: Peer, out: Path) -> Iterator[Any]:
    """The command line of a peer."""
    if places.python is None:
        raise SystemExit(f"quality: {peer.name} needs --peer-python, an interpreter that has the peers")
    yield from (places.python, HERE / peer.script)
    if peer.script == "peer_llamacpp.py":
        if places.source is None or places.programs is None:
            raise SystemExit(f"quality: {peer.name} needs --llama-source and --llama-programs")
        yield from (bench.source, bench.texts / "calibration.txt", bench.texts / "test.txt", out)
        yield from (*peer.words, "--source", places.source, "--programs", places.programs)
    else:
        tokens = bench.place / "calibration.safetensors"
        save_file({"windows": bench.calibration.contiguous()}, tokens)
        method = peer.words[:1] if peer.script == "peer_llmcompressor.py" else ()
        yield from (*method, bench.source, tokens, out, *peer.words[len(method) :])


def ran(words: list[Any], out: Path) -> dict[str, Any]:
    """Run a peer's script; what it wrote down of what it did."""
    environment = {**os.environ, "PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "false"}
    said = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(f"quality: {' '.join(map(str, words[1:3]))} failed:\n{said.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    return facts
