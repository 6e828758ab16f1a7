"""The OpenAI API, asked by the `openai` client over a socket, against the engine asked directly."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from lissom.engine import Engine, Sampling, Sequence

PROMPT = "Once upon a time"
SPOKEN = [{"role": "user", "content": PROMPT}]
GREEDY: dict[str, Any] = {"model": "stories", "temperature": 0, "max_tokens": 24}


def test_models_carry_their_evidence(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == "stories"
    assert client.models.retrieve("stories").model_dump()["evidence"] == {"verdict": "PASS", "max_drop": 0.01}


def test_a_completion(client: openai.OpenAI, tokenizer: Any, expected: Sequence) -> None:
    answer = client.completions.create(prompt=PROMPT, **GREEDY)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    prompt = len(tokenizer(PROMPT).input_ids)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        24,
        prompt + 24,
    )


def test_a_completion_of_tokens_equals_one_of_text(client: openai.OpenAI, tokenizer: Any, expected: Sequence) -> None:
    tokens = tokenizer(PROMPT).input_ids
    assert client.completions.create(prompt=tokens, **GREEDY).choices[0].text == expected.text
    answers = client.completions.create(prompt=[tokens, tokens], **GREEDY).choices
    assert [choice.text for choice in answers] == [expected.text] * 2


def test_a_streamed_completion(client: openai.OpenAI, expected: Sequence) -> None:
    chunks = list(
        client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_may_be_told_all_the_time(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}  # as guidellm asks for it
    chunks = list(client.completions.create(prompt=PROMPT, stream=True, stream_options=options, **GREEDY))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 24)


def test_a_chat(client: openai.OpenAI, expected: Sequence) -> None:
    answer = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], **GREEDY)
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", expected.text)


def test_a_streamed_chat_begins_with_the_role_and_ends_with_reason_and_usage(
    client: openai.OpenAI, expected: Sequence
) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_a_stream_is_events_that_end_with_done(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": PROMPT, "stream": True, **GREEDY})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-1])


def test_log_probabilities(client: openai.OpenAI, tokenizer: Any, expected: Sequence) -> None:
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": PROMPT}], logprobs=True, top_logprobs=2, **GREEDY
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert [entry.logprob for entry in content] == pytest.approx([c.logprob for c in expected.choices], abs=1e-4)
    assert [len(entry.top_logprobs) for entry in content] == [2] * 24
    plain = client.completions.create(prompt=PROMPT, logprobs=1, **GREEDY).choices[0].logprobs
    assert plain is not None
    assert plain.tokens == [tokenizer.decode([token]) for token in expected.generated]


def test_n_choices_of_a_seed_differ_and_come_again(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "stories", "prompt": PROMPT, "n": 3, "seed": 5, "max_tokens": 12}
    texts = [[choice.text for choice in client.completions.create(**asked).choices] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_a_stop_string_is_not_shown(client: openai.OpenAI, expected: Sequence) -> None:
    stop = expected.text[10:14]
    for stream in (False, True):
        answer = client.completions.create(prompt=PROMPT, stop=[stop], stream=stream, **GREEDY)
        choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
        assert "".join(choice.text for choice in choices) == expected.text[: expected.text.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_what_changes_scores_and_ends_texts_is_heard(
    client: openai.OpenAI, model: Any, tokenizer: Any, expected: Sequence
) -> None:
    """The oracle is the engine, asked for the same in its own words."""
    end, best = expected.generated[9], expected.generated[0]
    standard: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {str(best): -100}}
    beyond = {"repetition_penalty": 1.3, "stop_token_ids": [end], "ignore_eos": True}
    sampling = Sampling(
        temperature=0.0,
        max_tokens=24,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        logit_bias={best: -100.0},
        repetition_penalty=1.3,
        stop_tokens=(end,),
        ignore_eos=True,
    )
    engine = Engine(model, tokenizer, max_tokens_in_cache=1024)
    wanted = engine.generate([tokenizer(PROMPT).input_ids], sampling)[0]
    assert wanted.text != expected.text
    completion = client.completions.create(prompt=PROMPT, **GREEDY, **standard, extra_body=beyond)
    messages: Any = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(messages=messages, n=2, **GREEDY, **standard, extra_body=beyond)
    texts = [completion.choices[0].text, *[choice.message.content for choice in chat.choices]]
    assert texts == [wanted.text] * 3
    alone = client.completions.create(prompt=PROMPT, **GREEDY, extra_body={"stop_token_ids": [end]}).choices[0]
    shown = expected.generated[: expected.generated.index(end)]
    assert (alone.text, alone.finish_reason) == (tokenizer.decode(shown), "stop")


def test_a_chat_answers_in_the_format_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"tame": {"type": "boolean"}}, "required": ["tame"]}
    strict = {**schema, "additionalProperties": False}
    asked: dict[str, Any] = {"model": "stories", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 200}
    named: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": strict, "strict": True}}
    answer = client.chat.completions.create(response_format=named, n=2, **asked)
    assert all(json.loads(choice.message.content or "").keys() == {"tame"} for choice in answer.choices)
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    free = client.chat.completions.create(response_format={"type": "text"}, seed=1, **asked)
    assert free.choices[0].message.content == client.chat.completions.create(seed=1, **asked).choices[0].message.content
    text = client.chat.completions.create(response_format={"type": "json_object"}, **{**asked, "max_tokens": 2})
    assert (text.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[ab]{4}"}, "[ab]{4}"),
        ({"choice": ["red", "blue"]}, "red|blue"),
        ({"grammar": 'root ::= ("ab" | "c") "!"'}, "(ab|c)!"),
        ({"json": {"enum": [1, 2]}}, "[12]"),
        ({"json": '{"enum": [1, 2]}'}, "[12]"),
    ],
)
def test_structured_outputs_are_kept(client: openai.OpenAI, asked: dict[str, Any], pattern: str) -> None:
    body = {"structured_outputs": asked}
    answer = client.completions.create(model="stories", prompt=PROMPT, max_tokens=30, extra_body=body)
    assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_requests_at_the_same_time_do_not_disturb_each_other(client: openai.OpenAI, expected: Sequence) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.completions.create(prompt=PROMPT, **GREEDY), range(6)))
    assert {answer.choices[0].text for answer in answers} == {expected.text}


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"model": "stories"}, 400, "prompt", "prompt: Field required"),
        ({"model": "stories", "prompt": 5}, 400, "prompt", "valid string"),
        (
            {"model": "stories", "prompt": "a", "max_tokens": 0},
            400,
            None,
            "max_tokens: with 0 there is nothing to answer",
        ),
        ({"model": "stories", "prompt": "a", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"model": "stories", "prompt": "a", "max_tokens": "9"}, 400, "max_tokens", "valid integer"),
        ({"model": "stories", "prompt": "a", "temperature": 9}, 400, "temperature", "less than or equal to 2"),
        ({"model": "stories", "prompt": "a", "n": 1000}, 400, "n", "less than or equal to 16"),
        ({"model": "stories", "prompt": ["a"] * 9, "n": 9}, 400, None, "more than 16 choices"),
        ({"model": "stories", "prompt": "a", "beams": 4}, 400, "beams", "unknown field 'beams'"),
        (
            {"model": "stories", "prompt": "a", "presence_penalty": 3},
            400,
            "presence_penalty",
            "less than or equal to 2",
        ),
        ({"model": "stories", "prompt": "a", "repetition_penalty": 0}, 400, "repetition_penalty", "equal to 0.01"),
        ({"model": "stories", "prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias", "match pattern"),
        ({"model": "stories", "prompt": "a", "logit_bias": {"5": 101}}, 400, "logit_bias", "less than or equal to 100"),
        ({"model": "stories", "prompt": "a", "logit_bias": {"2048": 1}}, 400, None, "possible are 0 to 2047"),
        ({"model": "stories", "prompt": "a", "stop_token_ids": [2048]}, 400, None, "possible are 0 to 2047"),
        ({"model": "stories", "prompt": "a", "structured_outputs": {}}, 400, "structured_outputs", "give one of json"),
        ({"model": "stories", "prompt": "a", "structured_outputs": {"xml": "a"}}, 400, None, "unknown field"),
        ({"model": "stories", "prompt": "a", "structured_outputs": {"regex": "(["}}, 400, None, "unclosed character"),
        (
            {"model": "stories", "prompt": "a", "response_format": {"type": "xml"}},
            400,
            "response_format",
            "json_schema",
        ),
        ({"model": "stories", "prompt": "a", "response_format": {"type": "json_schema"}}, 400, None, "Field required"),
        (
            {
                "model": "stories",
                "prompt": "a",
                "response_format": {"type": "json_object"},
                "structured_outputs": {"regex": "a"},
            },
            400,
            None,
            "give one",
        ),
        ({"model": "stories", "prompt": "a", "stop": ""}, 400, "stop", "at least 1 character"),
        ({"model": "stories", "prompt": [99999]}, 400, None, "from 0 to 2047"),
        ({"model": "stories", "prompt": "a " * 3000}, 400, None, "exceed the context of 1024"),
        ({"model": "stories", "prompt": "a", "max_tokens": 5000}, 400, None, "exceed the context of 1024"),
        ({"model": "stories", "prompt": "\ud800"}, 400, "prompt", "unicode"),
        ({"model": "stories", "prompt": "a", "\ud800": 1}, 400, None, "unicode"),
        ({"model": "other", "prompt": "a"}, 404, None, "possible are stories"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:24],
)
def test_what_is_wrong_is_said_in_the_shape_of_the_api(
    http: httpx.Client, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/completions", content=json.dumps(body), headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff", b"[" * 100_000, b'{"model": NaN}'])
def test_a_malformed_body_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_route_or_a_method_that_does_not_exist(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert http.get("/v1/completions").status_code == 405
    assert http.get("/docs").status_code == http.get("/openapi.json").status_code == 404


def test_the_client_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="exceed the context"):
        client.completions.create(prompt="a " * 3000, **GREEDY)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_echoed_prompt_has_log_probabilities_too(client: openai.OpenAI, tokenizer: Any, model: Any) -> None:
    prompt = list(tokenizer("Once upon a time there was").input_ids)
    with torch.no_grad():
        rows = model(torch.tensor([prompt])).logits[0].double().log_softmax(-1)
    asked = {"model": "stories", "max_tokens": 2, "logprobs": 1, "echo": True, "temperature": 0}
    for given in ([prompt, prompt[:4]], ["Once upon a time there was", "Once upon"]):
        answer = client.completions.create(prompt=given, **asked)  # type: ignore[call-overload]
        for choice, one in zip(answer.choices, given, strict=True):
            told, tokens = choice.logprobs, one if isinstance(one, list) else tokenizer(one).input_ids
            assert choice.text.startswith(tokenizer.decode(tokens) if isinstance(one, list) else one)
            assert len(told.tokens) == len(tokens) + 2
            assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
            found = torch.tensor(told.token_logprobs[1 : len(tokens)])
            true = torch.stack([rows[k, token] for k, token in enumerate(tokens[1:])]).float()
            torch.testing.assert_close(found, true, rtol=0, atol=1e-3)


def test_an_echo_is_streamed_before_the_text(client: openai.OpenAI) -> None:
    asked = {"model": "stories", "prompt": ["Once upon", "The dog"], "n": 2, "max_tokens": 3, "seed": 1}
    whole = client.completions.create(echo=True, **asked)  # type: ignore[call-overload]
    texts = ["", "", "", ""]
    for chunk in client.completions.create(echo=True, stream=True, **asked):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    plain = client.completions.create(**asked)  # type: ignore[call-overload]
    prompts = ["Once upon", "Once upon", "The dog", "The dog"]
    assert texts == [prompt + choice.text for prompt, choice in zip(prompts, plain.choices, strict=True)]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_are_told_as_vllm_does(http: httpx.Client, tokenizer: Any, route: str) -> None:
    given = {"prompt": "Once upon a time"} if route == "/v1/completions" else {"messages": SPOKEN}
    asked = {"model": "stories", **given, "max_tokens": 1, "prompt_logprobs": 2}
    (choice,) = http.post(route, json=asked).json()["choices"]
    first, *others = choice["prompt_logprobs"]
    tokens = tokenizer("Once upon a time").input_ids
    assert first is None
    for token, told in zip(tokens[1:], others, strict=True):
        assert told[str(token)]["decoded_token"] == tokenizer.decode([token])
        assert sorted(one["rank"] for one in told.values() if one["rank"]) == [1, 2]
    answer = http.post(route, json={**asked, "stream": True})
    assert (answer.status_code, "prompt_logprobs" in answer.json()["error"]["message"]) == (400, True)
