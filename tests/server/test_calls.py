"""Grammars of texts that call tools: what they take, and that no call is read which a strict tool forbids."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from lissom.engine.grammar import constrain, spelling
from lissom.models.tokenizer import Tokenizer as Words
from lissom.server import LanguageService, create_app
from lissom.server.calls import may_call
from lissom.server.tools import DIALECTS, Dialect, Tools, read, tools_of

END = 1
RIGHT, WRONG = '{"name": "f", "arguments": {"a": 1}}', '{"name": "f", "arguments": {"a": "1"}}'
KEPT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def spelled(tokenizer: Any) -> Tokenizer:
    """No mark is a token."""
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


@pytest.fixture(scope="module")
def marked(spelled: Tokenizer) -> Tokenizer:
    """Every mark is a token: those in brackets are shown in a text, as with Qwen, the others are not."""
    one = Tokenizer.from_str(spelled.to_str())
    one.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>", "<think>")])
    one.add_special_tokens([AddedToken(text, normalized=False) for text in ("[TOOL_CALLS]", "<|python_tag|>")])
    return one


Takes = Callable[..., bool]


@pytest.fixture(scope="module")
def takes(marked: Tokenizer) -> Takes:
    """Whether a text of these tokens may be written by a model of that family, and end, where f is strict."""

    def words(one: Dialect) -> Words:
        return Words(marked, {"eos_token_id": END, "chat_template": f"tools {one.mark}", "special_tokens": {}})

    known = spelling(words(DIALECTS[0]), marked.get_vocab_size(), [END])

    def taken(family: int, tokens: list[int], *, single: bool = False) -> bool:
        tools = tools_of(words(DIALECTS[family]), {"f": KEPT, "g": KEPT}, ["f"])
        grammar = may_call(tools, single=single)
        assert grammar is not None
        made = constrain(grammar, known)
        for token in tokens:
            if not made.allowed()[token]:
                return False
            made.push(token)
        return bool(made.allowed()[END])

    return taken


def encoded(words: Tokenizer, family: int, text: str) -> list[int]:
    """The tokens of a text, with calls as a family writes them."""
    return list(words.encode(text.replace("arguments", DIALECTS[family].arguments), add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        (0, "", True),
        (0, '<tool_cal {"name": "f"} [1] </tool_call>', True),
        (0, f"<think>so \n<tool_call>\n{RIGHT}\n</tool_call> and\n<tool_call>\n{RIGHT}\n</tool_call>\n", True),
        (0, f"so <tool_call>\n{WRONG}\n</tool_call>", False),
        (0, f"<tool_call>\n{RIGHT}\n</tool_call><tool_call>\n{WRONG}\n</tool_call>", False),
        (0, f"<think><tool_call>\n{RIGHT}", False),  # which is not over
        (0, "<tool_call> and so on", False),
        (0, f"<tool_call>\n{WRONG.replace('f', 'g')}\n</tool_call>", True),  # g is not strict
        (0, f"<tool_call>\n{RIGHT.replace('f', 'h')}\n</tool_call>", False),
        (1, "", True),
        (1, " \n", True),
        (1, "So [1], or {2}", True),
        (1, "[1]", False),
        (1, f"[TOOL_CALLS] [{RIGHT}, {RIGHT}]", True),
        (1, f"[TOOL_CALLS][{RIGHT}, {WRONG}]", False),
        (1, f"\n [{RIGHT}]", True),
        (1, f"\n [{WRONG}]", False),
        (1, f"[{RIGHT}] and", False),
        (2, "", True),
        (2, "So {1}", True),
        (2, '{"answer": 1}', False),
        (2, RIGHT, True),
        (2, WRONG, False),
        (2, f"<|python_tag|>\n{RIGHT}", True),
        (2, f"{RIGHT} and", False),
    ],
)
def test_strict_tools_leave_text_free_and_hold_calls(
    takes: Takes, spelled: Tokenizer, marked: Tokenizer, family: int, text: str, expected: bool
) -> None:
    assert takes(family, encoded(marked, family, text)) == expected
    if "python_tag" not in text:  # which is no text
        assert takes(family, encoded(spelled, family, text)) == expected


def test_a_strict_call_behind_text_is_held_and_may_be_the_only_one(
    takes: Takes, spelled: Tokenizer, marked: Tokenizer
) -> None:
    assert takes(1, encoded(spelled, 1, f"So [TOOL_CALLS][{RIGHT}]"))
    assert not takes(1, encoded(spelled, 1, f"So [TOOL_CALLS][{WRONG}]"))
    assert not takes(1, encoded(marked, 1, f"So [TOOL_CALLS][{RIGHT}]"))  # the text would be without the mark
    once = f"<tool_call>\n{RIGHT}\n</tool_call>"
    for words in (spelled, marked):
        assert [takes(0, encoded(words, 0, text), single=True) for text in ("so", f"so {once}")] == [True, True]
        assert [takes(0, encoded(words, 0, f"{once}{more}"), single=True) for more in (" so", once)] == [False, False]
        assert takes(1, encoded(words, 1, f"[{RIGHT}]"), single=True)
        assert not takes(1, encoded(words, 1, f"[{RIGHT}, {RIGHT}]"), single=True)


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "<tool", "[", "]", "{", "}"]
WRITTEN = [*MARKS, " ", "\n", "so", RIGHT, WRONG, f"[{RIGHT}", f", {WRONG}]", f"<tool_call>\n{RIGHT}\n</tool_call>"]


@given(st.lists(st.sampled_from(WRITTEN), max_size=6), st.sampled_from([0, 1, 2]), st.booleans())
def test_no_call_is_read_that_a_strict_tool_forbids(
    takes: Takes, spelled: Tokenizer, marked: Tokenizer, pieces: list[str], family: int, whole: bool
) -> None:
    words, text = marked if whole else spelled, "".join(pieces)
    tokens = encoded(words, family, text)
    dialect = DIALECTS[family]
    tools = Tools(dialect=dialect, schemas={"f": {}, "g": {}})
    calls = read(tools, words.decode(tokens))[1]
    taken = takes(family, tokens)
    if taken:
        given = [json.loads(call.arguments) for call in calls if call.name == "f"]
        assert all(one.keys() == {"a"} and isinstance(one["a"], int) for one in given)
    begun = (dialect.opens and dialect.opens in text) or (dialect.bare and text.lstrip().startswith(dialect.bare))
    if not begun and not whole:
        assert taken


PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SAID: list[Any] = [{"role": "user", "content": "Once upon a time"}]
EAGER = {"qwen": 2, "mistral": 61, "llama": 93}  # the token that each writes wherever it may: <tool_call>, [ and {


def weather(*, strict: bool) -> Any:
    """A tool."""
    return {"type": "function", "function": {"name": "weather", "parameters": PLACE, "strict": strict}}


def held(arguments: str) -> bool:
    """Whether these are arguments of the tool."""
    given = json.loads(arguments)
    return given.keys() == {"city", "days"} and given["city"] in {"Rome", "Oslo"} and 1 <= given["days"] <= 9


def leaning(model: Any, token: int) -> Any:
    """A model that writes that token wherever it may."""
    one = copy.deepcopy(model)
    one.lm_head.bias = torch.nn.Parameter(1000.0 * torch.nn.functional.one_hot(torch.tensor(token), 2048))
    return one


def worded(tokenizer: Any, dialect: Dialect) -> Words:
    """A tokenizer that knows tools, and whose third token opens calls as Qwen's does."""
    told = {"eos_token_id": END, "chat_template": f"{{# tools {dialect.mark} #}}{{{{ messages[0].content }}}}"}
    parts = json.loads(tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<tool_call>"'))
    parts["added_tokens"][2]["special"] = False
    return Words(Tokenizer.from_str(json.dumps(parts)), {**told, "special_tokens": {}})


@pytest.fixture(scope="module")
def client(start: Any, model: Any, tokenizer: Any) -> Iterator[openai.OpenAI]:
    """Models that call tools wherever they may, and one that does not."""
    words = [worded(tokenizer, one) for one in DIALECTS]
    services = [
        LanguageService(model=leaning(model, token), tokenizer=one, name=name)
        for (name, token), one in zip(EAGER.items(), words, strict=True)
    ]
    calm = LanguageService(model=model, tokenizer=words[0], name="calm")
    with (
        start(create_app([*services, calm])) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one,
    ):
        yield one


@pytest.mark.parametrize("name", EAGER)
def test_a_call_that_the_model_begins_is_held_where_its_tool_is_strict(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": SAID, "temperature": 0}
    loose = client.chat.completions.create(tools=[weather(strict=False)], max_tokens=9, **asked).choices[0]
    assert (loose.finish_reason, loose.message.tool_calls) == ("length", None)
    once: dict[str, Any] = {**asked, "tools": [weather(strict=True)], "parallel_tool_calls": False, "max_tokens": 200}
    with client.chat.completions.stream(tool_choice="auto", **once) as stream:
        streamed = stream.get_final_completion().choices[0]
    for one in (client.chat.completions.create(**once).choices[0], streamed):
        (call,) = one.message.tool_calls or []
        assert (one.finish_reason, one.message.content or "") == ("tool_calls", "")
        assert call.type == "function"
        assert held(call.function.arguments)


def test_strict_tools_leave_text_as_it_is(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "calm", "messages": SAID, "temperature": 0, "max_tokens": 12}
    answers = [client.chat.completions.create(tools=[weather(strict=one)], **asked) for one in (True, False)]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[0] == texts[1] != ""


def test_responses_hold_what_the_model_begins(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": PLACE, "strict": True}
    asked: dict[str, Any] = {
        "model": "qwen",
        "input": SAID,
        "tools": [tool],
        "temperature": 0,
        "max_output_tokens": 200,
    }
    (item,) = client.responses.create(parallel_tool_calls=False, **asked).output
    assert item.type == "function_call"
    assert held(item.arguments)
    several = [one for one in client.responses.create(**asked).output if one.type == "function_call"]
    assert len(several) > 1
    assert all(held(one.arguments) for one in several)


def test_messages_hold_what_the_model_begins(client: openai.OpenAI) -> None:
    tool: Any = {"name": "weather", "input_schema": PLACE, "strict": True}
    once: Any = {"type": "auto", "disable_parallel_tool_use": True}
    url = str(client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as other:
        answer = other.messages.create(model="qwen", messages=SAID, tools=[tool], tool_choice=once, max_tokens=200)
    (used,) = answer.content
    assert (answer.stop_reason, used.type) == ("tool_use", "tool_use")
    assert held(json.dumps(used.input))
