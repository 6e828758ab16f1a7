"""One sequence: a prompt, how its continuation is sampled, and how far it has come."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lissom.engine.text import Detokenizer
from lissom.errors import DataError

if TYPE_CHECKING:  # NumPy is in the way of a server, which only says what it wants
    import numpy as np

    from lissom.engine.grammar import Constraint

Finish = Literal["stop", "length", "cancelled"]
KINDS = ("json", "regex", "grammar", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What a text must be.

    `text` is a JSON schema ("json"), a regular expression ("regex"), a grammar as Lark or GBNF write them ("grammar"),
    or a JSON list of the possible texts ("choice").

    Raises:
        DataError: a kind that there is not.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"grammar: {self.kind!r} is no kind of grammar; choose {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    `temperature` 0 takes the most probable token. The filters apply in the order top_k, top_p, min_p. Equal seeds
    give equal draws. `max_tokens` None means up to the end of the context; with 0 the prompt is read, and that is all.
    `logprobs` asks for that many alternatives beside the log-probability of the chosen token; they are the model's own,
    before all that follows. So are `prompt_logprobs`, of the tokens of the prompt; its beginning is then read anew,
    whatever of it is in the cache.

    `repetition_penalty` divides the score of every token of prompt and continuation, `presence_penalty` and
    `frequency_penalty` lower that of every token of the continuation, once or as often as it came, and `logit_bias`
    adds to the scores of single tokens; all this before temperature and filters. `stop` strings and `stop_tokens` end
    the text and are not part of it; so do the model's own end tokens, unless `ignore_eos`. Special tokens that end
    nothing are no part of the text either, unless `skip_special_tokens` is false. With a `grammar` the text becomes
    what that says, and ends where it may, at the latest where nothing can follow.

    Raises:
        DataError: a value out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 10)
        _within("top_p", self.top_p, 0, 1)
        _within("top_k", self.top_k, 0, None)
        _within("min_p", self.min_p, 0, 1)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 0, None)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias of token {token}", bias, -100, 100)
        if self.seed is not None:
            _within("seed", self.seed, 0, None)
        for name in ("logprobs", "prompt_logprobs"):
            if (alternatives := getattr(self, name)) is not None:
                _within(name, alternatives, 0, None)
        if "" in self.stop:
            raise DataError("sampling: stop holds an empty string, which would stop at once; leave it out")
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            raise DataError("sampling: a grammar says where the text ends; leave ignore_eos and min_tokens out")

    @property
    def adjusts(self) -> bool:
        """Whether the scores of tokens are changed before one is chosen."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.logit_bias)

    def ends(self, usual: frozenset[int]) -> frozenset[int]:
        """The tokens that end the text, of those that usually do and those asked for."""
        return frozenset(self.stop_tokens) | (frozenset() if self.ignore_eos else usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chosen token, its log-probability, and the most probable tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A prompt and what has been generated after it.

    `cached` counts the leading tokens whose keys and values lie in `pages`; it falls back to 0 when the sequence has
    to give its pages up, and the tokens are then run again, but for those whose pages are still there. `keys` are
    those of its full pages, as far as they have been asked for. `text` is what may be shown: whole characters, and no
    part of a stop string. `guesses` are tokens that may follow: they are run with what is known, and forgotten when
    the pass has told which of them do follow. `drafted` counts the leading tokens that a draft has cached; `reused`, of
    the prompt, those that were cached already when the sequence came. `read` are the tokens of the prompt from the
    second on, with what the model expected in their place, where that is asked for. Of those that wait the lower
    `priority` comes first, and the `owner` for whom less has been done; one that has `begun` to run, before all others.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    detokenizer: Detokenizer
    random: "np.random.Generator"
    owner: str = ""
    priority: int = 0
    begun: bool = False
    constraint: "Constraint | None" = None
    generated: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    read: list[Choice] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    cached: int = 0
    guesses: list[int] = field(default_factory=list)
    drafted: int = 0
    reused: int = 0
    text: str = ""
    finish: Finish | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and continuation."""
        return len(self.prompt) + len(self.generated)

    @property
    def pending(self) -> int:
        """Tokens that have not been run through the model yet."""
        return self.length - self.cached

    @property
    def reading(self) -> bool:
        """Whether the model has yet to say what it expects in the place of some token of the prompt."""
        return self.sampling.prompt_logprobs is not None and len(self.read) < len(self.prompt) - 1

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens `start` up to `stop` of prompt, continuation and guesses."""
        found, begin = list[int](), 0
        for part in (self.prompt, self.generated, self.guesses):
            found += part[max(start - begin, 0) : max(stop - begin, 0)]
            begin += len(part)
        return found

    def accept(self, choice: Choice, end: Collection[int]) -> None:
        """Take a chosen token, release the text that has become certain, and notice the end."""
        self.generated.append(choice.token)
        if self.sampling.logprobs is not None:
            self.choices.append(choice)
        ended = None if self.constraint is None else self.constraint.push(choice.token)
        if choice.token in end:
            self._close(ended or "stop")
            return
        armed = len(self.generated) >= self.sampling.min_tokens
        self.text += self.detokenizer.push(choice.token, armed=armed)
        if self.detokenizer.stopped:
            self.finish = "stop"
        elif ended or len(self.generated) >= self.limit:
            self._close(ended or "length")

    def _close(self, finish: Finish) -> None:
        self.text += self.detokenizer.flush()
        self.finish = "stop" if self.detokenizer.stopped else finish


def _within(name: str, value: float, low: float, high: float | None) -> None:
    """`not (low <= value)` rather than `value < low`, so that NaN is refused as well."""
    if not (low <= value and (high is None or value <= high)):
        possible = f"at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"sampling: {name}={value} must be {possible}")
