"""AutoRound's AutoScheme, run by an interpreter that has it: as many bits for each layer as the loss says.

    python peer_autoscheme.py FOLDER MODEL LENGTH PROMPT WRITTEN ITERATIONS DESCRIPTOR

FOLDER has `texts.json`, a list of calibration texts of LENGTH tokens. What is asked comes as lines of JSON:
["make", bits] makes a model of so many bits per weight in the mean, packed in FOLDER/BITS with the weights that it
stands for beside it, unless an earlier run did, and answers its bytes and the seconds; ["turn", bits] answers the
milliseconds of a turn of reading PROMPT tokens and writing WRITTEN ones in transformers. Layers get 2, 4 or 8 bits, in
groups of 128, or stay as they were; the embedding, the head too, is left by the tool. Learning rates and the rest are
as the tool sets them.
"""

import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import auto_round
import torch
import transformers
from auto_round import AutoRound, AutoScheme
from peer_autoround import size
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from turns import answer_all, turn

OPTIONS = ("W2A16", "W4A16", "W8A16")


def make(folder: Path, model: str, length: int, iterations: int, bits: float) -> dict[str, Any]:
    """A model with so many bits per weight in the mean, written to a folder of its own."""
    texts, out = folder / "texts.json", folder / f"{bits:g}"
    if (made := out / "made.json").exists():
        held: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
        return held
    os.environ["AR_AUTO_SCHEME_CACHE"] = str(out / "scores")  # its own, so that each model is paid for whole
    begun = time.perf_counter()
    tuner = AutoRound(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        scheme=AutoScheme(avg_bits=bits, options=OPTIONS),
        dataset=str(texts),
        iters=iterations,
        nsamples=len(json.loads(texts.read_text(encoding="utf-8"))),
        seqlen=length,
        device_map="cpu",
        amp=False,
    )
    tuned, _ = tuner.quantize()
    seconds = time.perf_counter() - begun
    names = AutoModelForCausalLM.from_pretrained(model).state_dict()
    state = {name: tuned.state_dict()[name].detach().float().clone().contiguous() for name in names}
    tuner.save_quantized(str(out / "packed"), format="auto_round", inplace=True)
    save_file(state, out / "dense.safetensors")
    told = {"recipe": f"{bits:g} bits", "bytes": size(out / "packed", Path(model)), "seconds": seconds}
    (new := out / "made.new").write_text(json.dumps(told), encoding="utf-8")
    new.replace(made)
    return told


def main(folder: str, model: str, length: str, prompt: str, written: str, iterations: str, pipe: str) -> None:
    """Make models, and time them."""

    @lru_cache(maxsize=1)
    def opened(bits: float) -> Any:
        packed = next(file.parent for file in Path(folder, f"{bits:g}").rglob("config.json"))
        return AutoModelForCausalLM.from_pretrained(packed, dtype=torch.bfloat16, device_map="cpu").eval()

    @torch.inference_mode()
    def once(bits: float) -> None:
        tokens = torch.randint(opened(bits).config.vocab_size, (1, int(prompt)))
        opened(bits).generate(tokens, max_new_tokens=int(written) + 1, min_new_tokens=int(written) + 1, do_sample=False)

    def answer(what: str, bits: float) -> Any:
        if what == "make":
            return make(Path(folder), model, int(length), int(iterations), bits)
        return turn(lambda: once(bits))

    answer_all(pipe, {tool.__name__: tool.__version__ for tool in (auto_round, transformers, torch)}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
