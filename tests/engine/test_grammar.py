"""Structured output: what is written obeys the grammar, whatever the model would rather say."""

import json
import re
import sys
from typing import Any

import numpy as np
import pytest

from lissom.engine import Choice, Engine, Grammar, Sampling
from lissom.engine.grammar import constrain, spelling
from lissom.errors import DataError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Lily", "Tom"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LARK = 'start: "the " animal " saw the " animal\nanimal: "cat" | "dog"'
GBNF = 'root ::= "the " animal " saw the " animal\nanimal ::= "cat" | "dog"'
SAW = re.compile("the (cat|dog) saw the (cat|dog)")


@pytest.fixture(scope="module")
def engine(model: Any, tokenizer: Any) -> Engine:
    return Engine(model, tokenizer, max_tokens_in_cache=2048)


def written(engine: Engine, tokenizer: Any, kind: str, text: str, **knobs: Any) -> list[str]:
    """Continuations at several seeds, each of which ended by itself."""
    prompt, grammar = tokenizer("Once upon a time").input_ids, Grammar(kind=kind, text=text)
    asked = [Sampling(grammar=grammar, max_tokens=60, seed=seed, **knobs) for seed in range(4)]
    found = [engine.generate([prompt], sampling)[0] for sampling in asked]
    assert [one.finish for one in found] == ["stop"] * 4
    return [one.text for one in found]


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.0}, {"temperature": 3.0, "top_k": 4}, {"top_p": 0.3}])
def test_a_json_schema_is_kept(engine: Engine, tokenizer: Any, knobs: dict[str, Any]) -> None:
    for text in written(engine, tokenizer, "json", json.dumps(SCHEMA), **knobs):
        found = json.loads(text)
        assert set(found) == {"name", "age"}
        assert found["name"] in ("Lily", "Tom")
        assert 0 <= found["age"] <= 99


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "[ab]{2,5}é?x", re.compile("[ab]{2,5}é?x")),
        ("grammar", LARK, SAW),
        ("grammar", GBNF, SAW),
        ("choice", '["yes", "no", "né\\"e"]', re.compile('yes|no|né"e')),
    ],
)
def test_regular_expressions_grammars_and_choices_are_kept(
    engine: Engine, tokenizer: Any, kind: str, text: str, pattern: re.Pattern[str]
) -> None:
    assert all(pattern.fullmatch(found) for found in written(engine, tokenizer, kind, text))


def test_a_text_ends_only_where_it_may_and_at_once_where_it_must(tokenizer: Any) -> None:
    end, a, b, x = 1, *(tokenizer.convert_tokens_to_ids(letter) for letter in "abx")
    made = constrain(Grammar(kind="regex", text="[ab]+(x|$)"), spelling(tokenizer, 2050, [end, 2049]))
    assert made.allowed().shape == (2050,)
    assert (made.allowed()[[end, a, x, 2049]] == [False, True, False, False]).all()
    assert made.push(b) is None
    assert made.allowed()[[end, a, x]].all()
    assert made.push(x) == "stop"
    assert np.flatnonzero(made.allowed()).tolist() == [end]


def test_a_text_that_is_cut_says_so(engine: Engine, tokenizer: Any) -> None:
    sampling = Sampling(grammar=Grammar(kind="regex", text="[ab]{50}"), max_tokens=3)
    assert engine.generate([tokenizer("A").input_ids], sampling)[0].finish == "length"
    cut = engine.prepare([5], sampling)
    cut.accept(Choice(token=1, logprob=0.0), frozenset([1]))  # all that is left where the library gives up
    assert cut.finish == "length"


def test_a_constrained_text_disturbs_no_other(engine: Engine, tokenizer: Any) -> None:
    prompt, greedy = tokenizer("Once upon a time").input_ids, Sampling(temperature=0.0, max_tokens=20)
    alone = engine.generate([prompt], greedy)[0]
    other = engine.add(prompt, Sampling(grammar=Grammar(kind="regex", text="[0-9]{30}"), max_tokens=10))
    assert engine.generate([prompt], greedy)[0].generated == alone.generated
    assert other.text.isdigit()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json", "{", "this json cannot be understood"),
        ("json", '{"type": "strange"}', "Invalid type: strange"),
        ("regex", "([", "unclosed character class"),
        ("grammar", "start: foo", 'unknown name: "foo"'),
        ("choice", "yes", "this choice cannot be understood"),
    ],
)
def test_what_cannot_be_understood_is_told_in_one_line(
    engine: Engine, tokenizer: Any, kind: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        engine.add(tokenizer("A").input_ids, Sampling(grammar=Grammar(kind=kind, text=text)))
    assert "\n" not in str(caught.value)
    assert not engine.busy


def test_a_kind_that_there_is_not_and_knobs_that_contradict_are_refused() -> None:
    with pytest.raises(DataError, match="'xml' is no kind of grammar; choose json, regex, grammar, choice"):
        Grammar(kind="xml", text="")
    for knobs in ({"ignore_eos": True}, {"min_tokens": 2}):
        with pytest.raises(DataError, match="leave ignore_eos and min_tokens out"):
            Sampling(grammar=Grammar(kind="regex", text="a"), **knobs)  # type: ignore[arg-type]


def test_a_tokenizer_of_which_no_token_ends_a_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the tokenizer cannot be used: eos_token list must not be empty"):
        spelling(tokenizer, 2048, [])


def test_without_the_library_it_is_named(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    one = Engine(model, tokenizer, max_tokens_in_cache=64)
    with pytest.raises(DataError, match=r"llguidance is not installed; pip install 'lissom\[structured\]'"):
        one.add([5], Sampling(grammar=Grammar(kind="regex", text="a")))
