"""A language model trained on WikiText-2, compressed in every way there is, and beside llm-compressor.

Shapes: n windows, t tokens, v vocabulary.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from table import Row, size_of
from torch import Tensor, nn
from transformers import PretrainedConfig

import lissom
from lissom.artifact import Opened, open_folder
from lissom.calibrate import token_windows
from lissom.engine import Engine, Sampling
from lissom.engine.kernels import lower
from lissom.evaluate import paired
from lissom.evaluate.language import predict

LENGTH = 512
CALIBRATION = 128  # windows
TEST = 240  # windows, unless all are asked for
GROUP = 128
OBSERVERS = {"its default ranges": "memoryless_minmax", "with its clipping search": "memoryless_mse"}  # of the peer
PEER = Path(__file__).with_name("peer_llmcompressor.py")
BLOCKS, EMBEDDING = "model.layers.*", "model.embed_tokens"
SERVED_INT8, SERVED_INT4 = "int8, embedding too", f"gptq, 4 bits, group {GROUP}"  # also run on their kernels
BYTE_EMBEDDING = {"layers": EMBEDDING, "technique": "rtn", "bits": 8}

Steps = list[dict[str, Any]]


class Remembered(nn.Module):
    """The original, which runs on each batch once: its logits stay in memory (2 GB for 240 windows)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a part of this module: evaluation has nothing to switch in it
        self.said: dict[bytes, Tensor] = {}

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        """The logits, as the model gave them."""
        key = input_ids.numpy().tobytes()
        if key not in self.said:
            self.said[key] = self.__dict__["model"](input_ids=input_ids, use_cache=use_cache).logits
        return SimpleNamespace(logits=self.said[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model, its tokens, and a place to write."""

    source: Path
    opened: Opened
    original: Remembered
    calibration: Tensor
    test: Tensor
    weights: int
    place: Path

    @classmethod
    def of(cls, shared: Path, windows: int | None, place: Path) -> "Bench":
        """The model and the text of the shared folder."""
        source, text = shared / "models" / "wikilm", shared / "data" / "wikitext2" / "plain"
        opened = open_folder(source)
        tokens = {
            name: token_windows((text / f"{name}.txt").read_text(encoding="utf-8"), opened.tokenizer, LENGTH)
            for name in ("calibration", "test")
        }
        return cls(
            source=source,
            opened=opened,
            original=Remembered(opened.model),
            calibration=tokens["calibration"][:CALIBRATION],
            test=tokens["test"][:windows],
            weights=sum(t.numel() for file in source.glob("*.safetensors") for t in load_file(file).values()),
            place=place,
        )

    def row(self, name: str, model: nn.Module, nbytes: int, seconds: float | None = None) -> Row:
        """Evaluate a model beside the original."""
        scores = paired(self.original, model, self.test, "perplexity")
        return Row(name=name, scores=scores, nbytes=nbytes, weights=self.weights, seconds=seconds)


def recipes(config: PretrainedConfig) -> dict[str, Steps]:
    """What is tried. All but the embedding rows leave the embedding, which is the head too, as it was."""

    def blocks(technique: str, **knobs: Any) -> Steps:
        return [{"layers": BLOCKS, "technique": technique, **knobs}]

    half, pattern = {"sparsity": 0.5}, {"keep": 2, "of": 4}
    pruned = blocks("sparsegpt", **half) + blocks("gptq", bits=4, group=GROUP)
    found = {
        "int8: rtn, a scale a row": blocks("rtn", bits=8),
        SERVED_INT8: [*blocks("rtn", bits=8), BYTE_EMBEDDING],
    }
    found[f"gptq, 4 bits, group {GROUP}, no clipping search"] = blocks("gptq", bits=4, group=GROUP, clip=False)
    for bits in (4, 3):
        for technique in ("rtn", "gptq"):
            found[f"{technique}, {bits} bits, group {GROUP}"] = blocks(technique, bits=bits, group=GROUP)
        found[f"kmeans, {bits} bits, codebooks as large as the scales of group {GROUP}"] = palettes(config, bits)
        found[f"kmeans, {bits} bits, a codebook a row"] = blocks("kmeans", bits=bits, rows=1)
    for technique in ("wanda", "sparsegpt"):
        found[f"{technique}, 50 %"] = blocks(technique, **half)
        found[f"{technique}, 2:4"] = blocks(technique, **pattern)
    found["gptq, 4 bits; embedding int8"] = [*blocks("gptq", bits=4, group=GROUP), BYTE_EMBEDDING]
    found["sparsegpt 50 %, then gptq 4 bits"] = pruned
    found["sparsegpt 50 %, then gptq 4 bits; embedding int8"] = [*pruned, BYTE_EMBEDDING]
    return found


def palettes(config: PretrainedConfig, bits: int) -> Steps:
    """Codebooks of 2^bits half floats for as many rows as make them cost what one half float a group does."""
    rows = {
        name: max(1, round(2**bits * GROUP / inputs))
        for name, inputs in (("*", config.hidden_size), ("*down_proj", config.intermediate_size))
    }
    narrow = [f"{BLOCKS}{end}" for end in ("self_attn.?_proj", "gate_proj", "up_proj")]
    step = {"technique": "kmeans", "bits": bits}
    return [
        *({"layers": layers, "rows": rows["*"], **step} for layers in narrow),
        {"layers": f"{BLOCKS}down_proj", "rows": rows["*down_proj"], **step},
    ]


def rows(bench: Bench) -> Iterator[Row]:
    """Every row of the table that is ours, as it is measured."""
    yield bench.row("original, bfloat16", bench.opened.model, size_of(bench.source))
    for name, steps in recipes(bench.opened.model.config).items():
        folder, seconds = compressed(bench, name, steps)
        yield bench.row(name, open_folder(folder).model, size_of(folder), seconds)
        if name in (SERVED_INT8, SERVED_INT4):
            yield bench.row(f"{name}, on the serving kernel", lower(open_folder(folder).model), size_of(folder))


def compressed(bench: Bench, name: str, steps: Steps) -> tuple[Path, float]:
    """Compress into a folder of that name; the seconds that the processor worked."""
    start = time.process_time()
    out = lissom.compress_checkpoint(bench.source, lissom.Recipe.of(steps), bench.calibration, bench.place / name)
    return out, time.process_time() - start


def peer_row(bench: Bench, python: str, ranges: str) -> tuple[Row, dict[str, str]]:
    """llm-compressor on the same tokens, in its own interpreter; its weights are evaluated here. And its versions."""
    tokens, out = bench.place / "calibration.safetensors", bench.place / OBSERVERS[ranges]
    save_file({"windows": bench.calibration.contiguous()}, tokens)
    command = [python, str(PEER), str(bench.source), str(tokens), "4", str(GROUP), OBSERVERS[ranges], str(out)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"quality: {PEER.name} failed under {python}:\n{done.stderr[-2000:]}")
    facts = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    model = open_folder(bench.source).model
    model.load_state_dict(load_file(out / "dense.safetensors"))
    versions = {f"{name} (peer)": version for name, version in facts["versions"].items()}
    name = f"llm-compressor: GPTQ, 4 bits, group {GROUP}, {ranges}"
    return bench.row(name, model, facts["bytes"], facts["seconds"]), versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far the logits served token by token are from those evaluated in one pass, over `tokens` positions."""

    name: str
    largest_difference: float
    largest_logit: float
    same_top1: float
    tokens: int


def parities(bench: Bench, prompt: int = 192, new: int = 64) -> Iterator[Parity]:
    """Serve the original and two of the compressed models, decoded and on their kernels; evaluate what was served."""
    ids, tokenizer = bench.test[0, :prompt].tolist(), bench.opened.tokenizer
    yield parity("original", bench.opened.model, tokenizer, ids, new)
    for name in (SERVED_INT8, SERVED_INT4):
        model = open_folder(bench.place / name).model
        yield parity(f"{name}, decoded", model, tokenizer, ids, new)
        yield parity(f"{name}, on the serving kernel", lower(model), tokenizer, ids, new)


def parity(name: str, model: nn.Module, tokenizer: Any, prompt: list[int], new: int) -> Parity:
    """Let the engine continue a prompt greedily, then run the same model over the whole in one pass."""
    served: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, given, out: served.append(out.logits[0].float()))
    engine = Engine(model, tokenizer, max_tokens_in_cache=2 * LENGTH)
    done = engine.generate([prompt], Sampling(temperature=0, max_tokens=new, ignore_eos=True))[0]
    handle.remove()
    whole = torch.tensor([[*prompt, *done.generated]])
    with torch.no_grad():
        evaluated = predict(model, whole)[0, len(prompt) - 1 :]
    logits = torch.cat(served)
    return Parity(
        name=name,
        largest_difference=float((logits - evaluated).abs().max()),
        largest_logit=float(evaluated.abs().max()),
        same_top1=float((logits.argmax(-1) == evaluated.argmax(-1)).float().mean()),
        tokens=len(logits),
    )
