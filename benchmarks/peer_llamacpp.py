"""llama.cpp's own quantizations, by its programs, and decoded again with its `gguf` package.

    python peer_llamacpp.py MODEL CALIBRATION TEST OUT --source FOLDER --programs FOLDER [--type Q4_K_M]

The interpreter needs torch, transformers and gguf. SOURCE is llama.cpp's source, for its converter; PROGRAMS holds
llama-quantize, llama-imatrix and llama-perplexity. CALIBRATION and TEST are texts. OUT gets the file,
`dense.safetensors` with the weights that it stands for under the names of the original, and `facts.json`: the bytes of
the whole file, the seconds (of the processor, and of the clock; the importance matrix is counted), and what llama.cpp
itself says of it: KL divergence, same top-1, perplexity, on windows of its own.

A tokenizer that the converter does not know goes by the rules of "qwen2": that matters to the text only, not to the
weights.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v")},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
TRIES = 5
FIGURES = {
    "kl": r"Mean\s+KLD:\s+([-\d.]+)",
    "same_top1": r"Same top p:\s+([\d.]+)",
    "perplexity": r"Mean PPL\(Q\)\s+:\s+([\d.]+)",
}


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Quantize with llama.cpp.")
    for name in ("model", "calibration", "test", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--chunks", type=int, default=128, help="windows of 512 for the importance matrix")
    parser.add_argument("--test-chunks", type=int, default=120)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    return parser.parse_args()


def convert(source: Path, model: Path, out: Path) -> None:
    """Run llama.cpp's converter, in float32, in an interpreter of its own (this file, with another first word).

    There the `gguf` package is the one in the source, which may be newer than the installed one.
    """
    command = [sys.executable, __file__, "convert", source, model, "--outtype", "f32", "--outfile", out]
    run(command, PYTHONPATH=f"{source / 'gguf-py'}")


def converter(source: str, *words: str) -> None:
    """The converter, told that every tokenizer it does not know is like qwen2's."""
    sys.path.insert(0, source)
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    sys.argv = ["convert_hf_to_gguf.py", *words]
    runpy.run_path(f"{source}/convert_hf_to_gguf.py", run_name="__main__")


def run(command: list[Any], **environment: str) -> str:
    """What a program says."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout + done.stderr


def decoded(file: Path, config: dict[str, int]) -> dict[str, torch.Tensor]:
    """The tensors of a file in float32, by the names of the original."""
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "rope_freqs.weight":
            continue  # llama.cpp's own table, no weight of the model
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        found[renamed(tensor.name)] = unpermuted(tensor.name, values, config)
    return found


def renamed(name: str) -> str:
    """`blk.3.attn_q.weight` as transformers calls it."""
    *block, part, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[part]}.{kind}"


def unpermuted(name: str, w: torch.Tensor, config: dict[str, int]) -> torch.Tensor:
    """Queries and keys as they were: llama.cpp lays the two halves of each head's rotation side by side."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return w
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def version(programs: Path) -> str:
    """The build of the programs."""
    said = run([programs / "llama-perplexity", "--version"])
    return " ".join(re.findall(r"version: (.*)", said)[:1])


def quantized(asked: argparse.Namespace, plain: Path) -> tuple[Path, float, float]:
    """Importances from the calibration text, and the file; the seconds of the processor and of the clock."""
    matrix, file = asked.out / "imatrix.gguf", asked.out / f"{asked.type}.gguf"
    before, clock = os.times(), time.perf_counter()
    text = ["-f", asked.calibration, "-c", 512, "--chunks", asked.chunks, "-t", asked.threads]
    run([asked.programs / "llama-imatrix", "-m", plain, "-o", matrix, *text])
    run([asked.programs / "llama-quantize", "--imatrix", matrix, plain, file, asked.type, asked.threads])
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return file, spent, time.perf_counter() - clock


def itself(asked: argparse.Namespace, plain: Path, file: Path) -> dict[str, float]:
    """What llama.cpp says of a file, beside the original; nothing, if it never says all of it.

    Its log is written by a thread of its own, which the end of the program may cut short.
    """
    program, logits = asked.programs / "llama-perplexity", asked.out / "logits"
    base = ["--kl-divergence-base", logits, "-t", asked.threads]
    run([program, "-m", plain, "-f", asked.test, "-c", 512, "--chunks", asked.test_chunks, *base])
    found: dict[str, float] = {}
    for _ in range(TRIES):
        said = run([program, "-m", file, "--kl-divergence", *base])
        matches = {name: re.findall(pattern, said) for name, pattern in FIGURES.items()}
        found = {name: float(several[-1]) for name, several in matches.items() if several}
        if len(found) == len(FIGURES):
            break
    logits.unlink()
    return found if len(found) == len(FIGURES) else {}


def main() -> None:
    """Convert, quantize, decode, and write down what was done."""
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    plain = asked.out / "f32.gguf"
    convert(asked.source, asked.model, plain)
    checked(asked.model, plain)
    file, processor, clock = quantized(asked, plain)
    facts = {
        "seconds": processor,
        "clock_seconds": clock,
        "bytes": file.stat().st_size,
        "itself": itself(asked, plain, file),
        "versions": {"llama.cpp": version(asked.programs)},
    }
    config = json.loads((asked.model / "config.json").read_text(encoding="utf-8"))
    save_file(decoded(file, config), asked.out / "dense.safetensors")
    (asked.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def checked(model: Path, plain: Path) -> None:
    """What was not quantized must come back as it was; otherwise names or the order of rows are mistaken."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    before = {name: t.float() for file in model.glob("*.safetensors") for name, t in load_file(file).items()}
    after = decoded(plain, config)
    wrong = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    if wrong or len(after) != len(before):
        raise SystemExit(f"{plain} does not come back as it was: {wrong or sorted(set(after) - set(before))}")


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        converter(*sys.argv[2:])
    else:
        main()
