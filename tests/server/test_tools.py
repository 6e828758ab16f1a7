"""Tools: calls read from text however it comes, made sure of where they are asked for, and given back."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.server import LanguageService, create_app
from lissom.server.tools import DIALECTS, Call, Dialect, Reader, Tools, read, tools_of

PLACE = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
}
TEMPLATE = """{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}MARK
{% endif %}{% for turn in messages %}{{ turn.role }}: {{ turn.content }}
{% for call in turn.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments.city }}
{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
SAID: list[Any] = [{"role": "user", "content": "Once upon a time"}]
NAMES = ("qwen", "mistral", "llama")
HERMES, MISTRAL, LLAMA = (tools_of(f"tools {one.mark}", {"f": {}, "g": {}}) for one in DIALECTS)
PIECES = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", '{"name": "f", "arguments": {"a": [1]}}', "[", "]", "{", "}"]
PIECES += [" ", "\n", "<tool", "so", '{"name": "h", "arguments": {}}', '{"name": "g", "parameters": {}}', ", "]


@pytest.mark.parametrize(
    ("tools", "text", "said", "calls"),
    [
        (HERMES, 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "I look.", ["f"]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n', "", ["f", "g"]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}}', "", ["f"]),
        (HERMES, 'so <tool_call>{"name": "h"}</tool_call>', 'so <tool_call>{"name": "h"}</tool_call>', []),
        (HERMES, '<tool_call>{"name": ["f"]}</tool_call>', '<tool_call>{"name": ["f"]}</tool_call>', []),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', "", ["f", "g"]),
        (MISTRAL, '[{"name": "f", "arguments": {}}]', "", ["f"]),
        (MISTRAL, "[1, 2]", "[1, 2]", []),
        (LLAMA, '{"name": "f", "parameters": {"a": NaN}}', '{"name": "f", "parameters": {"a": NaN}}', []),
        (LLAMA, ' {"name": "f", "parameters": {"a": 1}}', "", ["f"]),
        (LLAMA, '{"answer": 1}', '{"answer": 1}', []),
        (LLAMA, 'Look: {"name": "f", "parameters": {}}', 'Look: {"name": "f", "parameters": {}}', []),
    ],
)
def test_calls_are_read_and_the_rest_stays_text(tools: Tools, text: str, said: str, calls: list[str]) -> None:
    found = read(tools, text)
    assert (found[0], [call.name for call in found[1]]) == (said, calls)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from([HERMES, MISTRAL, LLAMA]), st.data())
def test_text_is_read_alike_however_it_comes(pieces: list[str], tools: Tools, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    reader, parts = Reader(tools=tools), list[str | Call]()
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += reader.push(text[start:stop])
    parts += reader.finish()
    said, calls = read(tools, text)
    assert "".join(part for part in parts if isinstance(part, str)) == said
    assert [(p.name, p.arguments) for p in parts if isinstance(p, Call)] == [(c.name, c.arguments) for c in calls]
    assert calls or said == text


def test_of_several_templates_the_one_for_tools_counts() -> None:
    several = {"default": "no such thing", "tool_use": "tools <tool_call>"}
    assert tools_of(several, {"f": {}}).dialect is DIALECTS[0]


@pytest.fixture(scope="module")
def client(start: Any, model: Any, tokenizer: Any) -> Iterator[openai.OpenAI]:
    """One model under three names, each with a chat template of another family; and one whose template has no tools."""
    services = []
    for name, dialect in zip((*NAMES, "mute"), (*DIALECTS, Dialect(mark="")), strict=True):
        taught = copy.deepcopy(tokenizer)
        taught.chat_template = TEMPLATE.replace("MARK", dialect.mark)
        services.append(LanguageService(model=model, tokenizer=taught, name=name))
    with start(create_app(services)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.mark.parametrize("name", NAMES)
def test_what_must_be_called_is_called(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": SAID, "tools": [WEATHER, CLOCK], "max_tokens": 900}
    only: Any = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(tool_choice=only, seed=1, n=2, **asked)
    for choice in answer.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            given = json.loads(call.function.arguments)
            assert (call.function.name, given["city"] in {"Rome", "Oslo"}) == ("weather", True)
            assert 1 <= given["days"] <= 9
    whole = client.chat.completions.create(tool_choice="required", seed=1, **asked).choices[0]
    assert {call.function.name for call in whole.message.tool_calls or []} <= {"weather", "clock"}
    with client.chat.completions.stream(tool_choice="required", seed=1, **asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    called, again = (
        [(call.function.name, call.function.arguments) for call in one.message.tool_calls or []]
        for one in (whole, streamed)
    )
    assert called == again != []
    assert streamed.finish_reason == "tool_calls"


def test_who_calls_nothing_speaks(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "qwen", "messages": SAID, "max_tokens": 12, "temperature": 0, "logprobs": True}
    offered = client.chat.completions.create(tools=[CLOCK], **asked)
    assert offered.choices[0].message.tool_calls is None
    assert offered.choices[0].message.content
    chunks = list(client.chat.completions.create(tools=[CLOCK], stream=True, **asked))
    deltas = [chunk.choices[0] for chunk in chunks]
    assert "".join(one.delta.content or "" for one in deltas) == offered.choices[0].message.content
    assert sum(len(one.logprobs.content or []) for one in deltas if one.logprobs) == 12
    silent = client.chat.completions.create(tools=[CLOCK], tool_choice="none", **asked)
    plain = client.chat.completions.create(**asked)
    assert silent.choices[0].message.content == plain.choices[0].message.content


def test_calls_and_what_they_brought_are_given_back(client: openai.OpenAI) -> None:
    call = {"id": "123456789", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    history = [
        *SAID,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "123456789", "content": "sunny"},
    ]
    usage = client.chat.completions.create(model="qwen", messages=history, max_tokens=1).usage
    text = "user: Once upon a time\nassistant: \nweather Rome\ntool: sunny\nassistant:"
    found = client.post("/../tokenize", body={"model": "qwen", "prompt": text}, cast_to=httpx.Response)
    assert usage is not None
    assert usage.prompt_tokens == json.loads(found.text)["count"]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "mute"}, "the model's chat template knows none"),
        ({"tools": [CLOCK, CLOCK]}, "two of them have the same name"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "'h' is none of the tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "give one"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "tool_call_id goes with the role tool"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "arguments: Invalid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said(client: openai.OpenAI, body: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"model": "qwen", "messages": SAID, "tools": [CLOCK], "max_tokens": 1}
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**{**asked, **body})
