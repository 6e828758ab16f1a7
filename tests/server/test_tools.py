"""Tools: calls read from text however it comes, made sure of where they are asked for, and given back."""

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.server import LanguageService, create_app
from lissom.server.messages import Said
from lissom.server.responses import Reply
from lissom.server.responses_wire import ResponsesRequest
from lissom.server.tools import DIALECTS, Call, Dialect, Reader, Tools, read, tools_of
from lissom.server.worker import Piece

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
HELD: dict[str, Any] = {"type": "function", "function": {**CLOCK["function"], "strict": True}}
SAID: list[Any] = [{"role": "user", "content": "Once upon a time"}]
NAMES = ("qwen", "mistral", "llama")
HERMES, MISTRAL, LLAMA = (
    tools_of(SimpleNamespace(chat_template=f"tools {one.mark}"), {"f": {}, "g": {}}) for one in DIALECTS
)
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
    assert tools_of(SimpleNamespace(chat_template=several), {"f": {}}).dialect is DIALECTS[0]


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


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_a_single_call_is_a_single_call(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": SAID, "tools": [WEATHER, CLOCK], "max_tokens": 900}
    for seed in range(3):
        answer = client.chat.completions.create(
            tool_choice="required", parallel_tool_calls=False, seed=seed, **asked
        ).choices[0]
        assert (answer.finish_reason, len(answer.message.tool_calls or [])) == ("tool_calls", 1)


def test_strict_tools_are_held_to_their_schemas_where_a_call_is_certain(client: openai.OpenAI) -> None:
    strict: dict[str, Any] = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    asked: dict[str, Any] = {"model": "qwen", "messages": SAID, "tools": [strict], "max_tokens": 900}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(tool_choice=choice, seed=2, **asked)
        plain = client.chat.completions.create(tool_choice=choice, seed=2, **{**asked, "tools": [WEATHER]})
        calls = [one.choices[0].message.tool_calls or [] for one in (answer, plain)]
        assert [call.function.arguments for call in calls[0]] == [call.function.arguments for call in calls[1]] != []
        assert all(json.loads(call.function.arguments).keys() == {"city", "days"} for call in calls[0])
        assert answer.usage is not None
        assert plain.usage is not None
        assert answer.usage.prompt_tokens == plain.usage.prompt_tokens  # the template is not told of it
    silent = client.chat.completions.create(tool_choice="none", **{**asked, "max_tokens": 1})
    assert silent.choices[0].message.tool_calls is None
    told: list[Any] = [{**tool, "strict": True} for tool in RESPONSE_TOOLS]
    again: dict[str, Any] = {"model": "qwen", "input": SAID, "tools": told, "max_output_tokens": 900}
    answered = client.responses.create(tool_choice="required", parallel_tool_calls=False, **again)
    assert [one.type for one in answered.output] == ["function_call"]
    assert [one.strict for one in answered.tools] == [True, True]  # type: ignore[union-attr]


MESSAGE_TOOLS: list[Any] = [
    {"name": "weather", "description": "How it will be.", "input_schema": PLACE},
    {"name": "clock", "input_schema": CLOCK["function"]["parameters"]},
]


@pytest.fixture(scope="module")
def anthropics(client: openai.OpenAI) -> Iterator[anthropic.Anthropic]:
    url = str(client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as one:
        yield one


@pytest.mark.parametrize("name", NAMES)
def test_messages_call_what_must_be_called(anthropics: anthropic.Anthropic, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": SAID, "tools": MESSAGE_TOOLS, "max_tokens": 900}
    answer = anthropics.messages.create(tool_choice={"type": "tool", "name": "weather"}, **asked)
    (used,) = answer.content
    assert (answer.stop_reason, used.type, used.name) == ("tool_use", "tool_use", "weather")
    assert used.input["city"] in {"Rome", "Oslo"}
    with anthropics.messages.stream(tool_choice={"type": "any"}, **asked) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert {one.type for one in final.content} == {"tool_use"}
    single = {"type": "any", "disable_parallel_tool_use": True}
    alone = anthropics.messages.create(tool_choice=single, **asked)  # type: ignore[arg-type]
    assert len(alone.content) == 1
    strict = {**asked, "tools": [{**tool, "strict": True} for tool in MESSAGE_TOOLS]}
    assert len(anthropics.messages.create(tool_choice=single, **strict).content) == 1  # type: ignore[arg-type]


def test_messages_give_calls_and_what_they_brought_back(anthropics: anthropic.Anthropic) -> None:
    history: list[Any] = [
        *SAID,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    counted = anthropics.messages.count_tokens(model="qwen", messages=history).input_tokens
    text = "user: Once upon a time\nassistant: \nweather Rome\ntool: sunny\nuser: and now?\nassistant:"
    found = httpx.post(f"{str(anthropics.base_url).rstrip('/')}/tokenize", json={"model": "qwen", "prompt": text})
    assert counted == found.json()["count"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from([HERMES, MISTRAL, LLAMA, None]), st.data())
def test_a_streamed_message_is_the_whole_one(pieces: list[str], tools: Tools | None, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9))), len(text)]
    ends = [None] * (len(cuts) - 2) + ["stop"]
    told = [
        Piece(index=0, text=text[start:stop], tokens=[1], choices=(), finish=end)  # type: ignore[arg-type]
        for start, stop, end in zip(cuts, cuts[1:], ends, strict=False)
    ]
    streamed, whole = (Said(model="m", prompt_tokens=1, tools=tools) for _ in range(2))
    events = list(streamed.openings())
    for piece in told:
        streamed.take(piece)
        whole.take(piece)
        events += streamed.chunks(piece)
    events += streamed.closing()
    blocks: list[Any] = []
    for one in (json.loads(event.partition("data: ")[2]) for event in events):
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append({**one["content_block"], "text": "", "json": ""})
        elif one["type"] == "content_block_delta":
            assert one["index"] == len(blocks) - 1
            blocks[-1]["text"] += one["delta"].get("text", "")
            blocks[-1]["json"] += one["delta"].get("partial_json", "")
    message = whole.complete()
    assert whole.end == streamed.end
    assert "".join(one["text"] for one in blocks) == "".join(one.get("text", "") for one in message["content"])
    assert [(one["name"], json.loads(one["json"])) for one in blocks if one["type"] == "tool_use"] == [
        (one["name"], one["input"]) for one in message["content"] if one["type"] == "tool_use"
    ]


RESPONSE_TOOLS: list[Any] = [{"type": "function", "strict": False, **tool["function"]} for tool in (WEATHER, CLOCK)]


@pytest.mark.parametrize("name", NAMES)
def test_responses_call_what_must_be_called(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "input": SAID, "tools": RESPONSE_TOOLS, "max_output_tokens": 900}
    only: Any = {"type": "function", "name": "weather"}
    answer = client.responses.create(tool_choice=only, **asked)
    (call,) = answer.output
    assert (answer.status, call.type, call.name) == ("completed", "function_call", "weather")
    assert json.loads(call.arguments)["city"] in {"Rome", "Oslo"}
    with client.responses.stream(tool_choice="required", extra_body={"seed": 1}, **asked) as stream:
        streamed = stream.get_final_response()
    whole = client.responses.create(tool_choice="required", extra_body={"seed": 1}, **asked)
    calls = [[(one.name, one.arguments) for one in told.output] for told in (streamed, whole)]  # type: ignore[union-attr]
    assert calls[0] == calls[1] != []
    single = client.responses.create(tool_choice="required", parallel_tool_calls=False, **asked)
    assert len(single.output) == 1


def test_responses_give_calls_and_what_they_brought_back(client: openai.OpenAI) -> None:
    history: list[Any] = [
        *SAID,
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call", "call_id": "2", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "1", "output": "sunny"},
    ]
    usage = client.responses.create(model="qwen", input=history, max_output_tokens=1).usage
    text = "user: Once upon a time\nassistant: \nweather Rome\nweather Oslo\ntool: sunny\nassistant:"
    found = client.post("/../tokenize", body={"model": "qwen", "prompt": text}, cast_to=httpx.Response)
    assert usage is not None
    assert usage.input_tokens == json.loads(found.text)["count"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from([HERMES, MISTRAL, LLAMA, None]), st.data())
def test_a_streamed_response_is_the_whole_one(pieces: list[str], tools: Tools | None, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9))), len(text)]
    ends = [None] * (len(cuts) - 2) + ["stop"]
    asked = ResponsesRequest(model="m", input="a")
    streamed, whole = (Reply(model="m", asked=asked, prompt_tokens=1, tools=tools) for _ in range(2))
    events = list(streamed.openings())
    for start, stop, end in zip(cuts, cuts[1:], ends, strict=False):
        piece = Piece(index=0, text=text[start:stop], tokens=[1], choices=(), finish=end)  # type: ignore[arg-type]
        for one in (streamed, whole):
            one.take(piece)
        events += streamed.chunks(piece)
    events += streamed.closing()
    told = [json.loads(event.partition("data: ")[2]) for event in events]
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    done = [one["item"] for one in told if one["type"] == "response.output_item.done"]
    added = [one["item"]["id"] for one in told if one["type"] == "response.output_item.added"]
    assert done == told[-1]["response"]["output"]
    assert [one["id"] for one in done] == added
    output = whole.complete()["output"]
    texts = ["".join(part["text"] for one in items for part in one.get("content", [])) for items in (done, output)]
    calls = [[(one["name"], one["arguments"]) for one in items if "name" in one] for items in (done, output)]
    assert texts[0] == texts[1]
    assert calls[0] == calls[1]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "mute"}, "the model's chat template knows none"),
        ({"tools": [CLOCK, CLOCK]}, "two of them have the same name"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "'h' is none of the tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "give one"),
        ({"tools": [HELD], "response_format": {"type": "json_object"}}, "tool_choice or strict tools and response"),
        ({"model": "mistral", "parallel_tool_calls": False}, "cannot be had one by one"),
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
