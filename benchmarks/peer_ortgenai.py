"""onnxruntime-genai, timed; run by an interpreter that has onnxruntime_genai.

    python peer_ortgenai.py FOLDER BATCHES PROMPT NEW

Prints one JSON line (turns.py); the seconds up to the first token of each prompt, and of the tokens after it.
All cores are asked for: left to itself it takes one of two.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from turns import time_batches

THREADS = {"model": {"decoder": {"session_options": {"intra_op_num_threads": os.cpu_count()}}}}


def main(folder: str, batches: str, prompt: str, new: str) -> None:
    """All batches, by one model."""
    config = genai.Config(folder)
    config.overlay(json.dumps(THREADS))
    model = genai.Model(config)
    vocabulary = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["vocab_size"]
    time_batches(lambda size, more: once(model, vocabulary, size, int(prompt), more), batches, int(new))


def once(model: genai.Model, vocabulary: int, size: int, prompt: int, new: int) -> list[float]:
    """Seconds of reading and of writing."""
    length = prompt + new + 1
    params = genai.GeneratorParams(model)
    params.set_search_options(batch_size=size, max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, params)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (size, prompt), dtype=np.int32)
    begun = time.perf_counter()
    generator.append_tokens(tokens)
    generator.generate_next_token()
    middle = time.perf_counter()
    for _ in range(new):
        generator.generate_next_token()
    end = time.perf_counter()
    written = [len(generator.get_sequence(number)) for number in range(size)]
    assert written == [length] * size, written
    return [middle - begun, end - middle]


main(*sys.argv[1:])
