"""What is written down of an answer, asked over a socket: of a prompt alone, and of special tokens."""

from typing import Any

import openai
import pytest

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"model": "stories", "temperature": 0}


def test_a_prompt_alone_is_scored_without_writing(client: openai.OpenAI, tokenizer: Any) -> None:
    asked: dict[str, Any] = {"model": "stories", "prompt": ["Once upon a time", "The dog"], "logprobs": 2, "echo": True}
    read = client.completions.create(max_tokens=0, **asked)
    longer = client.completions.create(max_tokens=1, **asked)
    for choice, other, text in zip(read.choices, longer.choices, asked["prompt"], strict=True):
        assert (choice.text, choice.finish_reason) == (text, "length")
        assert choice.logprobs is not None
        assert other.logprobs is not None
        assert choice.logprobs.tokens == [tokenizer.decode([token]) for token in tokenizer(text).input_ids]
        assert choice.logprobs.tokens == (other.logprobs.tokens or [])[:-1]
        first, *found = choice.logprobs.token_logprobs or []
        assert first is None
        assert found == pytest.approx((other.logprobs.token_logprobs or [])[1:-1], abs=1e-5)
    assert read.usage is not None
    assert read.usage.completion_tokens == 0
    streamed = list(client.completions.create(max_tokens=0, stream=True, **{**asked, "prompt": "The dog"}))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "The dog"
    assert streamed[-1].choices[0].finish_reason == "length"
    plain = client.completions.create(model="stories", prompt="The dog", max_tokens=0, echo=True)
    assert (plain.choices[0].text, plain.choices[0].logprobs) == ("The dog", None)
    more = {"prompt_logprobs": 0}
    scored = client.completions.create(model="stories", prompt="The dog", max_tokens=0, extra_body=more).choices[0]
    assert (scored.text, len(scored.model_dump()["prompt_logprobs"])) == ("", len(tokenizer("The dog").input_ids))


def test_special_tokens_are_shown_where_they_are_asked_for(client: openai.OpenAI, tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    asked: dict[str, Any] = {"logit_bias": {str(end): 100}, **GREEDY, "max_tokens": 3}
    for skip, text in ((None, ""), (True, ""), (False, 3 * tokenizer.eos_token)):
        more = {"ignore_eos": True} if skip is None else {"ignore_eos": True, "skip_special_tokens": skip}
        choice = client.completions.create(prompt=PROMPT, logprobs=0, extra_body=more, **asked).choices[0]
        assert choice.text == text
        assert choice.logprobs is not None
        assert choice.logprobs.text_offset == [0, len(text) // 3, 2 * len(text) // 3]
        messages: Any = [{"role": "user", "content": PROMPT}]
        chat = client.chat.completions.create(messages=messages, extra_body=more, **asked)
        assert chat.choices[0].message.content == text
    ended = client.completions.create(prompt=PROMPT, extra_body={"skip_special_tokens": False}, **asked).choices[0]
    assert (ended.text, ended.finish_reason) == ("", "stop")  # what ends a text is no part of it
