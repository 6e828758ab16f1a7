"""Offsets against the definition: how long the text of all tokens before is."""

from functools import partial
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.engine.text import BROKEN
from lissom.server.offsets import Offsets, of_prompt

TEXTS = st.text(st.sampled_from("ab né世\N{GRINNING FACE}\n"), max_size=12)


@settings(max_examples=50)
@given(text=TEXTS, behind=st.integers(0, 9), data=st.data())
def test_a_token_stands_behind_the_whole_characters_before_it(
    tokenizer: Any, text: str, behind: int, data: st.DataObject
) -> None:
    tokens, decode = tokenizer(text).input_ids, partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    cut = data.draw(st.integers(0, len(tokens)))
    offsets = Offsets(decode, behind)
    found = offsets.push(tokens[:cut]) + offsets.push(tokens[cut:])
    whole = [len(decode(tokens[:k]).rstrip(BROKEN)) for k in range(len(tokens))]
    assert found == [behind + place for place in whole]
    assert offsets.end == behind + len(text)


def test_a_prompt_shows_its_special_tokens_or_not(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    tokens = [end, *tokenizer("Once upon").input_ids]
    ways = [partial(tokenizer.decode, skip_special_tokens=skip) for skip in (False, True)]
    hidden = of_prompt(tokens, "Once upon", ways)
    shown = of_prompt(tokens, tokenizer.eos_token + "Once upon", ways)
    assert hidden[:2] == [0, 0]
    assert shown == [0, *(len(tokenizer.eos_token) + place for place in hidden[1:])]
    assert of_prompt(tokens, "Onc", ways) == [min(place, 3) for place in hidden]  # of a text that is none of the two


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_are_places_in_the_text(client: openai.OpenAI, tokenizer: Any, stream: bool, echo: bool) -> None:
    """From each place on there stands the token that is told for it, if it is a whole one."""
    for prompt in ("Once upon a time, né \N{GRINNING FACE}</s>The", tokenizer("Once upon").input_ids):
        answer = client.completions.create(
            prompt=prompt, logprobs=0, echo=echo, stream=stream, model="stories", temperature=0, max_tokens=24
        )
        choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
        text, told = "".join(choice.text for choice in choices), [one.logprobs for one in choices if one.logprobs]
        tokens = [token for one in told for token in one.tokens or []]
        places = [place for one in told for place in one.text_offset or []]
        assert len(tokens) == len(places)
        assert (places[0], places) == (0, sorted(places))
        assert all(text.startswith(token, at) for token, at in zip(tokens, places, strict=True) if BROKEN not in token)
        assert (places[-1] < len(text), BROKEN in "".join(tokens)) == (True, echo and isinstance(prompt, str))
