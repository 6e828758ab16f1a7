"""How likely a language model finds continuations of a text, and whether they are what it would have said itself.

As in lm-evaluation-harness (EleutherAI): context and continuation are tokenized together, without special tokens, and
what comes after as many tokens as the context alone has is the continuation; spaces at the end of the context count to
it; before an empty context stands the token that begins a text. A continuation's likelihood is that of all its tokens,
or, by length, divided by its number of characters. It is what the model says itself, greedily, if each of its tokens is
the likeliest after those before: one pass tells, and nothing has to be generated.

Shapes: n examples, c continuations of each, t tokens of a context with its continuation, v vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.evaluate.metric import Metric, share

Parts = Mapping[str, Tensor]  # of a batch: input_ids and scored (n, c, t), lengths (n, c), labels (n)


def encode(
    tokenizer: Any, contexts: Sequence[str], continuations: Sequence[Sequence[str]], labels: Sequence[int]
) -> Parts:
    """A batch of contexts, each with as many continuations, and which of them is right.

    Raises:
        DataError: there are no examples, or the numbers of continuations differ.
    """
    counts = {len(each) for each in continuations}
    if len(counts) != 1:
        raise DataError(f"data: {len(contexts)} examples with {sorted(counts)} continuations; all need the same number")
    pairs = [
        pair(tokenizer, context, text) for context, each in zip(contexts, continuations, strict=True) for text in each
    ]
    tokens, scored = (part.unflatten(0, (len(contexts), -1)) for part in filled(pairs))
    return {
        "input_ids": tokens,
        "scored": scored,
        "lengths": torch.tensor([[float(len(text.lstrip())) for text in each] for each in continuations]),
        "labels": torch.tensor(labels),
    }


def filled(rows: Sequence[tuple[list[int], int]]) -> tuple[Int[Tensor, "r t"], Bool[Tensor, "r t"]]:
    """Tokens, and from where on they are scored, filled up to the longest of r rows: tokens, and which are scored."""
    tokens, scored = torch.zeros(2, len(rows), max(len(ids) for ids, _ in rows), dtype=torch.long)
    for row, (ids, begin) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        scored[row, begin : len(ids)] = 1
    return tokens, scored.bool()


def first_token(tokenizer: Any) -> int:
    """The token that begins a text.

    Raises:
        DataError: the tokenizer has none.
    """
    first: int | None = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise DataError("data: a context is empty, and the tokenizer has no token that begins a text; give contexts")
    return first


def pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """The tokens of both, and where the continuation begins.

    Raises:
        DataError: the continuation has no token of its own, or the tokenizer none that begins a text.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"] if context else []
    whole = tokenizer(context + continuation, add_special_tokens=False, verbose=False)["input_ids"]
    if len(whole) <= len(before):
        raise DataError(f"data: {continuation!r} after {context[-40:]!r} has no token of its own; leave it out")
    if before:
        return whole, len(before)
    return [first_token(tokenizer), *whole], 1


def parts(batch: Batch) -> Parts:
    """The parts of a batch that `encode` made.

    Raises:
        DataError: it is none.
    """
    if not isinstance(batch, Mapping) or "scored" not in batch:
        raise DataError("task: its examples are read from a file by `read`; other data has no continuations")
    return batch


def follow(model: nn.Module, batch: Batch) -> Float[Tensor, "n c 2"]:
    """Of each continuation its log likelihood in nats, and whether it is the likeliest token by token.

    Raises:
        DataError: the batch is none that `encode` made.
    """
    given = parts(batch)
    scored = given["scored"].flatten(0, 1)
    length = int(scored.any(0).nonzero().max()) + 1  # what is only filled up, of all, is left out
    tokens, scored = given["input_ids"].flatten(0, 1)[:, :length], scored[:, 1:length]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    told = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    same = logits.argmax(-1) == tokens[:, 1:]
    found: Tensor = torch.stack([(told * scored).sum(-1), (same | ~scored).all(-1)], dim=-1)
    return found.reshape(*given["input_ids"].shape[:2], 2)


def likeliest(found: Float[Tensor, "n c 2"], batch: Batch) -> Bool[Tensor, " n"]:
    """Whether the right continuation is the likeliest."""
    return found[..., 0].argmax(-1) == parts(batch)["labels"]


def likeliest_by_length(found: Float[Tensor, "n c 2"], batch: Batch) -> Bool[Tensor, " n"]:
    """Whether the right continuation is the likeliest for its length."""
    return (found[..., 0] / parts(batch)["lengths"]).argmax(-1) == parts(batch)["labels"]


def greedy(found: Float[Tensor, "n c 2"], batch: Batch) -> Bool[Tensor, " n"]:
    """Whether the right continuation is what the model says itself."""
    return found[torch.arange(len(found)), parts(batch)["labels"], 1] > 0


LIKELIEST = Metric(name="accuracy of the likeliest", output=follow, score=likeliest, summary=share, examples=8)
LIKELIEST_BY_LENGTH = Metric(
    name="accuracy of the likeliest by length", output=follow, score=likeliest_by_length, summary=share, examples=8
)
GREEDY = Metric(name="exact match", output=follow, score=greedy, summary=share, examples=8)
