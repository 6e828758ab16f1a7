"""Decoding with tokens guessed ahead: the same text, sooner.

    python benchmarks/speculative.py [--batches 1,4] [--prompts 8] [--new 128] [--rounds 7]

A language model trained on WikiText-2 goes on with passages of the test text, greedily: without guesses, with guesses
from what the text repeats, and with those of a draft, the model itself rounded to 4 bits in groups of 128, head and
embedding too (zero-drop mode: the draft's speed, the original's words). All take turns in one process; a text that
differs is an error. Prints a table of the rates of decoding, then one JSON line.

It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared` beside the repository.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import markdown

import lissom
from lissom.artifact import Opened, open_folder
from lissom.calibrate import token_windows
from lissom.engine import Engine, Sampling
from lissom.engine.lower import lower
from lissom.engine.pages import PAGE
from lissom.estimate import Estimate, median_estimate
from lissom.hardware import describe

PROMPT = 128  # tokens
STEPS = [{"technique": "rtn", "bits": 4, "group": 128}]
WAYS = ("without guesses", "prompt lookup", "zero-drop, int4 draft")


def main() -> int:
    """Measure every batch, and tell."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).parents[2] / "shared"))
    source, text = shared / "models" / "wikilm", shared / "data" / "wikitext2" / "plain" / "test.txt"
    if not (source.is_dir() and text.is_file()):
        print("speculative: skipped, models/wikilm or data/wikitext2 are not there; LISSOM_SHARED names another folder")
        return 0
    opened = open_folder(source)
    windows = token_windows(text.read_text(encoding="utf-8"), opened.tokenizer, PROMPT)
    prompts = windows[:: len(windows) // asked.prompts][: asked.prompts].tolist()
    with tempfile.TemporaryDirectory() as place:
        recipe = lissom.Recipe.of(STEPS)
        draft = lower(open_folder(lissom.compress_checkpoint(source, recipe, windows[:4], Path(place) / "draft")).model)
        found = [measured(opened, draft, prompts, size, asked.new, asked.rounds) for size in asked.batches]
    rows = [row for batch in found for row in batch]
    head = ("", "sequences", "tokens/s", "times without", "guesses that came true", "tokens a pass")
    print("\n".join(markdown(head, [told(row) for row in rows])))
    about = {"machine": describe().as_dict(), "threads": torch.get_num_threads()}
    print(json.dumps({**about, "rows": rows}, default=plain))
    return 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    parser.add_argument("--batches", type=numbers, default=[1, 4], help="sequences at once")
    parser.add_argument("--prompts", type=int, default=8, help="passages to be continued in each round")
    parser.add_argument("--new", type=int, default=128, help="tokens to be written after each")
    parser.add_argument("--rounds", type=int, default=7, help="after one that warms up")
    return parser.parse_args()


def measured(
    opened: Opened, draft: Any, prompts: list[list[int]], size: int, new: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each way of writing, so many sequences at once."""
    options = {
        "without guesses": {"speculate": "off"},
        "prompt lookup": {"speculate": "auto"},
        "zero-drop, int4 draft": {"speculate": "auto", "draft": draft},
    }
    model: Any = lower(opened.model)
    room = size * (PROMPT + new + PAGE)
    engines: dict[str, Engine] = {
        name: Engine(model, opened.tokenizer, max_tokens_in_cache=room, max_batch=size, **options[name])
        for name in WAYS
    }
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    steps = dict.fromkeys(WAYS, 0)
    for number in range(rounds + 1):
        texts = {}
        for name, engine in engines.items():
            texts[name], seconds, steps[name] = written(engine, prompts, size, new)
            if number:
                rates[name].append(len(prompts) * (new - 1) / seconds)
        assert all(text == texts[WAYS[0]] for text in texts.values()), "a text with guesses is another one"
    return [row(name, size, rates, engines[name], len(prompts) * (new - 1) / steps[name]) for name in WAYS]


def written(engine: Engine, prompts: list[list[int]], size: int, new: int) -> tuple[list[list[int]], float, int]:
    """What comes after the prompts; the seconds and the steps of decoding alone."""
    sampling = Sampling(temperature=0, max_tokens=new, ignore_eos=True)
    texts, seconds, steps = list[list[int]](), 0.0, 0
    for first in range(0, len(prompts), size):
        sequences = [engine.add(prompt, sampling) for prompt in prompts[first : first + size]]
        while not all(sequence.generated for sequence in sequences):
            engine.step()
        begun = time.perf_counter()
        while engine.busy:
            engine.step()
            steps += len(sequences)
        seconds += time.perf_counter() - begun
        texts += [sequence.generated for sequence in sequences]
    return texts, seconds, steps


def row(name: str, size: int, rates: dict[str, list[float]], engine: Engine, a_pass: float) -> dict[str, Any]:
    """What was found of one way."""
    ratios = np.array(rates[name]) / np.array(rates[WAYS[0]])
    speculation = engine.speculation
    return {
        "name": name,
        "sequences": size,
        "tokens_per_s": median_estimate(rates[name], unit="tokens/s"),
        "times_without": median_estimate(ratios),
        "true": speculation.accepted / speculation.guessed if speculation.guessed else None,
        "tokens_a_pass": a_pass,
    }


def told(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    rate, ratio = row["tokens_per_s"], row["times_without"]
    true = "" if row["true"] is None else f"{row['true']:.0%}"
    return (
        row["name"],
        f"{row['sequences']}",
        f"{rate.value:.0f} [{rate.low:.0f}, {rate.high:.0f}]",
        f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        true,
        f"{row['tokens_a_pass']:.1f}",
    )


def plain(value: object) -> object:
    """An estimate for JSON."""
    assert isinstance(value, Estimate)
    return dataclasses.asdict(value)


if __name__ == "__main__":
    raise SystemExit(main())
