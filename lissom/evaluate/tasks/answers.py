"""What a language model answers to the requests of lm-evaluation-harness: how likely a text is, or what comes next.

As the library's own class for transformers does: texts are tokenized as the tokenizer does by itself, before an empty
context stands the token that begins a text, what is longer than a model's context loses its beginning, and a text alone
that is longer is read window by window.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lissom.calibrate.data import device_of
from lissom.errors import DataError
from lissom.evaluate.tasks.continuation import filled, first_token, follow

ROWS = 8  # texts at once
CONTEXT = 2048  # tokens, where a model does not say

Row = tuple[list[int], int]  # tokens, and how many of them are only read


def loglikelihood(model: nn.Module, tokenizer: Any, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Of each continuation of a context its log likelihood in nats, and whether greedy answers would be it."""
    return told(model, [pair(tokenizer, *texts) for texts in asked])


def rolling(model: nn.Module, tokenizer: Any, asked: Sequence[tuple[str]]) -> list[float]:
    """The log likelihood of each text in nats, of which every token is predicted once."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    found = []
    for (text,) in asked:
        windows = get_rolling_token_windows(tokenizer.encode(text), first_token(tokenizer), context_of(model), 1)
        rows = [(before + after, len(before)) for before, after in map(make_disjoint_window, windows)]
        found.append(sum(likelihood for likelihood, _ in told(model, rows)))
    return found


def generate(model: nn.Module, tokenizer: Any, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What follows each context, greedily, up to one of the texts that end it.

    Raises:
        DataError: the answers are to be drawn at random.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

    found = []
    for context, options in asked:
        given = normalize_gen_kwargs(options)
        if given.get("do_sample"):
            raise DataError("task: its answers are drawn at random, which is no score of an example; choose another")
        until = handle_stop_sequences(given["until"], tokenizer.decode(tokenizer.eos_token_id))
        most = given["max_gen_toks"]
        tokens = torch.tensor([tokenizer.encode(context)[-max(context_of(model) - most, 1) :]], device=device_of(model))
        written: Any = model.generate(  # type: ignore[operator]
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=most,
            do_sample=False,
            stop_strings=until,
            tokenizer=tokenizer,
            pad_token_id=tokenizer.eos_token_id,
        )
        said = tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)
        found.append(postprocess_generated_text(said, until, None))
    return found


ANSWERS: Mapping[str, Callable[[nn.Module, Any, Any], Sequence[Any]]] = {
    "loglikelihood": loglikelihood,
    "loglikelihood_rolling": rolling,
    "generate_until": generate,
}


def pair(tokenizer: Any, context: str, continuation: str) -> Row:
    """The tokens of both, of which those of the context are only read."""
    if not context:
        tokens = tokenizer.encode(continuation, add_special_tokens=False)
        begun = [] if tokens[:1] == [first_token(tokenizer)] else [first_token(tokenizer)]
        return begun + tokens, 1
    text = context.rstrip()
    return tokenizer.encode(context + continuation), len(tokenizer.encode(text))


def told(model: nn.Module, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """The log likelihood of what is not only read, and whether it is the likeliest token by token."""
    found: list[tuple[float, bool]] = []
    for start in range(0, len(rows), ROWS):
        kept = [latest(row, context_of(model) + 1) for row in rows[start : start + ROWS]]
        tokens, scored = (part.to(device_of(model)) for part in filled(kept))
        told = follow(model, {"input_ids": tokens[:, None], "scored": scored[:, None]})[:, 0]
        found += [(likelihood, bool(greedy)) for likelihood, greedy in told.tolist()]
    return found


def latest(row: Row, most: int) -> Row:
    """The end of a row that is too long."""
    tokens, read = row
    return tokens[-most:], max(read - max(len(tokens) - most, 0), 1)


def context_of(model: nn.Module) -> int:
    """How many tokens a model looks back at most."""
    return getattr(model.config, "max_position_embeddings", None) or CONTEXT
