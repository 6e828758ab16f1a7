"""OpenVINO GenAI's continuous batching, timed; run by an interpreter that has openvino_genai.

    python peer_openvino.py FOLDER BATCHES PROMPT NEW

Prints one JSON line (turns.py); the seconds of the step that reads all prompts, and of the steps after it.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from turns import time_batches


def main(folder: str, batches: str, prompt: str, new: str) -> None:
    """All batches, by one pipeline."""
    sizes = [int(size) for size in batches.split(",")]
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 4, max(sizes) * int(prompt), 64
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": os.cpu_count()})
    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    time_batches(lambda size, more: once(pipeline, vocabulary, size, int(prompt), more), batches, int(new))


def once(pipeline: genai.ContinuousBatchingPipeline, vocabulary: int, size: int, prompt: int, new: int) -> list[float]:
    """Seconds of reading and of writing."""
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = new + 1, True, False
    draw = np.random.default_rng(0)
    prompts = [openvino.Tensor(draw.integers(0, vocabulary, (1, prompt))) for _ in range(size)]
    handles = [pipeline.add_request(number, tokens, config) for number, tokens in enumerate(prompts)]
    begun = time.perf_counter()
    pipeline.step()
    middle = time.perf_counter()
    while pipeline.has_non_finished_requests():
        pipeline.step()
    end = time.perf_counter()
    written = [sum(map(len, (one.generated_ids for one in handle.read_all()))) for handle in handles]
    assert written == [new + 1] * size, written
    return [middle - begun, end - middle]


main(*sys.argv[1:])
