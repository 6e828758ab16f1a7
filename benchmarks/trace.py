"""The traffic of a real service, replayed: every request is served in full, and every page comes back.

    python benchmarks/trace.py [--trace conv] [--count 19366] [--per-step 1.0] [--pages 64] [--common 32]

The trace is Azure's of 2023 (conversations, or `code`): when requests came, how many tokens they held and how many were
written. A tiny Llama of random weights serves them with lengths divided by 16, so that the longest fits its context;
arrivals are so close together that `--per-step` of them come for a step of the engine on average, in bursts as they
were. What was said is not in the trace: prompts are random tokens behind a beginning that all have in common, of
`--common` tokens. Prints a table, then one JSON line.

It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared` beside the repository.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from schedules import DEMO, tiny
from table import markdown
from transformers import AutoTokenizer

from lissom.engine import Engine, Sampling, Sequence
from lissom.engine.pages import PAGE

SHORTER, CONTEXT = 16, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """When it came, in seconds after the first; tokens it held, tokens that were written."""

    seconds: float
    prompt: int
    written: int


def main() -> int:
    """Replay the trace, and tell what happened."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).parents[2] / "shared"))
    file = shared / "data" / "serving_traces" / f"AzureLLMInferenceTrace_{asked.trace}.csv"
    if not file.is_file():
        print("trace: skipped, there is no data/serving_traces in the shared folder; LISSOM_SHARED names another one")
        return 0
    torch.set_num_threads(1)
    engine = Engine(tiny(CONTEXT), AutoTokenizer.from_pretrained(DEMO), max_tokens_in_cache=asked.pages * PAGE)
    happened = replayed(engine, list(requests(file))[: asked.count], asked.per_step, asked.common)
    happened["pages leaked"] = round(engine.usage * asked.pages)
    print("\n".join(markdown(tuple(happened), [tuple(f"{number:,}" for number in happened.values())])))
    print(json.dumps({**vars(asked), **happened}))
    return int(happened["pages leaked"] != 0 or happened["served"] != happened["requests"])


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", choices=("conv", "code"), default="conv", help="conversations, or writing programs")
    parser.add_argument("--count", type=int, default=None, help="requests, of those that came first; all unless given")
    parser.add_argument("--per-step", type=float, default=1.0, help="requests that arrive for each step, on average")
    parser.add_argument("--pages", type=int, default=64, help="pages of the cache")
    parser.add_argument("--common", type=int, default=32, help="tokens that all prompts begin with, as far as they go")
    return parser.parse_args()


def requests(file: Path) -> Iterator[Request]:
    """The requests of a trace, shorter by what the context asks for."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    for row, at in zip(rows, times, strict=True):
        tokens = {name: -(-int(row[name]) // SHORTER) for name in ("ContextTokens", "GeneratedTokens")}
        yield Request(
            seconds=(at - times[0]).total_seconds(),
            prompt=max(tokens["ContextTokens"], 1),
            written=max(tokens["GeneratedTokens"], 1),
        )


def replayed(engine: Engine, asked: list[Request], per_step: float, common: int) -> dict[str, float]:
    """Serve the requests as they come, a step after the other."""
    random = np.random.default_rng(0)
    beginning = random.integers(2, engine.vocabulary, common).tolist()
    each = len(asked) / per_step / max(asked[-1].seconds, 1)  # steps for a second of the trace
    served, step, waiting, begun = list[Sequence](), 0, 0, time.perf_counter()
    while len(served) < len(asked) or engine.busy:
        while len(served) < len(asked) and asked[len(served)].seconds * each <= step:
            one = asked[len(served)]
            rest = random.integers(2, engine.vocabulary, one.prompt).tolist()
            sampling = Sampling(temperature=0.0, max_tokens=one.written, ignore_eos=True)
            served.append(engine.add([*beginning, *rest][: one.prompt], sampling))
        engine.step()
        step, waiting = step + 1, max(waiting, len(engine.schedule.waiting))
    return {
        "requests": len(asked),
        "served": sum(len(one.generated) == request.written for one, request in zip(served, asked, strict=True)),
        "steps": step,
        "prompt tokens": sum(one.prompt for one in asked),
        "tokens written": sum(len(one.generated) for one in served),
        "reused tokens": engine.schedule.reused_tokens,
        "preemptions": engine.schedule.preemptions,
        "longest queue": waiting,
        "seconds": round(time.perf_counter() - begun, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
