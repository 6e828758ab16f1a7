"""How fast the engine reads prompts and writes on, for one sequence and for many, beside what the machine can do.

A token that is written needs all weights read once, for however many sequences at once: reading memory is its limit. A
token that is read needs two operations a weight: multiplying integers is the limit of that.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from torch import nn

from lissom.engine.cache import AUTO
from lissom.engine.engine import Engine
from lissom.engine.kernels.layer import KernelEmbedding, KernelLinear
from lissom.engine.pages import PAGE
from lissom.engine.speculate import NEVER
from lissom.engine.turn import once
from lissom.errors import DataError
from lissom.estimate import Estimate, median_estimate
from lissom.formats import CompressedEmbedding, CompressedLayer
from lissom.hardware import Limits
from lissom.models.families import FAMILIES, at
from lissom.models.form import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """So many sequences at once: tokens per second of all together, and which part of the machine's limit that is."""

    sequences: int
    prefill_tokens_per_s: Estimate
    decode_tokens_per_s: Estimate
    prefill_of_limit: Estimate
    decode_of_limit: Estimate


def bench_engine(
    model: LanguageModel,
    tokenizer: Any,
    limits: Limits,
    *,
    batches: SequenceOf[int] = (1,),
    prompt: int = 128,
    new: int = 32,
    rounds: int = 5,
    cache: str = AUTO,
) -> list[Served]:
    """The speed of a language model, as it is, for each number of sequences at once; the numbers take turns.

    A round reads a random prompt of so many tokens for each sequence, all in one step, and then writes `new` tokens
    more of each. Keys and values are held as `cache` says.

    Raises:
        ModelError: a model of a family that the engine does not know.
        DataError: no prompt, no new token, no batch, or more tokens than the model has room for.
    """
    if min(prompt, new, rounds, len(batches), *batches) < 1:
        raise DataError(f"bench: batches {batches}, prompt {prompt}, {new} new tokens: at least 1 of each is needed")
    engines = {size: engine(model, tokenizer, size, prompt, new, cache=cache) for size in batches}
    times = {size: list[tuple[float, float]]() for size in batches}
    for number in range(rounds + 1):  # the first one warms up
        for size, running in engines.items():
            spent = once(running, size, prompt, new)
            if number:
                times[size].append(spent)
    return [rates(model, limits, size, prompt, new, spent) for size, spent in times.items()]


def rates(
    model: Any, limits: Limits, sequences: int, prompt: int, new: int, spent: SequenceOf[tuple[float, float]]
) -> Served:
    """The rates of some rounds, of which the seconds of both parts are given."""
    read, write = (median_estimate([seconds[part] for seconds in spent]) for part in (0, 1))
    operations, nbytes = 2 * weights(model) * sequences * prompt, step_bytes(model) * new
    return Served(
        sequences=sequences,
        prefill_tokens_per_s=read.through(lambda s: sequences * prompt / s, unit="tokens/s"),
        decode_tokens_per_s=write.through(lambda s: sequences * new / s, unit="tokens/s"),
        prefill_of_limit=read.through(lambda s: operations / s / (1e9 * limits.int8.value), unit=""),
        decode_of_limit=write.through(lambda s: nbytes / s / (1e9 * limits.read_all.value), unit=""),
    )


def engine(model: LanguageModel, tokenizer: Any, sequences: int, prompt: int, new: int, *, cache: str = AUTO) -> Engine:
    """An engine that reads so many prompts in one step, and has room for what is written after them."""
    room = sequences * (prompt + new + 2 * PAGE)
    return Engine(
        model,
        tokenizer,
        max_tokens_in_cache=room,
        max_batch=sequences,
        prefill_chunk=sequences * prompt,
        cache=cache,
        speculate=NEVER,  # so that a step is a token
    )


def multiplying(model: nn.Module) -> list[nn.Module]:
    """The layers that every token passes: all with a matrix but embeddings."""
    kinds = (nn.Linear, KernelLinear, CompressedLayer)
    tables = (CompressedEmbedding, KernelEmbedding)
    head = head_of(model)
    looked_up = {part for table in model.modules() if isinstance(table, tables) for part in (table, *table.children())}
    return [layer for layer in model.modules() if isinstance(layer, kinds) and layer not in looked_up - {head}]


def step_bytes(model: nn.Module) -> int:
    """Bytes of weights that are read for a step."""
    tensors = {id(part): part for layer in multiplying(model) for part in [*layer.parameters(), *layer.buffers()]}
    return sum(part.nbytes for part in tensors.values())


def weights(model: nn.Module) -> int:
    """Weights that a token of a prompt is multiplied with; the head is asked only about the last one."""
    head = head_of(model)
    return sum(size(layer) for layer in multiplying(model) if layer is not head)


def head_of(model: nn.Module) -> nn.Module | None:
    """The last layer of a language model."""
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return None if family is None else at(model, family.head)


def size(layer: nn.Module) -> int:
    """Inputs times outputs."""
    if isinstance(layer, nn.Linear):
        return layer.weight.numel()
    assert isinstance(layer, KernelLinear | CompressedLayer)
    o, i = layer.shape if isinstance(layer, KernelLinear) else layer.weight.shape
    return o * i
