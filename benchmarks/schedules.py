"""Random schedules: whatever else arrives, is cancelled or has to give way, every text is the one written alone.

    python benchmarks/schedules.py [--count 10000] [--seed 0]

A tiny Llama of random weights writes a few texts, each alone in an engine of its own: the most probable tokens, drawn
ones, with penalties, by a grammar; many of their prompts begin alike. Then they are written together, in engines drawn
at random: how many pages, how large a batch, how long a chunk, who guesses tokens ahead, which texts arrive at which
step, how long they become, which are cancelled and when. Prints what happened, then one JSON line. A text that differs,
or a page that is not given back, is an error. The model has two blocks, since what the first one caches depends on a
token and its place alone. Drafts are the model itself, mostly right, and another one, mostly wrong.

Where the step runs in C, what comes of a token is the same to the last bit whatever runs beside it. So there the model
may also be in bfloat16, in int4 or half pruned, and the cache in bfloat16 or int8.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import markdown
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lissom.compress import compress_model
from lissom.engine import Engine, Grammar, Sampling, Sequence
from lissom.engine.decoder import CACHES
from lissom.engine.kernels import native
from lissom.engine.lower import lower
from lissom.engine.pages import PAGE, pages_for
from lissom.formats import freeze

DEMO = Path(__file__).parents[1] / "lissom" / "demo"
KERNEL = native.kernels()[-1] if native.kernels() else None  # the best there is, or the step runs in PyTorch
LONGEST = 12  # tokens that a text has at most, after a prompt of three pages at most
MANNERS = (
    Sampling(temperature=0.0),
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.7, top_k=50, top_p=0.9),
    Sampling(seed=3, min_p=0.05, presence_penalty=0.5, frequency_penalty=0.5, logit_bias={7: 4.0}),
    Sampling(temperature=0.0, repetition_penalty=1.5),
    Sampling(seed=4, grammar=Grammar(kind="regex", text="[a-z ]+[.]")),
)
INT4 = {"layers": "*_proj", "technique": "rtn", "bits": 4, "group": 32}
PRUNED = {"layers": "*_proj", "technique": "magnitude", "sparsity": 0.5}
WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "float": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "int4": lambda model: compressed(model, INT4),
    "pruned": lambda model: compressed(model.bfloat16(), PRUNED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt, how it is continued, and what comes of that alone."""

    prompt: list[int]
    sampling: Sampling
    alone: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A model, the type of its cache, who may guess for it, and what it writes alone."""

    model: Any
    cache: str
    drafts: tuple[Any, ...]
    texts: list[Text]


@dataclass(slots=True, kw_only=True)
class Arrival:
    """A text that arrives at a step, becomes so long, and is cancelled at a later step if at any."""

    text: Text
    at: int
    length: int
    cancelled: int | None
    sequence: Sequence | None = None


def main() -> None:
    """Run them all, and tell what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="schedules to be run")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other schedules")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    happened = many(asked.count, asked.seed)
    print("\n".join(markdown(tuple(happened), [tuple(f"{number:,}" for number in happened.values())])))
    print(json.dumps({"seed": asked.seed, "kernel": KERNEL, **happened}))


def many(count: int, seed: int) -> Counter[str]:
    """What happened in so many schedules, all together."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    every = list(kinds(tokenizer))
    happened = Counter[str]()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        happened.update(together(every[random.integers(len(every))], tokenizer, random))
    return happened


def kinds(tokenizer: Any) -> Iterator[Kind]:
    """All weights with all caches, as far as results are the same to the last bit."""
    for weights in WEIGHTS if KERNEL else ("float",):
        model, other = (WEIGHTS[weights](tiny(seed=seed)) for seed in (7, 8))
        for cache in CACHES if KERNEL else ("float",):
            texts = written_alone(model, tokenizer, cache)
            yield Kind(model=model, cache=cache, drafts=(None, model, other), texts=texts)


def tiny(context: int = 128, seed: int = 7) -> Any:
    """A Llama of two blocks, 32 wide, with random weights, for the tokenizer of the bundled model."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": context}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **heads))
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1)
    return model.eval()


def compressed(model: Any, step: dict[str, Any]) -> Any:
    """The model after one step of compression, on kernels."""
    return lower(freeze(compress_model(model, steps=[step])).eval())


def written_alone(model: Any, tokenizer: Any, cache: str) -> list[Text]:
    """Texts whose prompts begin with no page, or with up to two that others hold too, in this order or another."""
    random = np.random.default_rng(0)
    a, b = random.integers(2, 2048, (2, PAGE)).tolist()
    texts = list[Text]()
    for beginning, sampling in itertools.product(([], a, [*a, *b], [*b, *b]), MANNERS):
        prompt = [*beginning, *random.integers(2, 2048, random.integers(1, PAGE)).tolist()]
        engine = Engine(model, tokenizer, max_tokens_in_cache=4 * PAGE, cache=cache, speculate="off")
        (found,) = engine.generate([prompt], replace(sampling, max_tokens=LONGEST))
        texts.append(Text(prompt=prompt, sampling=sampling, alone=found.generated))
    return texts


def together(kind: Kind, tokenizer: Any, random: np.random.Generator) -> dict[str, int]:
    """Run one schedule, and count what happened. By its clock some passes are dear and others cheap, at random."""
    arrivals = [arrival(kind.texts, random) for _ in range(random.integers(2, 8))]
    largest = max(pages_for(len(one.text.prompt) + one.length) for one in arrivals)
    engine = Engine(
        kind.model,
        tokenizer,
        cache=kind.cache,
        max_tokens_in_cache=PAGE * int(random.integers(largest, largest + 3)),
        max_batch=int(random.integers(1, 9)),
        prefill_chunk=int(random.integers(5, 100)),
        draft=kind.drafts[random.integers(len(kind.drafts))],
        speculate=str(random.choice(["auto", "always"])),
        clock=itertools.accumulate(random.exponential() for _ in itertools.count()).__next__,
    )
    last = max(one.at for one in arrivals)
    for step in itertools.count():
        for one in arrivals:
            turn(engine, one, step)
        engine.step()
        if step >= last and not engine.busy:
            break
    for one in arrivals:
        check(one)
    assert engine.usage == 0, f"{engine.usage} of the pages were not given back"
    return {
        "schedules": 1,
        "texts": len(arrivals),
        "cancelled": sum(one.sequence is not None and one.sequence.finish == "cancelled" for one in arrivals),
        "preemptions": engine.schedule.preemptions,
        "reused tokens": engine.schedule.reused_tokens,
        "guessed tokens": engine.speculation.guessed,
        "accepted tokens": engine.speculation.accepted,
        "steps": step + 1,
    }


def arrival(texts: list[Text], random: np.random.Generator) -> Arrival:
    """Any text, at any of the first steps; one of four is cancelled."""
    at = int(random.integers(0, 4))
    return Arrival(
        text=texts[random.integers(len(texts))],
        at=at,
        length=int(random.integers(1, LONGEST + 1)),
        cancelled=at + int(random.integers(1, 8)) if random.random() < 0.25 else None,
    )


def turn(engine: Engine, one: Arrival, step: int) -> None:
    """What happens to an arrival before a step."""
    if step == one.at:
        one.sequence = engine.add(one.text.prompt, replace(one.text.sampling, max_tokens=one.length))
    if step == one.cancelled and one.sequence is not None:
        engine.cancel(one.sequence)


def check(one: Arrival) -> None:
    """The text is the one written alone, as far as it goes."""
    assert one.sequence is not None
    found, wanted = one.sequence.generated, one.text.alone[: one.length]
    if one.sequence.finish == "cancelled":
        wanted = wanted[: len(found)]
    assert found == wanted, f"{one.text.sampling} after {len(one.text.prompt)} tokens gave {found}, alone {wanted}"


if __name__ == "__main__":
    main()
