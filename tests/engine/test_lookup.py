"""The index against a search through the text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lissom.engine.lookup import RUNS, Lookup
from lissom.engine.sequence import Choice, Sampling, Sequence
from lissom.engine.text import Detokenizer


def sequence(prompt: list[int]) -> Sequence:
    return Sequence(
        prompt=tuple(prompt),
        sampling=Sampling(),
        limit=1000,
        detokenizer=Detokenizer(lambda tokens: "x" * len(tokens)),
        random=np.random.default_rng(0),
    )


def searched(tokens: list[int], most: int) -> list[int]:
    """The oracle: for each length of a run, from the end of the text to its beginning."""
    for run in RUNS:
        for end in range(len(tokens) - 1, run - 1, -1):
            if tokens[end - run : end] == tokens[-run:]:
                known = tokens[end:]
                return [known[at % len(known)] for at in range(most)]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(0, 2), max_size=30), st.data())
def test_the_index_finds_what_a_search_finds(prompt: list[int], later: list[int], data: st.DataObject) -> None:
    one, lookup = sequence(prompt), Lookup()
    for token in later:
        if data.draw(st.booleans()):  # several tokens may have come since it was asked last
            most = data.draw(st.integers(1, 9))
            assert lookup.guesses(one, most) == searched([*prompt, *one.generated], most)
        one.accept(Choice(token=token, logprob=0.0), end=())
    assert lookup.guesses(one, 5) == searched([*prompt, *later], 5)


def test_a_text_that_repeats_itself_goes_on_so() -> None:
    assert Lookup().guesses(sequence([9, 1, 2, 3, 1, 2, 3]), 7) == [1, 2, 3, 1, 2, 3, 1]
    assert Lookup().guesses(sequence([1, 2, 3, 4]), 7) == []
