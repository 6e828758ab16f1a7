"""The Messages API, asked by the `anthropic` client over a socket, against the engine asked directly."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from lissom.engine import Sequence

PROMPT = "Once upon a time"
ASKED: dict[str, Any] = {"model": "stories", "max_tokens": 24}
GREEDY: dict[str, Any] = {**ASKED, "extra_body": {"temperature": 0}}  # which the client does not know any more
SAID: list[Any] = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as one:
        yield one


def texts(answer: anthropic.types.Message) -> list[str]:
    return [part.text for part in answer.content if part.type == "text"]


def test_a_message(client: anthropic.Anthropic, tokenizer: Any, expected: Sequence) -> None:
    answer = client.messages.create(messages=SAID, **GREEDY)
    assert (answer.role, texts(answer)) == ("assistant", [expected.text])
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(tokenizer(PROMPT).input_ids), 24)


def test_a_streamed_message(client: anthropic.Anthropic, expected: Sequence) -> None:
    with client.messages.stream(messages=SAID, **GREEDY) as stream:
        assert "".join(stream.text_stream) == expected.text
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 24)
    kinds = [one.type for one in client.messages.create(messages=SAID, stream=True, **GREEDY)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stop_sequence_is_named(client: anthropic.Anthropic, expected: Sequence) -> None:
    stop = expected.text[10:14]
    whole = client.messages.create(messages=SAID, stop_sequences=["never said", stop], **GREEDY)
    with client.messages.stream(messages=SAID, stop_sequences=["never said", stop], **GREEDY) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
        assert texts(answer) == [expected.text[: expected.text.index(stop)]]


def test_tokens_are_counted_as_they_are_read(client: anthropic.Anthropic, tokenizer: Any) -> None:
    asked: dict[str, Any] = {"system": [{"type": "text", "text": "Be brief."}], "messages": SAID}
    counted = client.messages.count_tokens(model="stories", **asked).input_tokens
    assert counted == client.messages.create(**asked, **GREEDY).usage.input_tokens
    assert counted == len(tokenizer(f"Be brief.\n{PROMPT}").input_ids)


def test_a_message_in_the_format_that_is_asked_for(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"tame": {"type": "boolean"}}, "required": ["tame"]}
    form: Any = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    answer = client.messages.create(model="stories", messages=SAID, max_tokens=200, output_config=form)
    assert json.loads(texts(answer)[0]).keys() == {"tame"}
    assert answer.stop_reason == "end_turn"


def test_the_assistant_goes_on_where_it_was(talking: httpx.Client) -> None:
    """A template writes a turn down; one of the assistant that comes last is not ended."""
    begun = [*SAID, {"role": "assistant", "content": "There was"}]
    counted = talking.post("/v1/messages/count_tokens", json={"model": "stories", "messages": begun}).json()
    text = talking.post("/tokenize", json={"model": "stories", "prompt": f"user: {PROMPT}.\nassistant: There was"})
    assert counted == {"input_tokens": text.json()["count"]}


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens: Input should be a valid integer"),
        ({"tools": [{"name": "look"}]}, 400, "invalid_request_error", "tools"),
        ({"beams": 4}, 400, "invalid_request_error", "unknown field 'beams'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, 400, "invalid_request_error", "thinking"),
        ({"messages": []}, 400, "invalid_request_error", "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error", "content"),
        ({"messages": [{"role": "user", "content": "a " * 3000}]}, 400, "invalid_request_error", "context of 1024"),
        ({"model": "other"}, 404, "not_found_error", "possible are stories"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:24],
)
def test_what_is_wrong_is_said_in_the_shape_of_the_api(
    http: httpx.Client, body: dict[str, Any], status: int, kind: str, message: str
) -> None:
    answer = http.post("/v1/messages", json={**ASKED, "messages": SAID, **body})
    error = answer.json()
    assert (answer.status_code, error["type"], error["error"]["type"]) == (status, "error", kind)
    assert message in error["error"]["message"]
