"""The engine: many requests at once through one language model.

Five nouns: a *sequence* is what is wanted and how far it has come, *pages* say who owns which part of the cache, the
*schedule* which tokens run next, the *runner* makes the forward pass, and *sample* chooses the next token.
"""

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lissom.engine.cache import AUTO, kind_of_cache
from lissom.engine.decoder import native_runner
from lissom.engine.grammar import constrain, spelling
from lissom.engine.pages import PAGE, Pages, pages_for
from lissom.engine.runner import Runner
from lissom.engine.sample import choose
from lissom.engine.schedule import Schedule
from lissom.engine.sequence import Sampling, Sequence
from lissom.engine.text import Detokenizer
from lissom.errors import DataError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Engine:
    """Continuous batching over a paged key-value cache (Kwon et al., SOSP 2023, arXiv:2309.06180).

    `add` a prompt, `step` until its sequence has a `finish`. A step is one forward pass: a token of every sequence
    that decodes, together with at most `prefill_chunk` tokens of new prompts. What a prompt begins with is taken from
    the cache while it is still there, so n continuations of one prompt are n sequences, with a seed each. Not
    thread-safe: one thread owns it, and the model while it steps. The cache holds keys and values as they are
    ("float"), as "bfloat16", in "int8" or in "int4"; "auto" is one of the first two, as the model was trained.

    Raises:
        ModelError: a model of a family that the engine does not know.
        DataError: a cache too small to hold one page, or of a kind that there is not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens_in_cache: int,
        max_batch: int = 16,
        prefill_chunk: int = 512,
        cache: str = AUTO,
    ) -> None:
        if max_tokens_in_cache < PAGE or max_batch < 1 or prefill_chunk < 1:
            raise DataError(
                f"engine: max_tokens_in_cache={max_tokens_in_cache}, max_batch={max_batch}, "
                f"prefill_chunk={prefill_chunk} must be at least {PAGE}, 1 and 1"
            )
        pages = Pages(pages_for(max_tokens_in_cache))
        self.context = min(model.config.max_position_embeddings, pages.total * PAGE)
        self.schedule = Schedule(pages, max_batch=max_batch, chunk=prefill_chunk)
        self._pages = pages
        kind = kind_of_cache(cache, model.config)
        native = native_runner(model, pages=pages.total, cache=kind)
        self._runner = native or Runner(model, pages=pages.total, cache=kind)
        self.vocabulary: int = model.config.vocab_size
        self._end = _end_tokens(model, tokenizer)
        self._tokenizer = tokenizer

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.schedule.running or self.schedule.waiting)

    @property
    def usage(self) -> float:
        """The fraction of the cache that is in use; what is only kept to be reused does not count."""
        return 1 - self._pages.free / self._pages.total

    def add(self, prompt: SequenceOf[int], sampling: Sampling | None = None) -> Sequence:
        """Prepare a prompt and queue it.

        Raises:
            DataError: an empty prompt, a token outside the vocabulary, more tokens than can ever fit, a grammar that
                cannot be understood.
        """
        sequence = self.prepare(prompt, sampling or Sampling())
        self.enqueue(sequence)
        return sequence

    def prepare(self, prompt: SequenceOf[int], sampling: Sampling) -> Sequence:
        """Check a prompt and make its sequence. Touches nothing that changes, so any thread may call it.

        Raises:
            DataError: as `add`.
        """
        return Sequence(
            prompt=tuple(prompt),
            sampling=sampling,
            limit=self._limit(prompt, sampling),
            detokenizer=Detokenizer(self._decode, sampling.stop),
            random=np.random.default_rng(sampling.seed),
            constraint=None if sampling.grammar is None else constrain(sampling.grammar, self._spelling),
        )

    def enqueue(self, sequence: Sequence) -> None:
        """Let a prepared sequence wait for its turn."""
        self.schedule.add(sequence)

    def step(self) -> list[Sequence]:
        """One forward pass; return the sequences that got a token."""
        slices = self.schedule.plan()
        if not slices:
            return []
        logits = self._runner.forward(slices).cpu().numpy()
        self.schedule.record(slices)
        changed = [piece.sequence for piece in slices if piece.completes]
        for sequence, row in zip(changed, logits, strict=True):
            self._advance(sequence, row)
        return changed

    def cancel(self, sequence: Sequence) -> None:
        """Stop working on the sequence; what it has so far remains readable."""
        if sequence.finish is None:
            sequence.finish = "cancelled"
            self.schedule.remove(sequence)

    def generate(self, prompts: Iterable[SequenceOf[int]], sampling: Sampling | None = None) -> list[Sequence]:
        """Complete all prompts; return their sequences in order."""
        sequences = [self.add(prompt, sampling) for prompt in prompts]
        while any(sequence.finish is None for sequence in sequences):
            self.step()
        return sequences

    @cached_property
    def _spelling(self) -> "LLTokenizer":
        return spelling(self._tokenizer, self.vocabulary, self._end)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _advance(self, sequence: Sequence, logits: np.ndarray) -> None:
        sampling, end = sequence.sampling, sequence.sampling.ends(self._end)
        choice = choose(
            logits,
            sampling,
            sequence.random,
            prompt=sequence.prompt,
            generated=sequence.generated,
            allowed=None if sequence.constraint is None else sequence.constraint.allowed(),
            banned=end if len(sequence.generated) < sampling.min_tokens else (),
        )
        sequence.accept(choice, end)
        if sequence.finish is not None:
            self.schedule.remove(sequence)

    def _limit(self, prompt: SequenceOf[int], sampling: Sampling) -> int:
        room = self.context - len(prompt)
        if not prompt or not all(0 <= token < self.vocabulary for token in prompt):
            raise DataError(f"engine: a prompt is 1 or more tokens from 0 to {self.vocabulary - 1}; give it some text")
        if not all(0 <= token < self.vocabulary for token in (*sampling.stop_tokens, *sampling.logit_bias)):
            raise DataError(f"engine: stop_tokens and logit_bias name tokens; possible are 0 to {self.vocabulary - 1}")
        if room < max(sampling.max_tokens or 1, sampling.min_tokens):
            raise DataError(
                f"engine: {len(prompt)} prompt tokens and {sampling.max_tokens or 1} new ones exceed the context of "
                f"{self.context} tokens; shorten the prompt or max_tokens"
            )
        return sampling.max_tokens or room


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a text, as the generation config and the tokenizer declare them."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if isinstance(token, int))
