"""Grammars of texts that call tools: what they take, and that no call is read which a strict tool forbids."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from lissom.engine.grammar import constrain, spelling
from lissom.models.tokenizer import Tokenizer as Words
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
        (1, "So [1], or <tool_call>", True),
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
