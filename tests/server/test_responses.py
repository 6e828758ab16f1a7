"""The Responses API, asked by the `openai` client over a socket, against the engine asked directly."""

import json
from typing import Any

import httpx
import openai
import pytest

from lissom.engine import Sequence

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"model": "stories", "temperature": 0, "max_output_tokens": 24}


def test_a_response(client: openai.OpenAI, tokenizer: Any, expected: Sequence) -> None:
    answer = client.responses.create(input=PROMPT, **GREEDY)
    assert (answer.output_text, answer.status) == (expected.text, "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    read = len(tokenizer(PROMPT).input_ids)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (read, 24, read + 24)


def test_a_streamed_response(client: openai.OpenAI, expected: Sequence) -> None:
    events = list(client.responses.create(input=PROMPT, stream=True, **GREEDY))
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type.removeprefix("response.") for one in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == expected.text


def test_an_answer_can_be_given_back(client: openai.OpenAI, tokenizer: Any, expected: Sequence) -> None:
    first = client.responses.create(input=PROMPT, **GREEDY)
    history: Any = [{"role": "user", "content": PROMPT}, *(one.model_dump() for one in first.output)]
    more: Any = [{"role": "user", "content": [{"type": "input_text", "text": "And then?"}]}]
    answer = client.responses.create(input=history + more, instructions="Be brief.", **GREEDY)
    whole = f"Be brief.\n{PROMPT}\n{expected.text}\nAnd then?"
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(tokenizer(whole).input_ids)
    assert (
        answer.output_text
        == client.completions.create(model="stories", prompt=whole, temperature=0, max_tokens=24).choices[0].text
    )


def test_a_response_in_the_format_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"tame": {"type": "boolean"}}, "required": ["tame"]}
    named: Any = {"type": "json_schema", "name": "pet", "schema": {**schema, "additionalProperties": False}}
    answer = client.responses.create(model="stories", input=PROMPT, max_output_tokens=200, text={"format": named})
    assert json.loads(answer.output_text).keys() == {"tame"}
    assert answer.status == "completed"
    with client.responses.stream(model="stories", input=PROMPT, text={"format": named}) as stream:
        assert json.loads(stream.get_final_response().output_text).keys() == {"tame"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input"),
        ({"beams": 4}, "beams"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_done_is_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/responses", json={**GREEDY, "input": PROMPT, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
