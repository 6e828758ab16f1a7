"""Whole steps for benchmarks/gpu.py: a token for each of several sequences, in the engine and by transformers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_forms import IN_STEPS
from torch import Tensor
from transformers import StaticCache

from lissom.engine.graphs import recording
from lissom.engine.pages import pages_for
from lissom.engine.runner import Runner
from lissom.engine.schedule import Slice
from lissom.engine.sequence import Sampling, Sequence
from lissom.engine.text import Detokenizer
from lissom.estimate import Estimate, median_estimate
from lissom.hardware import rounds_ms

BEHIND, SEQUENCES = 512, (1, 16)
MORE = 128  # steps that there is room for


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long a step takes in a form, one way."""

    form: str
    way: str
    sequences: int
    ms: Estimate


def step_times(make: Callable[[str], Any], until: float) -> Iterator[StepTimes]:
    """Each form, until there is no more time."""
    for form in IN_STEPS:
        if time.monotonic() > until:
            print(f"{form}: left out, no time")
            continue
        model = make(form)
        for sequences in SEQUENCES:
            runs = dict(ways(model, sequences, compiled=form == "bf16"))
            for way, spent in rounds_ms(runs, rounds=10, warmup=5, target="cuda").items():
                yield StepTimes(form=form, way=way, sequences=sequences, ms=median_estimate(spent, unit="ms"))
            del runs
            torch.cuda.empty_cache()
        del model
        torch.cuda.empty_cache()


def ways(model: Any, sequences: int, *, compiled: bool) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """A step in the engine, recorded and not; and of transformers' own code, as it is and compiled."""
    need = pages_for(BEHIND + 1)
    slices = [slice_of(list(range(n * need, (n + 1) * need))) for n in range(sequences)]
    for way, record in (("engine, recorded", recording(model)), ("engine", None)):
        runner = Runner(model, pages=need * sequences, cache="bfloat16", record=record)
        yield way, lambda runner=runner: runner.forward(slices)
    if compiled:
        step = own_step(model, sequences)
        yield "transformers", step(model.forward)
        yield "transformers, compiled", step(torch.compile(model.forward, mode="reduce-overhead", fullgraph=True))


def slice_of(pages: list[int]) -> Slice:
    """The last token of a sequence behind 512 others."""
    sequence = Sequence(
        prompt=tuple(range(1, BEHIND + 2)),
        sampling=Sampling(),
        limit=8,
        detokenizer=Detokenizer(lambda _: ""),
        random=np.random.default_rng(0),
    )
    sequence.pages.extend(pages)
    return Slice(sequence=sequence, start=BEHIND, count=1)


def own_step(model: Any, sequences: int) -> Callable[[Callable[..., Any]], Callable[[], Tensor]]:
    """The same step over a static cache of transformers, by one forward or another."""
    cache = StaticCache(config=model.config, max_cache_len=BEHIND + MORE)
    for layer in cache.layers:
        layer.cumulative_length.fill_(BEHIND)
    tokens = torch.ones(sequences, 1, dtype=torch.long, device="cuda")
    place = torch.full((sequences, 1), BEHIND, device="cuda")

    def by(forward: Callable[..., Any]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                out = forward(input_ids=tokens, position_ids=place, past_key_values=cache, use_cache=True)
            return out.logits  # type: ignore[no-any-return]

        return run

    return by
