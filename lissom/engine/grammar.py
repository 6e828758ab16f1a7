"""Structured output: which tokens may come next, so that the text becomes what a grammar says.

The masks are those of llguidance (github.com/guidance-ai/llguidance), which `pip install 'lissom[structured]'` brings.

Shapes: v vocabulary.
"""

from collections.abc import Collection
from copy import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lissom.engine.sequence import Grammar
from lissom.errors import DataError
from lissom.resident import give_back

if TYPE_CHECKING:
    from jaxtyping import Bool
    from llguidance import LLMatcher, LLTokenizer

BLANKS = " ?"  # between the parts of JSON; some models would write them for ever


class Constraint:
    """A text in the making that becomes what its grammar says."""

    def __init__(self, matcher: "LLMatcher", vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> "Bool[np.ndarray, ' v']":
        """The tokens that may come next; an end token where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def push(self, token: int) -> Literal["stop", "length"] | None:
        """Take a token; "stop" if nothing can follow, "length" if the text is not complete but cannot go on.

        The latter happens where what the grammar asks for exceeds the limits of the library; all that it allows then is
        an end token.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            return "length"
        return "stop" if self._matcher.is_stopped() else None


def spelling(tokenizer: Any, vocabulary: int, end: Collection[int]) -> "LLTokenizer":
    """How the tokens of a model are spelled and which of them end a text, as `constrain` wants it.

    Raises:
        DataError: llguidance is not installed, or the tokenizer is none that it can read.
    """
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise DataError("grammar: llguidance is not installed; pip install 'lissom[structured]'") from error
    from lissom.models.tokenizer import unpadded

    ends = [token for token in sorted(end) if token < len(tokenizer)]
    try:
        made = LLTokenizer(unpadded(copy(tokenizer.backend_tokenizer)).to_str(), n_vocab=vocabulary, eos_token=ends)
    except (AttributeError, ValueError) as error:  # a tokenizer without a backend is written in Python
        raise DataError(f"grammar: the tokenizer cannot be used: {error}; leave the grammar out") from error
    give_back()  # the vocabulary was written down and read again
    return made


def constrain(grammar: Grammar, words: "LLTokenizer") -> Constraint:
    """The constraint of a text that has not begun.

    Raises:
        DataError: a grammar that cannot be understood.
    """
    from llguidance import LLMatcher, grammar_from

    try:
        if grammar.kind == "json":
            definition = LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": BLANKS})
        else:
            definition = grammar_from(grammar.kind, grammar.text)  # type: ignore[arg-type]  # one of KINDS
        matcher = LLMatcher(words, definition, log_level=0)
        fault = matcher.get_error()
    except ValueError as error:
        fault = str(error)
    if fault:
        raise DataError(f"grammar: this {grammar.kind} cannot be understood: {' '.join(fault.split())}")
    return Constraint(matcher, words.vocab_size)
