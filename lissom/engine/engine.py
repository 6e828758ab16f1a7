"""The engine: many requests at once through one language model.

Five nouns: a *sequence* is what is wanted and how far it has come, *pages* say who owns which part of the cache, the
*schedule* which tokens run next, the *runner* makes the forward pass, and *sample* chooses the next token. A sixth,
*speculation*, guesses tokens ahead, so that one pass may give several.
"""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from functools import cached_property, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.engine.draft import Draft
from lissom.engine.grammar import constrain, spelling
from lissom.engine.image import Ready
from lissom.engine.native_runner import NativeRunner
from lissom.engine.pages import PAGE, Pages, pages_for
from lissom.engine.sample import among, choose
from lissom.engine.schedule import Schedule
from lissom.engine.sequence import Sampling, Sequence
from lissom.engine.speculate import MODES, NEVER, WHERE_IT_PAYS, Speculation
from lissom.engine.text import Detokenizer
from lissom.errors import DataError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from lissom.engine.runner import Runner
    from lissom.models.form import LanguageModel


class Engine:
    """Continuous batching over a paged key-value cache (Kwon et al., SOSP 2023, arXiv:2309.06180).

    `add` a prompt, `step` until its sequence has a `finish`. A step is one forward pass: a token of every sequence
    that decodes, together with at most `prefill_chunk` tokens of new prompts. What a prompt begins with is taken from
    the cache while it is still there, so n continuations of one prompt are n sequences, with a seed each. Not
    thread-safe: one thread owns it, and the model while it steps. The cache holds keys and values as they are
    ("float"), as "bfloat16", in "int8" or in "int4"; "auto" is one of the first two, as the model was trained.

    Further tokens are guessed from what the text repeats and run in the same pass; those that the model chooses as well
    are kept (speculate.py), so that texts are the same and come sooner. `speculate` "auto" guesses where that pays by
    the `clock`, "always" wherever it can, "off" never. A `draft` of the same vocabulary guesses better. With the model
    itself, compressed, that is zero-drop mode: nearly the speed of the small one, every word of the large one.

    Raises:
        ModelError: a model of a family that the engine does not know.
        DataError: a cache too small to hold one page, or of a kind that there is not; a way to speculate that there is
            not; a draft of another vocabulary, or one that is not to be asked.
    """

    def __init__(
        self,
        model: "LanguageModel | Ready",
        tokenizer: Any,
        *,
        max_tokens_in_cache: int,
        max_batch: int = 16,
        prefill_chunk: int = 512,
        cache: str = "auto",
        draft: "LanguageModel | Ready | None" = None,
        speculate: str = WHERE_IT_PAYS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_tokens_in_cache < PAGE or max_batch < 1 or prefill_chunk < 1:
            raise DataError(
                f"engine: max_tokens_in_cache={max_tokens_in_cache}, max_batch={max_batch}, "
                f"prefill_chunk={prefill_chunk} must be at least {PAGE}, 1 and 1"
            )
        _check(model, draft, speculate)
        pages = Pages(pages_for(max_tokens_in_cache))
        self.context = min(model.config.max_position_embeddings, pages.total * PAGE)
        self.schedule = Schedule(pages, max_batch=max_batch, chunk=prefill_chunk)
        self._pages = pages
        self._runner = _runner(model, pages.total, cache)
        drafting = (
            None if draft is None else Draft(_runner(draft, pages.total, cache), chunk=prefill_chunk, clock=clock)
        )
        self.speculation = Speculation(self.schedule, draft=drafting, mode=speculate)
        self._clock = clock
        self.read_tokens, self.read_seconds = 0, 0.0  # of prompts, and how long the passes took in which they were read
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

    @property
    def token_bytes(self) -> float:
        """Bytes of the keys and values of a token, in all layers; to be asked after a first step."""
        return self._runner.cache_bytes / (self._pages.total * PAGE)

    def add(self, prompt: SequenceOf[int], sampling: Sampling | None = None) -> Sequence:
        """Prepare a prompt and queue it.

        Raises:
            DataError: an empty prompt, a token outside the vocabulary, more tokens than can ever fit, a grammar that
                cannot be understood.
        """
        sequence = self.prepare(prompt, sampling or Sampling())
        self.enqueue(sequence)
        return sequence

    def prepare(self, prompt: SequenceOf[int], sampling: Sampling, *, owner: str = "", priority: int = 0) -> Sequence:
        """Check a prompt and make its sequence: whose it is, how urgent. Any thread may call it: nothing changes.

        Raises:
            DataError: as `add`.
        """
        return Sequence(
            prompt=tuple(prompt),
            sampling=sampling,
            limit=self._limit(prompt, sampling),
            detokenizer=Detokenizer(partial(self._decode, skip=sampling.skip_special_tokens), sampling.stop),
            random=np.random.default_rng(sampling.seed),
            owner=owner,
            priority=priority,
            constraint=None if sampling.grammar is None else constrain(sampling.grammar, self._spelling),
        )

    def enqueue(self, sequence: Sequence) -> None:
        """Let a prepared sequence wait for its turn."""
        self.schedule.add(sequence)

    def step(self) -> list[Sequence]:
        """One forward pass; return the sequences that got a token, or several, or were only to be read."""
        slices = self.speculation.guess(self.schedule.plan())
        if not slices:
            return []
        begun = self._clock()
        logits = iter(self._runner.forward(slices))
        spent = self._clock() - begun
        if read := sum(piece.count for piece in slices if piece.start < len(piece.sequence.prompt) - 1):
            self.read_tokens += read
            self.read_seconds += spent
        changed = [piece.sequence for piece in slices if piece.completes]
        for piece in slices:
            for _ in piece.read:
                self._read(piece.sequence, next(logits))
            self._advance(piece.sequence, [next(logits) for _ in piece.chosen])
        self.speculation.learn(slices, spent)
        self.schedule.record(slices)
        for sequence in changed:
            if sequence.limit == 0:
                sequence.finish = "length"
            if sequence.finish is not None:
                self.schedule.remove(sequence)
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

    def _decode(self, tokens: list[int], *, skip: bool) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    def _advance(self, sequence: Sequence, logits: SequenceOf[np.ndarray]) -> None:
        """Choose the next token, and the one behind each guess as long as what was chosen is what was guessed."""
        for row, guess in zip_longest(logits, tuple(sequence.guesses)):
            if self._accept(sequence, row) != guess or sequence.finish is not None:
                return

    def _read(self, sequence: Sequence, logits: np.ndarray) -> None:
        """Remember what the model expects in the place of the next token of the prompt."""
        token = sequence.prompt[len(sequence.read) + 1]
        sequence.read.append(among(logits, token, sequence.sampling.prompt_logprobs or 0))

    def _accept(self, sequence: Sequence, logits: np.ndarray) -> int:
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
        return choice.token

    def _limit(self, prompt: SequenceOf[int], sampling: Sampling) -> int:
        room = self.context - len(prompt)
        if not prompt or not all(0 <= token < self.vocabulary for token in prompt):
            raise DataError(f"engine: a prompt is 1 or more tokens from 0 to {self.vocabulary - 1}; give it some text")
        if not all(0 <= token < self.vocabulary for token in (*sampling.stop_tokens, *sampling.logit_bias)):
            raise DataError(f"engine: stop_tokens and logit_bias name tokens; possible are 0 to {self.vocabulary - 1}")
        new = 1 if sampling.max_tokens is None else sampling.max_tokens
        if room < max(new, sampling.min_tokens):
            raise DataError(
                f"engine: {len(prompt)} prompt tokens and {new} new ones exceed the context of {self.context} tokens; "
                "shorten the prompt or max_tokens"
            )
        return room if sampling.max_tokens is None else new


def _runner(model: "LanguageModel | Ready", pages: int, cache: str) -> "Runner | NativeRunner":
    """The fastest there is for the model."""
    if isinstance(model, Ready):
        assert model.pages == pages, "it was put together for another number of pages"
        return NativeRunner(model.passes)

    from lissom.engine.cache import kind_of_cache
    from lissom.engine.decoder import native_runner
    from lissom.engine.graphs import recording
    from lissom.engine.runner import Runner
    from lissom.models.form import Bare

    kind = kind_of_cache(cache, model.config)
    if fast := native_runner(model, pages=pages, cache=kind):
        return fast
    whole: Any = model.whole() if isinstance(model, Bare) else model
    return Runner(whole, pages=pages, cache=kind, record=recording(whole))


def _check(model: "LanguageModel | Ready", draft: "LanguageModel | Ready | None", speculate: str) -> None:
    if speculate not in MODES:
        raise DataError(f"engine: speculate={speculate!r} is not possible; choose {', '.join(MODES)}")
    if draft is None:
        return
    if speculate == NEVER:
        raise DataError("engine: a draft is given, but speculate='off' says not to ask it; leave one of them out")
    if draft.config.vocab_size != model.config.vocab_size:
        raise DataError(
            f"engine: the draft has {draft.config.vocab_size} tokens in its vocabulary, the model "
            f"{model.config.vocab_size}; give one with the same tokens, such as the model compressed"
        )


def _end_tokens(model: "LanguageModel | Ready", tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text, as the generation config and the tokenizer declare them."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if isinstance(token, int))
